"""Max pooling: hand-worked numbers, loops as the oracle, ties, NaN, −inf, what is saved and compiled."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import bnderiv
from tests import contract
from tests.compiling import fast_jit
from tests.forms import platform  # noqa: F401
from tests.pooling import loops

FEW = np.array([-np.inf, -1.0, -0.0, 0.0, 2.0, np.inf, np.nan])
PALETTES = {"distinct": None, "ties": FEW[1:5], "extremes": FEW, "minus-infinity": FEW[:2], "nan": FEW[-2:]}


def decided(form, problem, palette):
    # XLA:CPU goes through a window in another order where an axis but the first is padded: another of equals is first.
    return form != "tpu" or palette == "distinct" or problem.all_but_the_first_are_unpadded


def equals_the_loops(problem, palette):
    rng = np.random.default_rng(problem.seed)
    values = PALETTES[palette]
    x = rng.standard_normal(problem.shape) if values is None else rng.choice(values, problem.shape)
    dy = rng.standard_normal(loops.outputs_like(problem, x).shape)
    pool = functools.partial(bnderiv.max_pool, window=problem.window, dilation=problem.dilation, **problem.options())
    y, (dx,) = contract.compiled(pool)(dy, x)
    expected_y, expected_dx = loops.maximum(problem, x, dy)
    np.testing.assert_array_equal(y, expected_y)
    chex.assert_trees_all_close(dx, expected_dx, rtol=1e-12, atol=1e-13)


@pytest.mark.few(2, 1)
@settings(max_examples=20)
@given(loops.problems(dilated=True), st.sampled_from(sorted(PALETTES)))
def test_equals_the_loops(platform, problem, palette):  # noqa: F811
    assume(decided(platform, problem, palette))
    equals_the_loops(problem, palette)


@pytest.mark.few(0, 1)
@pytest.mark.slow
@settings(max_examples=80)
@given(loops.problems(dilated=True), st.sampled_from(sorted(PALETTES)))
def test_equals_the_loops_at_more(platform, problem, palette):  # noqa: F811
    assume(decided(platform, problem, palette))
    equals_the_loops(problem, palette)


def image(rows, dtype=jnp.float64):
    return jnp.array(rows, dtype)[None, :, :, None]


def test_overlapping_windows_add():
    # Four 2×2 windows over 3×3; the 9 in the middle wins them all.
    x = image([[1, 2, 3], [4, 9, 6], [7, 8, 5]])
    y, pull_back = jax.vjp(lambda x: bnderiv.max_pool(x, 2, strides=1), x)
    np.testing.assert_array_equal(y, image([[9, 9], [9, 9]]))
    np.testing.assert_array_equal(
        pull_back(image([[1, 10], [100, 1000]]))[0], image([[0, 0, 0], [0, 1111, 0], [0, 0, 0]])
    )


def test_ties_where_windows_overlap():
    x = image([[1, 2, 3], [4, 5, 5], [7, 5, 5]])
    y, pull_back = jax.vjp(lambda x: bnderiv.max_pool(x, 2, strides=1), x)
    np.testing.assert_array_equal(y, image([[5, 5], [7, 5]]))
    dx = pull_back(image([[1, 10], [100, 1000]]))[0]
    np.testing.assert_array_equal(dx, image([[0, 0, 0], [0, 1011, 0], [100, 0, 0]]))


def test_windows_that_tile():
    x = image([[1, 2, 7, 4], [5, 3, 6, 0]])
    y, pull_back = jax.vjp(lambda x: bnderiv.max_pool(x, 2), x)
    np.testing.assert_array_equal(y, image([[5, 7]]))
    np.testing.assert_array_equal(pull_back(image([[3, 4]]))[0], image([[0, 0, 4, 0], [3, 0, 0, 0]]))


def test_dilation():
    # Window 2×2, dilation 2, on 3×3: the four corners, of which the last wins.
    x = image([[1, 9, 2], [9, 9, 9], [3, 9, 4]])
    y, pull_back = jax.vjp(lambda x: bnderiv.max_pool(x, 2, dilation=2), x)
    np.testing.assert_array_equal(y, image([[4]]))
    np.testing.assert_array_equal(pull_back(image([[5]]))[0], image([[0, 0, 0], [0, 0, 0], [0, 0, 5]]))


@pytest.mark.few(7, 8)
@pytest.mark.parametrize("strides", [(2, 3), (3, 3)], ids=["tiles", "general"])
@pytest.mark.parametrize(
    ("rows", "winner"),
    [
        ([[1, 1, 1], [1, 1, 1]], (0, 0)),
        ([[0, 1, 1], [1, 1, 1]], (0, 1)),
        ([[0, 0, 0], [0, 2, 2]], (1, 1)),
        ([[0, 0, 2], [2, 2, 2]], (0, 2)),  # row-major, not column-major
        ([[-0.0, 0.0, 0.0], [0, 0, 0]], (0, 0)),  # −0 equals 0
        ([[np.inf, 0, np.inf], [np.inf, 1, 1]], (0, 0)),
        ([[-np.inf, -np.inf, -np.inf], [-np.inf, -np.inf, -np.inf]], (0, 0)),
        ([[1, 1, np.inf], [np.nan, 1, 1]], (1, 0)),  # a NaN is above infinity
        ([[1, 1, 1], [1, np.nan, np.nan]], (1, 1)),
        ([[1, np.nan, np.inf], [np.nan, 1, 1]], (0, 1)),
    ],
)
def test_the_first_of_equals_takes_the_gradient(rows, winner, strides):
    for dtype in (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16):
        x = image(rows, dtype)
        y, pull_back = jax.vjp(lambda x: bnderiv.max_pool(x, (2, 3), strides=strides), x)
        np.testing.assert_array_equal(np.asarray(y[0, 0, 0, 0], np.float64), np.asarray(rows)[winner])
        expected = np.zeros((2, 3))
        expected[winner] = 3
        np.testing.assert_array_equal(np.asarray(pull_back(jnp.full_like(y, 3))[0][0, :, :, 0], np.float64), expected)


def test_padding_never_wins():
    # Windows 2×2 with padding 1 on 2×2 of −inf: each has one real cell, which is not its first but for the last.
    x = jnp.full((1, 2, 2, 1), -jnp.inf)
    dy = image([[1, 2], [3, 4]])
    y, pull_back = jax.vjp(lambda x: bnderiv.max_pool(x, 2, padding=1), x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(pull_back(dy)[0], dy)


def test_padding_never_wins_where_windows_overlap():
    x = jnp.full((1, 1, 3, 1), -jnp.inf)
    y, pull_back = jax.vjp(lambda x: bnderiv.max_pool(x, (2, 3), strides=1, padding=((1, 1), (2, 2))), x)
    assert y.shape == (1, 2, 5, 1)
    # Windows over columns −2..0, −1..1, 0..2, 1..3, 2..4; the first real ones are 0, 0, 0, 1, 2; two rows of windows.
    np.testing.assert_array_equal(pull_back(image([[1, 10, 100, 1000, 10000]] * 2))[0], image([[222, 2000, 20000]]))


def test_a_dilated_window_that_has_padding_alone():
    # Windows at columns (−2, 1), (−1, 2) and (0, 3) of two: in the second nothing is there to win.
    x = image([[5, 7]])
    y, pull_back = jax.vjp(lambda x: bnderiv.max_pool(x, (1, 2), dilation=3, strides=1, padding=((0, 0), (2, 2))), x)
    np.testing.assert_array_equal(y, image([[7, -np.inf, 5]]))
    np.testing.assert_array_equal(pull_back(image([[1, 2, 3]]))[0], image([[3, 1]]))


def test_a_nan_cotangent_goes_to_the_winner_alone():
    x = image([[1, 2, 3], [4, 9, 6], [7, 8, 5]])
    for strides in (1, 2):
        y, pull_back = jax.vjp(lambda x, s=strides: bnderiv.max_pool(x, 2, strides=s), x)
        dx = pull_back(jnp.full_like(y, jnp.nan))[0]
        np.testing.assert_array_equal(np.isnan(dx), x == 9)


@pytest.mark.few(1, 5)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    # The maximum is exact; the shares of the 729 windows that one cell wins are added in float32 (a float16 sum of
    # ones would do, a bfloat16 one stops at 256).
    x = jnp.zeros((1, 53, 53, 1), dtype).at[0, 26, 26, 0].set(1.5)
    y, pull_back = jax.vjp(lambda x: bnderiv.max_pool(x, 27, strides=1), x)
    np.testing.assert_array_equal(y.astype(jnp.float32), 1.5)
    dx = pull_back(jnp.full_like(y, 1 / 729))[0]
    assert dx.dtype == dtype
    share = float(jnp.asarray(1 / 729, dtype))
    assert float(dx[0, 26, 26, 0]) == pytest.approx(729 * share, rel=1e-2)
    assert int((dx != 0).sum()) == 1


def test_a_second_derivative_goes_through_the_maximum():
    """The gradient of Σ y³ is 3 y² at each winner, and of that 6 y."""
    x = jnp.array([1.0, 3.0, 2.0, 0.5, 4.0]).reshape(1, 5, 1)
    gradient = jax.grad(lambda x: (bnderiv.max_pool(x, 2, strides=1) ** 3).sum())
    second = fast_jit(jax.grad(lambda x: gradient(x).sum()))(x)
    np.testing.assert_array_equal(second.ravel(), [0, 2 * 18, 12, 0, 24])


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"window": 2}, {"window": 3, "strides": 1, "padding": 1}], ids=str)
def test_second_order_has_the_same_ties(options):
    """d²/dx² of Σ y³: 6 y where a cell won, once for each window it won, and nothing between cells."""
    x = jnp.ones((1, 4, 4, 1)).at[0, 1, 2, 0].set(2.0)
    first = jax.grad(lambda x: (bnderiv.max_pool(x, **options)).sum())(x)  # how many windows each cell won

    def cube(x):
        return (bnderiv.max_pool(x, **options) ** 3).sum()

    expected = np.diag((6 * x * first).ravel())
    for hessian in (jax.hessian(cube), jax.jacrev(jax.grad(cube))):
        np.testing.assert_array_equal(fast_jit(hessian)(x).reshape(16, 16), expected)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("window", "dtype"), [(2, "uint8"), (16, "uint8"), ((16, 17), "uint16"), ((1, 257), "uint16"), ((1, 256), "uint8")]
)
def test_saved_are_the_winners_place_and_x_itself(platform, window, dtype):  # noqa: F811
    """x as it is, no copy, for a TPU; not with a dilation, with which that does not select."""
    x = jnp.zeros((2, 32, 300, 3), jnp.float32)
    pool = functools.partial(bnderiv.max_pool, window=window)
    y, pull_back = jax.vjp(pool, x)
    saved = jax.tree.leaves(pull_back)
    assert [(a.shape, a.dtype) for a in saved if a is not x] == [(y.shape, dtype)]
    assert len(saved) == 2
    pool = functools.partial(bnderiv.max_pool, window=(2, 257), dilation=(2, 1))  # no program for a TPU selects so
    (winner,) = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(pool, x)[1], x))
    assert winner.dtype == "uint16"


@pytest.mark.few(3, 9)
@pytest.mark.parametrize(
    ("window", "strides", "more"),
    [
        ((1, 256), 1, 1),
        ((1, 256), 1, 12),  # one axis after the other, and the number of a row's cells is no byte
        ((16, 17), 1, 12),
        *(pytest.param(w, s, 12, marks=pytest.mark.slow) for w in [(16, 16), (2, 150)] for s in (None, 1)),
    ],
)
def test_the_winners_place_does_not_overflow(window, strides, more):
    """The last cell wins. Of the columns after it some windows have no cell, which must have no number."""
    m, n = window
    x = jnp.zeros((1, m, n + more, 1)).at[0, m - 1, n - 1].set(1.0)
    dx = jax.grad(lambda x: bnderiv.max_pool(x, window, strides=strides).sum())(x)
    np.testing.assert_array_equal(dx, x if strides is None else (more + 1) * x)


@pytest.mark.few(1)
@pytest.mark.parametrize("options", [{"window": 2}, {"window": 3, "strides": 2, "padding": 1}, {"window": 9}], ids=str)
def test_without_x64(options):
    with jax.enable_x64(False):
        x = jnp.arange(81, dtype=jnp.float32).reshape(1, 9, 9, 1)
        y, pull_back = jax.vjp(functools.partial(bnderiv.max_pool, **options), x)
        (dx,) = pull_back(jnp.ones_like(y))
        assert y.dtype == dx.dtype == jnp.float32
        np.testing.assert_array_equal(x[dx > 0], y.ravel())  # the values rise, so each cell wins but one window


@pytest.mark.parametrize(("window", "stride"), [(90, 10), (70, 1)])
def test_a_long_window_or_many_over_a_cell(window, stride):
    """The one is gone over in a loop forward, the other backward."""
    x = np.random.default_rng(0).permutation(140).astype(np.float32)
    x[11] = 140  # the second cell of a window
    y, pull_back = jax.vjp(functools.partial(bnderiv.max_pool, window=window, strides=stride), x.reshape(1, -1, 1))
    starts = range(0, 140 - window + 1, stride)
    winners = [start + x[start : start + window].argmax() for start in starts]
    np.testing.assert_array_equal(y.ravel(), x[winners])
    delta = np.arange(1, len(starts) + 1, dtype=np.float32)
    dx = np.bincount(winners, delta, 140)
    np.testing.assert_array_equal(pull_back(jnp.asarray(delta.reshape(1, -1, 1)))[0].ravel(), dx)


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"window": (1, 70)}, {"window": (70, 2), "strides": (3, 1), "dilation": (1, 2)}], ids=str
)
def test_windows_of_many_rows_or_columns(platform, options):  # noqa: F811
    """These are gone over in a loop."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 9, (2, 75, 72, 2)), jnp.float32)  # with ties
    y, pull_back = jax.vjp(functools.partial(bnderiv.max_pool, **options), x)
    expected, pull_back_expected = jax.vjp(functools.partial(bnderiv.reference.max_pool, **options), x)
    np.testing.assert_array_equal(y, expected)
    delta = jnp.asarray(rng.integers(1, 9, y.shape), jnp.float32)
    np.testing.assert_array_equal(pull_back(delta)[0], pull_back_expected(delta)[0])
    if platform != "tpu":  # XLA:CPU's own maximum may lose a NaN
        assert np.isnan(bnderiv.max_pool(x.at[0, 3, 5, 0].set(jnp.nan), **options)).any()


@pytest.mark.few(2, 4)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((6, 7, 8), {"window": 3, "strides": 1}),
        ((1, 280), {"window": (1, 256), "strides": 1}),  # the number of cells of a row is no byte
        ((4, 18, 19), {"window": (1, 16, 16), "strides": (2, 1, 1)}),
        ((4, 4, 4, 4), {"window": (2, 2, 3, 2), "strides": 1, "padding": ((1, 0), (0, 1), (2, 2), (0, 0))}),
    ],
    ids=str,
)
def test_one_axis_after_the_other(platform, shape, options):  # noqa: F811
    """A plane that wins some windows and not others: what is found in the others must not reach a row."""
    rng = np.random.default_rng(0)
    size = 2 * math.prod(shape)
    values = rng.permutation(size) if platform == "tpu" else rng.integers(0, 99, size)  # with ties
    x = jnp.asarray(values.reshape(2, *shape, 1), jnp.float64)
    outputs = jax.eval_shape(functools.partial(bnderiv.max_pool, **options), x)
    delta = jnp.asarray(rng.integers(1, 9, outputs.shape), jnp.float64)
    ours, reference = (
        contract.compiled(functools.partial(layers.max_pool, **options))(delta, x)
        for layers in (bnderiv, bnderiv.reference)
    )
    chex.assert_trees_all_equal(ours, reference)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_padding_does_not_win_where_there_is_no_infinity(dtype):
    # In more blocks of windows than a CPU takes apart: so it pads.
    y = bnderiv.max_pool(-jnp.ones((1, 4, 4, 1), dtype), 5, strides=1, padding=2)
    np.testing.assert_array_equal(y.astype(jnp.float32), -np.ones((1, 4, 4, 1)))


def test_with_ceil_mode_a_window_may_be_larger_than_the_input():
    """By less than a stride; what is not there counts for nothing, as in PyTorch."""
    x = jnp.array([1.0, 5, 2, 4]).reshape(1, 2, 2, 1)
    for pool, expected in ((bnderiv.max_pool, 5), (bnderiv.avg_pool, 3)):
        assert pool(x, 3, strides=2, ceil_mode=True).tolist() == [[[[expected]]]]
