"""What both pools refuse, at trace time and by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv

pytestmark = pytest.mark.fast

IMAGES = jnp.ones((2, 5, 4, 3))
POOLS = [bnderiv.avg_pool, bnderiv.max_pool]


@pytest.fixture(params=POOLS, ids=lambda p: p.__name__)
def pool(request):
    """Under `jax.eval_shape`: errors must come before anything runs."""
    return lambda x, *args, **options: jax.eval_shape(lambda x: request.param(x, *args, **options), x)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_, jnp.complex64])
def test_dtypes_that_have_no_gradient(pool, dtype):
    with pytest.raises(TypeError, match="x must have a floating dtype"):
        pool(IMAGES.astype(dtype), 2)


@pytest.mark.parametrize("shape", [(), (4,), (4, 4)])
def test_rank(pool, shape):
    with pytest.raises(ValueError, match=r"x must have rank 3 or more \(batch, spatial axes, channel\)"):
        pool(jnp.ones(shape), 2)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 0, 4, 3), (2, 4, 4, 0)])
def test_empty(pool, shape):
    with pytest.raises(ValueError, match="x must not be empty"):
        pool(jnp.ones(shape), 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": (2, -1)}, ValueError, r"window\[1\] must be at least 1, got -1"),
        (
            {"window": (2, 2, 2)},
            ValueError,
            r"window must be an integer, or one for each of the 2 spatial axes, got \(2, 2, 2\)",
        ),
        ({"window": 2.0}, TypeError, "window must be an integer, got 2.0"),
        ({"window": True}, TypeError, "window must be an integer, got True"),
        ({"window": None}, TypeError, "window must be an integer, got None"),
        ({"window": 2, "strides": 0}, ValueError, "strides must be at least 1, got 0"),
        ({"window": 2, "strides": (1, 0)}, ValueError, r"strides\[1\] must be at least 1, got 0"),
        ({"window": 2, "strides": 1.5}, TypeError, "strides must be an integer, got 1.5"),
        ({"window": 2, "padding": "FULL"}, ValueError, "padding must be .* got 'FULL'"),
        ({"window": 2, "padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"window": 2, "padding": ((0, 0), (0, -1))}, ValueError, r"padding\[1\]\[1\] must be at least 0, got -1"),
        (
            {"window": 2, "padding": (1, 1)},
            ValueError,
            r"padding must be a \(low, high\) pair for each of the 2 spatial axes",
        ),
        ({"window": 2, "padding": ((1, 1),)}, ValueError, r"for each of the 2 spatial axes, got \(\(1, 1\),\)"),
        ({"window": 2, "padding": 0.5}, TypeError, "padding must be an integer, got 0.5"),
        (
            {"window": 2, "padding": 2},
            ValueError,
            r"smaller than the window, which spans 2 along spatial axis 0, got \(2, 2\)",
        ),
        ({"window": 2, "padding": ((0, 0), (1, 2))}, ValueError, r"which spans 2 along spatial axis 1, got \(1, 2\)"),
        ({"window": 6}, ValueError, "the window must fit into the padded input: along spatial axis 0 it spans 6"),
        ({"window": (5, 5)}, ValueError, "along spatial axis 1 it spans 5, the input has 4"),
        ({"window": (8, 4), "padding": ((1, 1), (0, 0))}, ValueError, r"spans 8, .* 5 with padding \(1, 1\)"),
        ({"window": 2, "ceil_mode": 1}, TypeError, "ceil_mode must be a boolean, got 1"),
        (
            {"window": 7, "strides": 2, "ceil_mode": True},
            ValueError,
            "along spatial axis 0 it spans 7, the input has 5",
        ),
        ({"window": 2, "channel_axis": 4}, ValueError, "channel_axis must lie in"),
        ({"window": 2, "batch_axis": -5}, ValueError, "batch_axis must lie in"),
        ({"window": 2, "channel_axis": 1.0}, TypeError, "channel_axis must be an integer"),
        ({"window": 2, "channel_axis": 0}, ValueError, "channel_axis and batch_axis must differ"),
        ({"window": 2, "channel_axis": -2, "batch_axis": 2}, ValueError, "channel_axis and batch_axis must differ"),
    ],
    ids=str,
)
def test_arguments(pool, options, error, message):
    with pytest.raises(error, match=message):
        pool(IMAGES, **options)


def test_options_of_numpy(pool):
    """As `jax.lax` takes them."""
    pads = np.array([[1, 0], [0, 1]])
    expected = pool(IMAGES, (2, 3), strides=(1, 2), padding=((1, 0), (0, 1)), ceil_mode=True).shape
    for padding in (pads, list(pads)):
        options = {"strides": np.array([1, 2]), "padding": padding, "ceil_mode": np.True_}
        assert pool(IMAGES, np.array([2, 3]), **options).shape == expected
    with pytest.raises(TypeError, match=r"window\[0\] must be an integer, got 2\.0"):
        pool(IMAGES, np.array([2.0, 3.0]))
    with pytest.raises(TypeError, match=r"window\[0\] must be an integer, got \[2, 3\]"):
        pool(IMAGES, np.array([[2, 3], [2, 3]]))
    with pytest.raises(ValueError, match=r"padding must be a \(low, high\) pair for each of the 2 spatial axes"):
        pool(IMAGES, 2, padding=np.array([1, 1]))


def test_what_an_average_counts():
    options: Any = {"count_include_pad": 1}
    with pytest.raises(TypeError, match="count_include_pad must be a boolean, got 1"):
        bnderiv.avg_pool(IMAGES, 2, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"dilation": "2"}, TypeError, "dilation must be an integer, got '2'"),
        ({"dilation": (1, 4)}, ValueError, "along spatial axis 1 it spans 5, the input has 4"),
        ({"dilation": (2, 1), "padding": 3}, ValueError, r"which spans 3 along spatial axis 0, got \(3, 3\)"),
    ],
    ids=str,
)
def test_dilation(options, error, message):
    with pytest.raises(error, match=message):
        bnderiv.max_pool(IMAGES, 2, **options)


def test_padding_may_be_as_wide_as_the_dilated_window_less_one():
    assert bnderiv.max_pool(IMAGES, 2, strides=1, dilation=(3, 2), padding=((3, 3), (2, 2))).shape == (2, 8, 6, 3)
