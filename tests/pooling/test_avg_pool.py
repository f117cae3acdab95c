"""Average pooling: hand-worked numbers, loops as the oracle, half precision, what is saved and compiled."""

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bnderiv
from tests import contract
from tests.devices import traced_for
from tests.forms import platform  # noqa: F401
from tests.pooling import loops


def equals_the_loops(problem, count_include_pad, divisor_override):
    rng = np.random.default_rng(problem.seed)
    x = rng.standard_normal(problem.shape)
    dy = rng.standard_normal(loops.outputs_like(problem, x).shape)
    counts = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    pool = functools.partial(bnderiv.avg_pool, window=problem.window, **counts, **problem.options())
    y, (dx,) = contract.compiled(pool)(dy, x)
    expected = loops.average(problem, x, dy, **counts)
    chex.assert_trees_all_close((y, dx), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.few(1, 2)
@settings(max_examples=15)
@given(loops.problems(), st.booleans(), st.sampled_from([None, None, 3]))
def test_equals_the_loops(problem, count_include_pad, divisor_override):
    equals_the_loops(problem, count_include_pad, divisor_override)


@pytest.mark.few(0, 1)
@pytest.mark.slow
@given(loops.problems(), st.booleans(), st.sampled_from([None, None, 3]))
def test_equals_the_loops_at_more(problem, count_include_pad, divisor_override):
    equals_the_loops(problem, count_include_pad, divisor_override)


def image(rows):
    return jnp.array(rows, jnp.float64)[None, :, :, None]


def test_overlapping_windows_add():
    # Four 2×2 windows over 3×3; the cell in the middle lies in all of them.
    x = image([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    y, pull_back = jax.vjp(lambda x: bnderiv.avg_pool(x, 2, strides=1), x)
    np.testing.assert_array_equal(y, image([[3, 4], [6, 7]]))
    (dx,) = pull_back(image([[4, 8], [12, 16]]))
    np.testing.assert_array_equal(dx, image([[1, 3, 2], [4, 10, 6], [3, 7, 4]]))


VALID = ((0, 0), (0, 0))
ALONG_ONE_AXIS = [  # window, strides, padding
    ((1, 3), (1, 1), VALID),
    ((3, 1), (1, 1), ((1, 0), (0, 0))),
    ((2, 1), (1, 1), ((0, 1), (0, 0))),
    ((1, 4), (1, 1), ((0, 0), (1, 2))),
    ((1, 3), (1, 1), ((0, 0), (2, 1))),
    ((1, 3), (2, 1), VALID),  # not along one axis alone
    ((3, 1), (2, 1), VALID),
    ((2, 3), (1, 1), ((1, 0), (0, 0))),
]


@pytest.mark.parametrize("channel_axis", [-1, 1])
@pytest.mark.parametrize("devices", [1, 8])
def test_overlapping_windows_along_one_axis(devices, channel_axis):
    """A CPU takes the axes within that one along with it, if they are not sharded."""
    with traced_for(devices):
        for window, strides, padding in ALONG_ONE_AXIS:
            equals_matrices(window, strides, padding, channel_axis)


def equals_matrices(window, strides, padding, channel_axis):
    """Of ones, one for each axis."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 6, 3))
    covers = [
        np.array([[0 <= p + b - i * s < w for i in range((n + b + a - w) // s + 1)] for p in range(n)])
        for n, w, s, (b, a) in zip(x.shape[1:3], window, strides, padding, strict=True)
    ]
    average = np.einsum("npqc,pi,qj->nijc", x, *covers) / math.prod(window)
    delta = rng.standard_normal(average.shape)
    handed = np.einsum("nijc,pi,qj->npqc", delta, *covers) / math.prod(window)

    to, back = functools.partial(np.moveaxis, source=-1), functools.partial(np.moveaxis, destination=-1)
    options = {"window": window, "strides": strides, "padding": padding, "channel_axis": channel_axis}
    pool = contract.compiled(functools.partial(bnderiv.avg_pool, **options))
    y, (dx,) = pool(to(delta, destination=channel_axis), to(x, destination=channel_axis))
    np.testing.assert_allclose(back(y, source=channel_axis), average, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(back(dx, source=channel_axis), handed, rtol=1e-12, atol=1e-13)


def test_a_second_derivative_divides_twice():
    """That of Σ y² is 2 AᵀA, where A takes the means."""
    means = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]) / 3
    direction = jnp.arange(5.0).reshape(1, 5, 1)
    gradient = jax.grad(lambda x: (bnderiv.avg_pool(x, 3, strides=1) ** 2).sum())
    second = jax.jit(jax.grad(lambda x: jnp.vdot(gradient(x), direction)))(direction)
    np.testing.assert_allclose(second.ravel(), 2 * means.T @ means @ np.arange(5.0), rtol=1e-14)


def test_windows_that_tile_share_alike():
    x = image([[1, 2, 3, 4], [5, 6, 7, 8]])
    y, pull_back = jax.vjp(lambda x: bnderiv.avg_pool(x, 2), x)
    np.testing.assert_array_equal(y, image([[3.5, 5.5]]))
    np.testing.assert_array_equal(pull_back(image([[4, 8]]))[0], image([[1, 1, 2, 2], [1, 1, 2, 2]]))


def test_padding_counts_or_does_not():
    # One cell of padding around 2×2, windows 2×2, stride 2: each window has one real cell.
    x, dy = image([[4, 8], [12, 16]]), image([[4, 8], [12, 16]])
    pool = functools.partial(bnderiv.avg_pool, window=2, padding=1)
    for options, scale in (({}, 1 / 4), ({"count_include_pad": True}, 1 / 4), ({"count_include_pad": False}, 1)):
        y, pull_back = jax.vjp(functools.partial(pool, **options), x)
        np.testing.assert_array_equal(y, x * scale)
        np.testing.assert_array_equal(pull_back(dy)[0], dy * scale)


def test_same_puts_the_odd_cell_at_the_bottom_and_right():
    x = image([[4, 8, 12]])
    same = functools.partial(bnderiv.avg_pool, window=(1, 2), strides=1, padding="SAME")
    np.testing.assert_array_equal(same(x), image([[6, 10, 6]]))
    np.testing.assert_array_equal(same(x, count_include_pad=False), image([[6, 10, 12]]))


def test_the_equal_spellings():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 6, 3)))
    expected = bnderiv.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    np.testing.assert_array_equal(bnderiv.avg_pool(x, 3, strides=2, padding=1), expected)
    np.testing.assert_array_equal(bnderiv.avg_pool(x, [3, 3], strides=[2, 2], padding=[[1, 1], [1, 1]]), expected)
    number: Any = np.int64(3)
    np.testing.assert_array_equal(bnderiv.avg_pool(x, number, strides=2, padding=1), expected)
    lower_case: Any = "valid"
    np.testing.assert_array_equal(bnderiv.avg_pool(x, 3), bnderiv.avg_pool(x, 3, strides=3, padding=lower_case))


# Size, window, stride and padding, and what PyTorch 2.13 gives for 1, 2, 3, …: the averages with and without padding
# in the count, and the maxima.
CEIL_MODE = [
    ((6, 3, 2, 0), [2, 4, 5.5], [2, 4, 5.5], [3, 5, 6]),
    ((6, 3, 2, 1), [1, 3, 5, 3], [1.5, 3, 5, 6], [2, 4, 6, 6]),
    ((5, 2, 3, 1), [0.5, 3.5], [1, 3.5], [1, 4]),  # a third window would start in the padding after
    ((2, 3, 2, 0), [1.5], [1.5], [2]),  # the window is larger than the input
    ((7, 3, 3, 1), [1, 4, 13 / 3], [1.5, 4, 6.5], [2, 5, 7]),
    ((8, 4, 3, 2), [0.75, 3.5, 6.5, 8 / 3], [1.5, 3.5, 6.5, 8], [2, 5, 8, 8]),
]


@pytest.mark.few(1, 4)
@pytest.mark.parametrize(("geometry", "padded", "real", "largest"), CEIL_MODE)
def test_ceil_mode_is_pytorchs(geometry, padded, real, largest):
    size, window, strides, padding = geometry
    x = jnp.arange(1.0, size + 1).reshape(1, -1, 1)
    options: Any = {"window": window, "strides": strides, "padding": padding, "ceil_mode": True}
    for layers in (bnderiv, bnderiv.reference):
        np.testing.assert_allclose(layers.avg_pool(x, **options).ravel(), padded, rtol=1e-14)
        np.testing.assert_allclose(layers.avg_pool(x, **options, count_include_pad=False).ravel(), real, rtol=1e-14)
        np.testing.assert_array_equal(layers.max_pool(x, **options).ravel(), largest)


def test_divisor_override_is_pytorchs():
    x = jnp.arange(1.0, 21).reshape(1, 4, 5, 1)
    y = bnderiv.avg_pool(x, (3, 2), strides=2, ceil_mode=True, divisor_override=2)
    np.testing.assert_array_equal(y.ravel(), [19.5, 25.5, 15, 28, 32, 17.5])


@pytest.mark.few(2)
@pytest.mark.parametrize("window", [28, (28, 27), (17, 9)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_large_windows_of_half_precision(window, dtype):
    ones = jnp.ones((1, 28, 28, 1), dtype)
    np.testing.assert_array_equal(bnderiv.avg_pool(ones, window, strides=1).astype(jnp.float32), 1)
    # The middle of 28×28 lies in many windows; the sum of their shares is rounded once.
    y, pull_back = jax.vjp(lambda x: bnderiv.avg_pool(x, 14, strides=1), ones)
    dx = pull_back(jnp.ones_like(y))[0].astype(jnp.float32)
    assert abs(float(dx[0, 14, 14, 0]) - 1) < 1e-6


def test_a_float16_average_of_large_values_is_finite():
    x = jnp.full((1, 28, 28, 1), 3e4, jnp.float16)
    y, pull_back = jax.vjp(lambda x: bnderiv.avg_pool(x, 28), x)
    assert float(y[0, 0, 0, 0]) == 3e4
    np.testing.assert_allclose(np.asarray(pull_back(y)[0], np.float64), 3e4 / 784, rtol=1e-3)


@pytest.mark.parametrize("window", [2, 28, 31, (64, 61)])
def test_long_windows_lose_no_accuracy(platform, window):  # noqa: F811
    if platform != "cpu":
        pytest.skip("the order of a sum is XLA's there")
    x = np.random.default_rng(0).uniform(0.5, 1.5, (1, 64, 61, 1))
    pool = functools.partial(bnderiv.avg_pool, window=window, strides=1)
    y, wide = pool(jnp.asarray(x, jnp.float32)), pool(jnp.asarray(x))
    np.testing.assert_allclose(y, wide, rtol=3e-7)


def test_nan_and_infinity_stay_in_their_windows():
    x = jnp.ones((1, 12, 12, 1)).at[0, 0, 0, 0].set(jnp.nan).at[0, 11, 11, 0].set(jnp.inf)
    y = bnderiv.avg_pool(x, 11, strides=1)[0, :, :, 0]  # 11 cells are summed by halves
    np.testing.assert_array_equal(y, [[np.nan, 1], [1, np.inf]])
    y, pull_back = jax.vjp(lambda x: bnderiv.avg_pool(x, 9, strides=1), x)
    dx = pull_back(jnp.zeros_like(y).at[0, 0, 0, 0].set(jnp.nan))[0][0, :, :, 0]
    np.testing.assert_array_equal(np.isnan(dx), np.add.outer(np.arange(12) > 8, np.arange(12) > 8) == 0)


GEOMETRIES = [
    {"window": 2},
    {"window": 3, "strides": 2, "padding": 1},
    {"window": (11, 3), "strides": 1, "padding": "SAME", "count_include_pad": False},
]


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_nothing_is_saved(options):
    x = jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32)
    pool = functools.partial(bnderiv.avg_pool, **options)
    assert jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(pool, x)[1], x)) == []


def test_dtypes():
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        x = jnp.ones((1, 4, 4, 1), dtype)
        y, pull_back = jax.vjp(lambda x: bnderiv.avg_pool(x, 2), x)
        assert y.dtype == pull_back(y)[0].dtype == dtype
    with jax.enable_x64(False):
        x = jnp.ones((1, 4, 4, 1))
        y, pull_back = jax.vjp(lambda x: bnderiv.avg_pool(x, 3, strides=1, padding=1, count_include_pad=False), x)
        np.testing.assert_allclose(y, np.ones((1, 4, 4, 1)), rtol=1e-6)
        assert pull_back(y)[0].dtype == jnp.float32


@pytest.mark.parametrize("flag", [1, 0.0, None, "no"])
def test_count_include_pad_is_a_boolean(flag):
    with pytest.raises(TypeError, match="count_include_pad must be a boolean"):
        bnderiv.avg_pool(jnp.ones((1, 4, 4, 1)), 2, count_include_pad=flag)


@pytest.mark.parametrize(("divisor", "error"), [(0, ValueError), (-2, ValueError), (2.0, TypeError), (True, TypeError)])
def test_divisor_override_is_a_positive_integer(divisor, error):
    with pytest.raises(error, match="divisor_override must be a"):
        bnderiv.avg_pool(jnp.ones((1, 4, 4, 1)), 2, divisor_override=divisor)


def test_there_is_no_dilation():
    with pytest.raises(TypeError, match="dilation"):
        bnderiv.avg_pool(jnp.ones((1, 4, 4, 1)), 2, dilation=2)  # pyright: ignore[reportCallIssue]
