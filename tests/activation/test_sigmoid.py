"""Logistic sigmoid: hand-worked numbers, extremes, and the derivative that is not 1 − s²."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

import bnderiv


def test_numbers_worked_by_hand():
    # s(log 3) = 3/4, so s' = 3/16 and s'' = s'(1 − 2s) = −3/32; at 0: 1/2, 1/4, 0.
    x = jnp.log(3.0)
    value, slope = jax.value_and_grad(bnderiv.sigmoid)(x)
    np.testing.assert_allclose((value, slope), (3 / 4, 3 / 16), rtol=1e-15)
    np.testing.assert_allclose(jax.grad(jax.grad(bnderiv.sigmoid))(x), -3 / 32, rtol=1e-14)
    assert bnderiv.sigmoid(jnp.zeros(())) == 0.5
    assert jax.grad(bnderiv.sigmoid)(0.0) == 0.25
    assert jax.grad(jax.grad(bnderiv.sigmoid))(0.0) == 0


def test_slope_of_the_value_beside_a_gradient():
    """The forward body, differentiated by JAX, has no kink at 0 (a body in |x| would)."""
    assert jax.grad(lambda x: jax.value_and_grad(bnderiv.sigmoid)(x)[0])(0.0) == 0.25


@given(st.floats(-700, 30))
def test_relative_accuracy_far_to_the_left(x):
    np.testing.assert_allclose(bnderiv.sigmoid(x), expit(x), rtol=1e-13)
    np.testing.assert_allclose(jax.grad(bnderiv.sigmoid)(x), expit(x) * expit(-x), rtol=1e-13, atol=2e-16)


def test_far_out():
    x = jnp.array([-np.inf, -1e4, 1e4, np.inf], jnp.float32)
    s, pull_back = jax.vjp(bnderiv.sigmoid, x)
    np.testing.assert_array_equal(s, [0, 0, 1, 1])
    np.testing.assert_array_equal(pull_back(jnp.ones(4, jnp.float32))[0], np.zeros(4))
    # The forward body, differentiated by JAX, does not meet inf/inf (1 / (1 + exp(−x)) would).
    beside = jax.vmap(jax.grad(lambda x: jax.value_and_grad(bnderiv.sigmoid)(x)[0]))(x)
    np.testing.assert_array_equal(beside, np.zeros(4))
