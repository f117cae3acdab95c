"""Rectified linear unit: its kink, to the second derivative, and what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv

pytestmark = pytest.mark.fast

X = np.array([-np.inf, -2.0, -1e-40, -0.0, 0.0, 1e-300, 3.0, np.inf, np.nan])
SLOPE = np.array([0.0, 0, 0, 0, 0, 1, 1, 1, 0])


def test_numbers_worked_by_hand():
    y, pull_back = jax.vjp(bnderiv.relu, jnp.asarray(X))
    np.testing.assert_array_equal(y, [0, 0, 0, 0, 0, 1e-300, 3, np.inf, np.nan])
    cotangent = np.arange(1.0, 10.0)
    np.testing.assert_array_equal(pull_back(jnp.asarray(cotangent))[0], SLOPE * cotangent)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_equals_jax_at_the_kink_and_at_nan(dtype):
    x = jnp.asarray(np.array([-1, -0.0, 0, 2, np.nan, np.inf, -np.inf]), dtype)
    y, pull_back = jax.vjp(bnderiv.relu, x)
    expected, expected_pull_back = jax.vjp(jax.nn.relu, x)
    np.testing.assert_array_equal(y.astype(float), expected.astype(float))
    np.testing.assert_array_equal(pull_back(x)[0].astype(float), expected_pull_back(x)[0].astype(float))


@pytest.mark.parametrize("x", X)
def test_second_derivative_is_zero_everywhere(x):
    assert jax.grad(jax.grad(bnderiv.relu))(x) == 0
    assert jax.jvp(jax.grad(bnderiv.relu), (x,), (1.0,))[1] == 0


@pytest.mark.parametrize(("x", "slope"), [*zip(X, SLOPE, strict=True)])
def test_the_value_beside_a_gradient_has_the_same_slope(x, slope):
    """Differentiated once more, the forward body speaks for itself: a bare maximum would say 1/2 at 0."""
    assert jax.grad(lambda x: jax.value_and_grad(bnderiv.relu)(x)[0])(x) == slope


def test_a_cotangent_that_is_not_finite_does_not_pass_a_closed_gate():
    _, pull_back = jax.vjp(bnderiv.relu, jnp.array([-1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(pull_back(jnp.array([np.nan, np.inf, np.inf]))[0], [0, 0, np.inf])
