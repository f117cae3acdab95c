"""`avg_pool`, `max_pool`, `AvgPool` and `MaxPool` of `bnderiv.haiku` against Haiku's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

hk = pytest.importorskip("haiku", reason="needs the extra haiku")

import bnderiv.haiku
from tests.adapters.alike import alike, normal
from tests.compiling import fast_jit

ours: Any = bnderiv.haiku  # whose arguments Haiku annotates too narrowly for the tests

CASES: list[Any] = [
    ((2, 8, 6, 3), (1, 2, 2, 1), (1, 2, 2, 1), "VALID", {}),
    ((2, 3, 8, 6, 3), (3, 2, 1), (2, 1, 1), "SAME", {}),  # of the last axes
    ((2, 9, 7, 3), 3, 2, "SAME", {}),
    ((2, 3, 9, 7), 3, 1, "SAME", {"channel_axis": 1}),
    ((2, 3, 8), 3, (1, 1, 2), "SAME", {"channel_axis": None}),
    ((4, 5, 6), (2, 1, 3), (2, 1, 1), "VALID", {}),  # the first axis too, and not the one between
    ((4, 5, 6), (1, 2, 1), (2, 2, 1), "SAME", {}),  # strides alone
    ((3, 2), (1, 1), 1, "VALID", {}),
]


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def agree(of, shape):
    """`of(module)` is a function of one array; values and gradients."""
    x = normal(0, shape, jnp.float64)

    def value_and_gradient(module):
        def run(x):
            y, pull_back = jax.vjp(of(module), x)
            return y, pull_back(normal(1, y.shape, jnp.float64))

        return fast_jit(run)(x)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        alike(value_and_gradient(ours), value_and_gradient(hk))


@pytest.mark.few(3, 6)
@pytest.mark.parametrize(("shape", "window", "strides", "padding", "options"), CASES, ids=str)
@pytest.mark.parametrize("pool", ["avg_pool", "max_pool"])
def test_values_and_gradients(pool, shape, window, strides, padding, options):
    agree(lambda module: lambda x: getattr(module, pool)(x, window, strides, padding, **options), shape)


@pytest.mark.parametrize("pool", ["avg_pool", "max_pool"])
def test_windows_and_strides_in_arrays_of_numpy(pool):
    agree(
        lambda module: lambda x: getattr(module, pool)(x, np.array([2, 3, 1]), np.array([2, 1, 1]), "SAME"),
        (2, 7, 6, 3),
    )


@pytest.mark.parametrize("pool", ["AvgPool", "MaxPool"])
def test_modules(pool):
    assert issubclass(getattr(ours, pool), getattr(hk, pool))
    names = []

    def of(module):
        def model(x):
            layer = getattr(module, pool)((3, 2, 1), (2, 1, 1), "SAME")
            names.append(layer.module_name)
            return layer(x)

        return lambda x: hk.transform(model).apply({}, None, x)

    agree(of, (2, 9, 7, 3))
    assert len(names) == 2
    assert len(set(names)) == 1


def test_half_precision_sums_in_float32():
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    assert ours.avg_pool(x, (64, 64, 1), (64, 64, 1), "VALID").item() == 1  # Haiku: 0.0625
    y = fast_jit(lambda x: ours.avg_pool(x, (33, 33, 1), 1, "SAME"))(x)
    np.testing.assert_array_equal(y.astype(jnp.float32), 1)
    assert y.dtype == jnp.bfloat16


def test_under_vmap():
    x = normal(0, (3, 2, 6, 6, 2))
    for pool in (ours.avg_pool, ours.max_pool):
        mapped = fast_jit(jax.vmap(lambda x, p=pool: p(x, (2, 2, 1), 1, "SAME")))
        alike(mapped(x), pool(x, (2, 2, 1), 1, "SAME"))


@pytest.mark.parametrize("module", [ours, hk], ids=["ours", "haiku"])
def test_integers_warn_as_haikus(module):
    with pytest.warns(DeprecationWarning, match="under vmap"):
        module.max_pool(jnp.ones((1, 4, 4, 1)), 2, 1, "VALID")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2, 2, "FULL"), ValueError, "padding must be"),
        ((2, 2, ((1, 1),) * 4), ValueError, "padding must be"),
        (((1, 2, 2, 2, 1), 1, "SAME"), ValueError, "window_shape must have at most 4 entries"),
        (((2, 0, 1), 1, "SAME"), ValueError, r"window_shape\[1\] must be at least 1"),
        ((2, 1.5, "SAME"), TypeError, "strides must be an integer"),
        ((2, 1, "SAME", 4), ValueError, "channel_axis must lie in"),
        (((9, 9, 1), 1, "VALID"), ValueError, "window must fit"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        ours.max_pool(jnp.ones((2, 4, 4, 3)), *arguments)


def test_integers_are_left_to_haiku():
    x = jnp.arange(8).reshape(1, 8, 1)
    assert ours.max_pool(x, (2, 1), (2, 1), "VALID").dtype == x.dtype
    np.testing.assert_array_equal(ours.max_pool(x, (2, 1), (2, 1), "VALID").ravel(), [1, 3, 5, 7])


@pytest.mark.parametrize("name", ["AvgPool", "MaxPool"])
def test_a_policy_for_haiku_s_class_applies(name):
    jmp = pytest.importorskip("jmp")
    ours, theirs = getattr(bnderiv.haiku, name), getattr(hk, name)
    pool = hk.transform(lambda x: ours((2, 2, 1), (2, 2, 1), "SAME")(x))
    with hk.mixed_precision.push_policy(theirs, jmp.get_policy("params=float32,compute=float32,output=float16")):
        assert pool.apply({}, None, jnp.ones((1, 4, 4, 3), jnp.float32)).dtype == jnp.float16
    assert pool.apply({}, None, jnp.ones((1, 4, 4, 3), jnp.float32)).dtype == jnp.float32
