"""What only a GPU's program has, on the CPU: it changes no value and no derivative."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv import _gpu
from tests import forms
from tests.case import random_like

LABELS = jnp.array([0, 3, 8, -1])
LAYERS = {
    "softmax": bnderiv.softmax,
    "log_softmax": bnderiv.log_softmax,
    "integer labels": lambda x, **options: bnderiv.softmax_cross_entropy_with_integer_labels(x, LABELS, **options),
    "weights": lambda x, **options: bnderiv.softmax_cross_entropy(
        x, jax.nn.one_hot(LABELS, 9, dtype=x.dtype), **options
    ),
}


@pytest.fixture
def on_a_gpu():
    with forms.of("cuda"):
        yield


def _has_minimum(f, *arguments):
    return " min " in str(jax.make_jaxpr(f)(*arguments))


def test_a_row_is_the_same_to_the_bit(on_a_gpu):
    x = random_like(jnp.ones((6, 5)), 0).at[1].set(0.0).at[2].set(-0.0).at[3, 1].set(jnp.inf).at[4, 2].set(-jnp.inf)
    start = partial(_gpu.start_of_row, axes=(1,))
    assert _has_minimum(start, x)
    np.testing.assert_array_equal(start(x), x)
    assert np.isnan(start(x.at[5, 0].set(jnp.nan))).sum() == 5  # the row, as sums of it do


def test_its_derivative_is_one(on_a_gpu):
    x = jnp.array([[0.0, -1.0, 2.0]])
    delta = random_like(x, 1)
    start = partial(_gpu.start_of_row, axes=(1,))
    np.testing.assert_array_equal(jax.vjp(start, x)[1](delta)[0], delta)
    np.testing.assert_array_equal(jax.jvp(start, (x,), (delta,))[1], delta)


@pytest.mark.parametrize("axes", [(0,), (0, 1), ()])
def test_only_the_last_axis_is_a_row(on_a_gpu, axes):
    assert not _has_minimum(partial(_gpu.start_of_row, axes=axes), jnp.ones((4, 5)))


def test_not_where_rows_are_long_nor_on_a_cpu(on_a_gpu, monkeypatch):
    x = jnp.ones((2, 5))
    monkeypatch.setattr(_gpu, "LONGEST", 4)
    assert not _has_minimum(partial(_gpu.start_of_row, axes=(1,)), x)


def test_the_longest_row():
    assert _gpu.rows_fit((2, _gpu.LONGEST), (1,))
    assert not _gpu.rows_fit((2, _gpu.LONGEST + 1), (1,))
    assert not _gpu.rows_fit(jax.export.symbolic_shape("2, n"), (1,))


@pytest.mark.parametrize(
    ("capabilities", "fit"), [(["9.0", "8.0"], True), (["9.0", "7.5"], False), (["10.0"], True), (["gfx942"], True)]
)
def test_old_gpus_fuse_no_rows(monkeypatch, capabilities, fit):
    """Volta and Turing; such a GPU here is what the program is for."""
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability=each) for each in capabilities])
    assert _gpu.rows_fit((4, 5), (1,)) is fit


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_a_cpu(name):
    """Of first and second order and in forward mode; with classes that are ruled out, and an infinite logit."""
    layer = LAYERS[name]
    x = random_like(jnp.ones((4, 9)), 2).at[0, 4].set(-jnp.inf).at[1, 5].set(jnp.inf)
    first, second = random_like(layer(x), 3), random_like(x, 4)

    def derivatives(x):
        def gradient(x):
            return jax.vjp(layer, x)[1](first)[0]

        with bnderiv.forward_mode.enabled():
            return gradient(x), jax.vjp(gradient, x)[1](second)[0], jax.jvp(layer, (x,), (second,))[1]

    expected = derivatives(x)
    with forms.of("cuda"):
        assert _has_minimum(lambda x: jax.vjp(layer, x)[1](first), x)
        found = derivatives(x)
    for actual, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["integer labels", "weights"])
def test_a_nan_in_a_class_that_does_not_count_reaches_nothing(on_a_gpu, name):
    x = random_like(jnp.ones((4, 9)), 5)
    hidden = x.at[0, 4].set(jnp.nan).at[1, 5].set(jnp.inf)
    where = jnp.isfinite(hidden)
    first, second = random_like(x[:, 0], 6), random_like(x, 7)

    def gradient(x):
        return jax.vjp(partial(LAYERS[name], where=where), x)[1](first)[0]

    assert _has_minimum(gradient, x)
    np.testing.assert_array_equal(gradient(hidden), gradient(x))
    np.testing.assert_array_equal(*(jax.vjp(gradient, a)[1](second)[0] for a in (hidden, x)))


def test_numbers_of_rows_in_one_array():
    tree = {"a": jnp.arange(3.0)[:, None], "b": (jnp.full((3, 1), 7.0), -jnp.ones((3, 1)))}
    jax.tree.map(np.testing.assert_array_equal, _gpu.in_one_array(tree), tree)


def _in_parts(f, a):
    return "optimization_barrier" in str(jax.make_jaxpr(f)(a))


@pytest.mark.parametrize("one_part", [True, False])
@pytest.mark.parametrize(
    ("shape", "axes", "cut"),
    [
        ((4, 32, 32, 40), (1, 2), True),
        ((4, 32, 32, 40), (0, 1, 2), True),
        ((3, 5, 8, 97, 33), (0, 2, 3), True),
        ((512, 40), (0,), "in one part"),  # the first axis may be sharded: it is not cut where XLA shards
        ((509, 40), (0,), False),  # no parts
        ((512, 31), (0,), False),  # few columns fill a block
        ((64, 40), (0,), False),  # short sums
        ((4, 64, 4096), (1,), False),  # enough sums
        ((4, 32, 32, 40), (2, 3), False),  # rows
        ((4, 32, 32, 40), (), False),
    ],
    ids=str,
)
def test_few_sums_are_taken_in_parts(on_a_gpu, monkeypatch, shape, axes, cut, one_part):
    monkeypatch.setattr(_gpu, "in_one_part", lambda: one_part)
    a = random_like(jnp.ones(shape, jnp.float32), 0)
    total = partial(_gpu.sum_along, axes=axes)
    assert _in_parts(total, a) == (one_part if cut == "in one part" else cut)
    wide, found = np.asarray(a, np.float64), np.asarray(total(a), np.float64)
    assert found.shape == wide.sum(axes, keepdims=True).shape
    assert (np.abs(found - wide.sum(axes, keepdims=True)) <= 3e-7 * np.abs(wide).sum(axes, keepdims=True)).all()
    delta = random_like(total(a), 1)
    np.testing.assert_array_equal(jax.vjp(total, a)[1](delta)[0], jnp.broadcast_to(delta, shape))
    mapped = np.asarray(jax.vmap(total)(jnp.stack([a, 2 * a])), np.float64)
    assert (np.abs(mapped - np.stack([found, 2 * found])) <= 6e-7 * np.abs(wide).sum(axes, keepdims=True)).all()


def test_elsewhere_sums_are_taken_at_once():
    with forms.of("rocm"):
        assert not _in_parts(partial(_gpu.sum_along, axes=(1, 2)), jnp.ones((4, 32, 32, 40)))
