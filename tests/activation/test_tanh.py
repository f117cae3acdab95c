"""Hyperbolic tangent: hand-worked numbers and what is left of the derivative far out."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import bnderiv


def test_numbers_worked_by_hand():
    # tanh(log 2) = (2 − ½)/(2 + ½) = 3/5, so τ' = 1 − 9/25 = 16/25 and τ'' = −2·(3/5)·(16/25) = −96/125.
    x = jnp.log(2.0)
    value, slope = jax.value_and_grad(bnderiv.tanh)(x)
    np.testing.assert_allclose((value, slope), (3 / 5, 16 / 25), rtol=1e-15)
    np.testing.assert_allclose(jax.grad(jax.grad(bnderiv.tanh))(x), -96 / 125, rtol=1e-14)
    assert jax.grad(bnderiv.tanh)(0.0) == 1


@given(st.floats(-6, 6))
def test_slope_equals_cosh_to_minus_two(x):
    # Near |y| = 1 the rounding of y is all there is: 1 − y² carries an absolute error of one unit of y.
    np.testing.assert_allclose(jax.grad(bnderiv.tanh)(x), np.cosh(x) ** -2, rtol=1e-14, atol=5e-16)


def test_far_out():
    x = jnp.array([-np.inf, -1e4, 1e4, np.inf], jnp.float32)
    y, pull_back = jax.vjp(bnderiv.tanh, x)
    np.testing.assert_array_equal(y, [-1, -1, 1, 1])
    np.testing.assert_array_equal(pull_back(jnp.ones(4, jnp.float32))[0], np.zeros(4))


def test_nothing_is_lost_after_the_output_is_rounded():
    # At y = 1 − d the slope is 2d − d²; 1 − fl(y²) would be off by up to 2⁻²⁵, at d = 2⁻¹² one part in 10⁴.
    y, pull_back = jax.vjp(bnderiv.tanh, jnp.linspace(3, 7, 99, dtype=jnp.float32))
    truth = 1 - np.asarray(y, np.float64) ** 2
    np.testing.assert_allclose(pull_back(jnp.ones_like(y))[0], truth, rtol=2e-7)
