"""The steps of the pools: shares, winners, and δ spread by the stride."""

import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv import steps
from tests.pooling.cases import CASES, MAX_NOTHING, MAX_TIES
from tests.stepwise import equals_its_layer

pytestmark = pytest.mark.slow


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


def test_shares_spread_by_the_stride():
    """A.3: five cells, windows of three, stride 2, padding 1; real cells 2, 3 and 2."""
    x, delta = jnp.ones((1, 1, 5, 1)), jnp.array([2.0, 30.0, 200.0]).reshape(1, 1, 3, 1)
    s = steps.avg_pool(x, (1, 3), delta, strides=(1, 2), padding=((0, 0), (1, 1)), count_include_pad=False)
    np.testing.assert_array_equal(s.count.ravel(), [2, 3, 2])
    np.testing.assert_array_equal(s.share_spread.ravel(), [0, 1, 0, 10, 0, 100, 0])
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


@pytest.mark.parametrize("pool", [steps.avg_pool, steps.max_pool])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding": 2}, "padding must be smaller than the window"),
        ({"window": 5}, "the window must fit"),
        ({"dy": jnp.ones((1, 4, 4, 1))}, r"dy must have shape \(1, 2, 2, 1\)"),
        ({"x": jnp.ones((4, 4))}, "x must have rank 4"),
        ({"strides": 0}, "strides must be at least 1"),
    ],
)
def test_errors(pool, options, words):
    arguments = {"x": jnp.ones((1, 4, 4, 1)), "window": 2, "dy": jnp.ones((1, 2, 2, 1))} | options
    with pytest.raises(ValueError, match=words):
        pool(**arguments)
