"""The views of `Channels`, and sums whose terms cancel."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnderiv.normalization.channels import Channels

SHAPES = [
    ((4, 28, 28, 6), 3),
    ((4, 56, 12, 20), 3),
    ((2, 5, 30, 17), 3),
    ((3, 4, 28, 9), 1),
    ((6, 28, 28, 4), 0),
    ((5, 31, 3), 2),
    ((5, 3, 40), 1),
    ((3, 11, 1, 40), 3),
    ((40, 7), 1),
    ((7, 40), 0),
    ((6, 1, 1, 7), 3),
]


def _exact_sums(a, axis):
    """By Python's correctly rounded sum, channel by channel."""
    rows = np.moveaxis(np.asarray(a, np.float64), axis, 0).reshape(a.shape[axis], -1)
    return np.array([math.fsum(row) for row in rows])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_a_view_lays_and_sums_as_the_array_does(shape, axis, masked):
    rng = np.random.default_rng(0)
    x, vector = jnp.asarray(rng.standard_normal(shape)), jnp.asarray(rng.standard_normal(shape[axis]))
    channels = Channels.of(axis, shape, masked)
    view = channels.view(x)
    assert channels.number(view) == shape[axis]
    along = [1] * len(shape)
    along[axis] = -1
    laid = (view * channels.along(vector, view)).reshape(shape)
    np.testing.assert_array_equal(laid, np.asarray(x) * np.asarray(vector).reshape(along))
    for total in (channels.sum(view), channels.sum_closely(view)):
        np.testing.assert_allclose(total, _exact_sums(x, axis), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_masks_are_viewed_with_their_axes_of_length_one(shape, axis):
    x = np.random.default_rng(1).standard_normal(shape)
    channels = Channels.of(axis, shape, masked=True)
    for kept in range(len(shape)):
        small = [n if i == kept else 1 for i, n in enumerate(shape)]
        where = np.random.default_rng(kept).random(small) < 0.5
        viewed = jnp.where(channels.view(jnp.asarray(where)), channels.view(jnp.asarray(x)), 0)
        np.testing.assert_array_equal(viewed.reshape(shape), np.where(where, x, 0))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("shape", "axis"), [((64, 28, 28, 6), 3), ((6, 28, 28, 64), 0), ((64, 6, 28, 28), 1)], ids=str)
def test_what_cancels_is_summed_closely(shape, axis, scale):
    """Half of the samples near 30, half near −30: on the way, a plain sum is thousands of times what is left."""
    batch = 0 if axis else len(shape) - 1
    sign = np.where(np.arange(64) < 32, 30, -30).reshape([64 if i == batch else 1 for i in range(4)])
    a = ((sign + np.random.default_rng(2).standard_normal(shape)) * scale).astype(np.float32)
    channels = Channels.of(axis, shape, masked=False)
    true = _exact_sums(a, axis)
    close, plain = (
        np.linalg.norm((np.asarray(total(channels.view(jnp.asarray(a))), np.float64) - true) / scale)
        for total in (jax.jit(channels.sum_closely), jax.jit(channels.sum))
    )
    # The 14 terms of a block have one sign: their sum is rounded up to 13 times, the last ones at 14 · 30.
    assert close < 14 * 30 * np.sqrt(a.size / 14) * 13**0.5 * 2.0**-24
    if batch == 0:  # where the batch is last, halves that cancel lie side by side, which suits the plain sum too
        assert plain > 2.5 * close


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 2e-38, -2e-38, 1e-20, 1.0, -1.0, 1e37, -1e37]), min_size=6, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_sums_of_any_magnitudes_lose_no_more_than_plain_ones(values, seed):
    a = np.random.default_rng(seed).choice(np.float32(values), (3, 8, 2))
    channels = Channels.of(2, a.shape, masked=False)
    total = np.asarray(channels.sum_closely(channels.view(jnp.asarray(a))), np.float64)
    tolerance = 2.0**-23 * np.abs(np.float64(a)).sum((0, 1)) * 4
    assert (np.abs(total - _exact_sums(a, 2)) <= tolerance + a.size * jnp.finfo(jnp.float32).tiny).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_channel_and_is_what_a_sum_gives(value):
    a = np.random.default_rng(3).standard_normal((4, 28, 28, 6)).astype(np.float32)
    b = a.copy()
    b[1, 2, 3, 4] = value
    channels = Channels.of(3, a.shape, masked=False)
    total = channels.sum_closely(channels.view(jnp.asarray(b)))
    np.testing.assert_array_equal(total[4], np.float32(value))
    expected = channels.sum_closely(channels.view(jnp.asarray(a)))
    np.testing.assert_array_equal(np.delete(total, 4), np.delete(expected, 4))


def test_its_derivative_is_that_of_a_sum():
    a = jnp.asarray(np.random.default_rng(4).standard_normal((4, 28, 28, 6)))
    channels = Channels.of(3, a.shape, masked=False)
    tangent = jnp.asarray(np.random.default_rng(5).standard_normal(a.shape))
    _, moved = jax.jvp(lambda a: channels.sum_closely(channels.view(a)), (a,), (tangent,))
    np.testing.assert_allclose(moved, _exact_sums(tangent, 3), rtol=1e-12)
