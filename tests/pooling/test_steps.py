"""The steps of the pools: shares, winners, δ dilated by the stride, and the slips that are recognized."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv import steps
from tests.compiling import fast_jit
from tests.pooling.cases import CASES, MAX_NOTHING, MAX_TIES
from tests.stepwise import equals_its_layer

pytestmark = pytest.mark.slow


@pytest.mark.few(0, 10)
@pytest.mark.parametrize("case", [*CASES, MAX_TIES, MAX_NOTHING], ids=str)
def test_equals_the_layer(case):
    equals_its_layer(case, "z", ("dx",))


def test_numbers_of_the_average():
    """A.4, where assigning would be wrong."""
    delta = jnp.array([[4.0, 8.0], [12.0, 16.0]]).reshape(1, 2, 2, 1)
    s = steps.avg_pool(jnp.arange(1.0, 10).reshape(1, 3, 3, 1), 2, delta, strides=1)
    np.testing.assert_array_equal(s.total[0, ..., 0], [[12, 16], [24, 28]])
    np.testing.assert_array_equal(s.z[0, ..., 0], [[3, 4], [6, 7]])
    np.testing.assert_array_equal(s.share[0, ..., 0], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(s.dx[0, ..., 0], [[1, 3, 2], [4, 10, 6], [3, 7, 4]])


def test_shares_dilated_by_the_stride():
    """A.3: five cells, windows of three, stride 2, padding 1; real cells 2, 3 and 2."""
    x, delta = jnp.ones((1, 1, 5, 1)), jnp.array([2.0, 30.0, 200.0]).reshape(1, 1, 3, 1)
    s = steps.avg_pool(x, (1, 3), delta, strides=(1, 2), padding=((0, 0), (1, 1)), count_include_pad=False)
    np.testing.assert_array_equal(s.count.ravel(), [2, 3, 2])
    np.testing.assert_array_equal(s.share_dilated.ravel(), [0, 1, 0, 10, 0, 100, 0])
    np.testing.assert_array_equal(s.dx.ravel(), [1, 11, 10, 110, 100])


def test_numbers_of_the_maximum():
    """B.5, with ties."""
    a = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 5.0], [7.0, 5.0, 5.0]]).reshape(1, 3, 3, 1)
    s = steps.max_pool(a, 2, jnp.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(1, 2, 2, 1), strides=1)
    np.testing.assert_array_equal(s.z[0, ..., 0], [[5, 5], [7, 5]])
    np.testing.assert_array_equal(s.winner[0, ..., 0], [[3, 2], [2, 0]])
    np.testing.assert_array_equal(s.dx[0, ..., 0], [[0, 0, 0], [0, 1011, 0], [100, 0, 0]])


def test_nan_wins_and_the_first_of_several():
    a = jnp.array([1.0, np.nan, 9.0, np.nan]).reshape(1, 1, 4, 1)
    s = steps.max_pool(a, (1, 4), jnp.ones((1, 1, 1, 1)))
    assert jnp.isnan(s.z).all()
    np.testing.assert_array_equal(s.winner.ravel(), [1])
    np.testing.assert_array_equal(s.dx.ravel(), [0, 1, 0, 0])


def _handed_back(shape, window, stride, padding, hand, dilation=1):
    """dx, window by window: `hand(dx, place, cell, window)` does what it wants with each cell that is no padding."""
    dx = np.zeros(shape)
    B, M, N, C = shape
    span = (window - 1) * dilation + 1
    for b, i, j, c in np.ndindex(B, *((size + 2 * padding - span) // stride + 1 for size in (M, N)), C):
        for x, y in np.ndindex(window, window):
            p, q = stride * i + dilation * x - padding, stride * j + dilation * y - padding
            if 0 <= p < M and 0 <= q < N:
                hand(dx, (b, p, q, c), x * window + y, (b, i, j, c))
    return dx


def _add(values):
    return lambda dx, place, cell, window: dx.__setitem__(place, dx[place] + values(cell, window))


def _assign(values, when=lambda cell, window: True):
    return lambda dx, place, cell, window: dx.__setitem__(place, values(cell, window)) if when(cell, window) else None


def slip(mine, right) -> Any:
    found = steps.first_difference(mine, right)
    assert found is not None
    assert found.step == next(iter(mine))
    return found.slip


@pytest.mark.parametrize(
    ("dtype", "window", "stride", "padding", "count_include_pad"),
    [("float64", 2, 1, 0, True), ("float64", 3, 2, 1, True), ("float64", 3, 2, 1, False), ("float32", 3, 1, 1, False)],
)
def test_slips_of_the_average(dtype, window, stride, padding, count_include_pad):
    rng = np.random.default_rng(0)
    n = (5 + 2 * padding - window) // stride + 1
    x, dy = (rng.normal(size=(2, k, k, 3)).astype(dtype) for k in (5, n))
    options = {"strides": stride, "padding": ((padding, padding),) * 2}
    right, other = (
        fast_jit(
            lambda x, dy, count: steps.avg_pool(x, window, dy, count_include_pad=count, **options), static_argnums=2
        )(x, dy, count)
        for count in (count_include_pad, not count_include_pad)
    )
    share = np.asarray(right.share)

    def handed(values, hand=_add):
        return {"dx": _handed_back(x.shape, window, stride, padding, hand(lambda cell, w: values[w]))}

    assert steps.first_difference(handed(share), right) is None
    assert "assigned where windows overlap" in slip(handed(share, _assign), right)
    assert "missing divisor" in slip(handed(dy), right)
    assert "missing divisor" in slip({"z": right.total}, right)
    one_side = {"z": right.total / window}
    assert f"one side of the window, {window}, must be" in slip(one_side, right)
    words = "no padding, must be all" if count_include_pad else f"all {window**2} cells of the window"
    for step in ("count", "z", "share", "dx") if padding else ():
        assert words in slip({step: getattr(other, step)}, right)


@pytest.mark.parametrize(
    ("dtype", "window", "stride", "dilation"),
    [("float64", 2, 1, 1), ("float32", 3, 2, 1), ("float64", 2, 1, 2), ("float64", 2, 2, 1)],
)
def test_slips_of_the_maximum(dtype, window, stride, dilation):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, 6, 6, 2)).astype(dtype)  # ties in almost every window
    n = (6 - (window - 1) * dilation - 1) // stride + 1
    dy = rng.normal(size=(2, n, n, 2)).astype(dtype)
    right = fast_jit(lambda x, dy: steps.max_pool(x, window, dy, strides=stride, dilation=dilation))(x, dy)
    winner, z = np.asarray(right.winner), np.asarray(right.z)

    def tied(w):
        b, i, j, c = w
        rows, columns = (np.arange(window) * dilation + stride * k for k in (i, j))
        return np.flatnonzero(x[b][np.ix_(rows, columns)][..., c].ravel() == z[w])

    def handed(hand):
        return {"dx": _handed_back(x.shape, window, stride, 0, hand, dilation)}

    def won(cell, w):
        return winner[w] == cell

    assert steps.first_difference(handed(_add(lambda cell, w: won(cell, w) * dy[w])), right) is None
    if stride < window:
        assert "assigned where windows overlap" in slip(handed(_assign(lambda cell, w: dy[w], won)), right)
    for words, values in (
        ("each of the cells that tie", lambda cell, w: (cell in tied(w)) * dy[w]),
        ("shared by the cells that tie", lambda cell, w: (cell in tied(w)) * dy[w] / len(tied(w))),
        ("last of the cells that tie", lambda cell, w: (cell == tied(w)[-1]) * dy[w]),
        ("handed to every cell", lambda cell, w: dy[w]),
        ("as in average pooling", lambda cell, w: dy[w] / window**2),
    ):
        assert words in slip(handed(_add(values)), right)


def test_slips_where_nothing_comes_back():
    """All δ of a row of windows are 0: where the windows lie is known all the same."""
    dy = np.random.default_rng(0).normal(size=(1, 3, 3, 1))
    dy[0, 0] = 0
    right = steps.avg_pool(jnp.ones((1, 4, 4, 1)), 2, jnp.asarray(dy), strides=1)
    assert slip({"dx": np.random.default_rng(1).normal(size=(1, 4, 4, 1))}, right) is None
    wrong = _handed_back((1, 4, 4, 1), 2, 1, 0, _assign(lambda cell, w: dy[w] / 4))
    assert "assigned where windows overlap" in slip({"dx": wrong}, right)


@pytest.mark.parametrize("pool", [steps.avg_pool, steps.max_pool])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding": 2}, "padding on a side must be smaller than the window"),
        ({"window": 5}, "the window must fit"),
        ({"dy": np.ones((1, 4, 4, 1))}, r"dy must have shape \(1, 2, 2, 1\)"),
        ({"x": np.ones((4, 4))}, "x must have rank 3 or more"),
        ({"strides": 0}, "strides must be at least 1"),
    ],
)
def test_errors(pool, options, words):
    arguments = {"x": jnp.ones((1, 4, 4, 1)), "window": 2, "dy": jnp.ones((1, 2, 2, 1))} | options
    with pytest.raises(ValueError, match=words):
        pool(**arguments)
