"""The pools of `bnderiv.equinox` against Equinox's, module against module."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

eqx = pytest.importorskip("equinox", reason="needs the extra equinox")

import bnderiv.equinox
from tests.adapters.alike import alike, normal
from tests.compiling import fast_jit

OURS: Any = bnderiv.equinox
THEIRS: Any = eqx.nn

POOLS: list[Any] = [
    ("Pool1d", (3, 11), (3,), {}),
    ("Pool1d", (3, 11), (4, 3), {"padding": 1, "use_ceil": True}),
    ("Pool2d", (3, 9, 7), (2, (2, 1)), {}),
    ("Pool2d", (3, 9, 8), ((3, 2),), {"stride": 2, "padding": ((1, 0), (1, 1))}),
    ("Pool2d", (3, 9, 8), (3, 2), {"padding": (1, 0), "use_ceil": True}),
    ("Pool2d", (2, 5, 5), (2, 2), {"use_ceil": True}),  # Equinox pads by a whole window
    ("Pool3d", (2, 5, 4, 6), ((2, 3, 2), (1, 2, 2), 1), {}),
]
ADAPTIVE: list[Any] = [
    ("Pool1d", (3, 11), 4),
    ("Pool2d", (3, 8, 6), (2, 3)),
    ("Pool2d", (3, 8, 7), (3, 7)),
    ("Pool3d", (2, 5, 4, 7), (2, 4, 3)),
]


def agree(name, x, *arguments, **options):
    def value_and_gradient(module):
        pool = getattr(module, name)(*arguments, **options)
        y, pull_back = jax.vjp(pool, x)
        return y, pull_back(normal(1, y.shape, jnp.float64))

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        alike(fast_jit(lambda: value_and_gradient(OURS))(), fast_jit(lambda: value_and_gradient(THEIRS))())


@pytest.mark.few(3, 5)
@pytest.mark.parametrize("kind", ["Avg", "Max"])
@pytest.mark.parametrize(("pool", "shape", "arguments", "options"), POOLS, ids=str)
def test_values_and_gradients(kind, pool, shape, arguments, options):
    agree(kind + pool, normal(0, shape, jnp.float64), *arguments, **options)


def test_cells_past_the_padding_count():
    """In the mean of the last window that `use_ceil` adds, as Equinox has it."""
    x = jnp.arange(1.0, 4.0).reshape(1, 3)
    for module in (OURS, THEIRS):
        np.testing.assert_array_equal(module.AvgPool1d(2, 2, use_ceil=True)(x), [[1.5, 1.5]])


@pytest.mark.few(1, 4)
@pytest.mark.parametrize("kind", ["AdaptiveAvg", "AdaptiveMax"])
@pytest.mark.parametrize(("pool", "shape", "target"), ADAPTIVE, ids=str)
def test_adaptive(kind, pool, shape, target):
    agree(kind + pool, normal(0, shape, jnp.float64), target)


def test_half_precision_sums_in_float32():
    x = jnp.ones((1, 64, 64), jnp.bfloat16)
    assert OURS.AvgPool2d(64)(x).item() == 1  # Equinox: 0.0625
    assert OURS.AdaptiveAvgPool2d(1)(x).dtype == jnp.bfloat16
    # Not rounded between the axes: each axis has a remainder.
    x = normal(0, (2, 7, 8), jnp.bfloat16)
    y, wide = fast_jit(lambda *arrays: [OURS.AdaptiveAvgPool2d(3)(a) for a in arrays])(x, x.astype(jnp.float64))
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))


def test_where_equinox_refuses_its_own_padding():
    pool = OURS.MaxPool1d(2, 3, 0, True)
    np.testing.assert_array_equal(pool(jnp.array([[1.0, 2, 3, 4]])), [[2, 4]])
    with pytest.raises(RuntimeError, match="Paddings should be less"):
        THEIRS.MaxPool1d(2, 3, 0, True)(jnp.ones((1, 4)))


def test_as_equinoxs_modules():
    """Fields and leaves of either fit the other; under vmap, and in a `Sequential`."""
    names = [f"{kind}{n}d" for kind in ("AvgPool", "MaxPool") for n in (1, 2, 3)]
    for name in [*names, *(f"Adaptive{name}" for name in names)]:
        ours, theirs = getattr(OURS, name)(2), getattr(THEIRS, name)(2)
        assert isinstance(ours, type(theirs))
        assert jax.tree.leaves(ours) == jax.tree.leaves(theirs)
    x = normal(0, (4, 2, 6, 6))
    model = eqx.nn.Sequential([OURS.MaxPool2d(2, 2), OURS.AdaptiveAvgPool2d(1)])
    alike(fast_jit(lambda x: jax.vmap(model)(x))(x), fast_jit(lambda x: jax.lax.map(model, x))(x))


def test_integers_are_left_to_equinox():
    x = jnp.arange(8).reshape(1, 8)
    for name in ("MaxPool1d", "AvgPool1d", "AdaptiveMaxPool1d", "AdaptiveAvgPool1d"):
        alike(getattr(OURS, name)(2)(x), getattr(THEIRS, name)(2)(x))


@pytest.mark.parametrize(
    ("pool", "error", "message"),
    [
        (lambda: OURS.AvgPool2d(2)(jnp.ones((2, 4))), ValueError, r"x must have rank 3 \(channels and spatial axes\)"),
        (lambda: OURS.MaxPool1d(2, padding=2)(jnp.ones((2, 4))), ValueError, "smaller than the window"),
        (lambda: OURS.MaxPool1d(5)(jnp.ones((2, 4))), ValueError, "the window must fit"),
        (lambda: OURS.AdaptiveAvgPool1d(5)(jnp.ones((2, 4))), ValueError, r"target_shape must be at most .* \(4,\)"),
        (lambda: OURS.AdaptiveMaxPool1d(0)(jnp.ones((2, 4))), ValueError, r"target_shape\[0\] must be at least 1"),
        (lambda: OURS.AdaptiveMaxPool1d(2)(jnp.ones(4)), ValueError, r"x must have rank 2"),
    ],
)
def test_errors(pool, error, message):
    with pytest.raises(error, match=message):
        pool()
