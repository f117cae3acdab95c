"""The steps of the fully connected layer and of flatten."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv import steps
from tests.contract import near
from tests.linear.cases import CASES
from tests.stepwise import equals_its_layer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_layer(case):
    equals_its_layer(case, "z", ("dx",) if case.layer == "flatten" else ("dx", "d_kernel", "d_bias"))


def test_numbers_of_the_derivation():
    a, W = jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([[3.0, 4.0], [5.0, 6.0]])
    s = steps.dense(a, W, jnp.array([1.0, -1.0]), jnp.array([[1.0, 10.0], [2.0, 0.0]]))
    np.testing.assert_array_equal(s.z, [[14, 15], [-4, -7]])
    np.testing.assert_array_equal(s.d_kernel_each, [[[1, 10], [2, 20]], [[0, 0], [-2, 0]]])
    np.testing.assert_array_equal(s.d_kernel, [[1, 10], [0, 20]])
    np.testing.assert_array_equal(s.d_bias, [3, 10])
    np.testing.assert_array_equal(s.kernel_transposed, [[3, 5], [4, 6]])
    np.testing.assert_array_equal(s.dx, [[43, 65], [6, 10]])


def test_the_gradient_of_the_weights_is_the_sum_over_the_examples():
    rng = np.random.default_rng(0)
    x, W, dy = (jnp.asarray(rng.normal(size=shape)) for shape in ((2, 3, 4), (4, 5), (2, 3, 5)))
    s = steps.dense(x, W, None, dy)
    assert s.d_kernel_each.shape == (6, 4, 5)
    near(s.d_kernel_each.sum(0), s.d_kernel, 1e-14)
    near(s.d_kernel_each[4], jax.grad(lambda W: ((x[1, 1] @ W) * dy[1, 1]).sum())(W), 1e-14)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((2, 3), (4, 5), (5,), (2, 5)), r"kernel must have shape \(3, 5\)"),
        (((2, 3), (3, 5), (4,), (2, 5)), r"bias must have shape \(5,\)"),
        (((2, 3), (3, 5), (5,), (5, 2)), r"dy must have shape \(2, 5\)"),
        (((2, 3), (3,), (5,), (2, 5)), "kernel must have rank 2"),
    ],
)
def test_errors(shapes, words):
    with pytest.raises(ValueError, match=words):
        steps.dense(*(jnp.ones(shape) for shape in shapes))


def test_errors_of_flatten():
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 6\)"):
        steps.flatten(jnp.ones((2, 3, 2)), jnp.ones((2, 3, 2)))
