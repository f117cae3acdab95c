"""Softmax: its Jacobian written out, extremes, −inf, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import bnderiv
from tests import contract, forms
from tests.compiling import fast_jit

JACOBIAN = fast_jit(jax.jacrev(bnderiv.softmax))


def test_numbers_worked_by_hand():
    # exp(z) ∝ (1, 2, 5): s = (1, 2, 5)/8; with v = (8, 0, 16), Σ v s = 1 + 10 = 11 and δ = s (v − 11).
    z = jnp.log(jnp.array([1.0, 2.0, 5.0]))
    s, pull_back = jax.vjp(bnderiv.softmax, z)
    np.testing.assert_allclose(s, [1 / 8, 2 / 8, 5 / 8], rtol=1e-15)
    np.testing.assert_allclose(pull_back(jnp.array([8.0, 0.0, 16.0]))[0], [-3 / 8, -22 / 8, 25 / 8], rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", [bnderiv.softmax, bnderiv.log_softmax], ids=lambda f: f.__name__)
def test_by_a_minimum_the_same(layer, dtype):
    """As a TPU computes it: to the bit, whatever x holds."""
    x = 5 * jax.random.normal(jax.random.key(0), (9, 33), jnp.float32)
    ends = jnp.asarray([-jnp.inf, jnp.inf, jnp.nan, 3.3e38, -3.3e38], x.dtype)
    x = x.at[:5, 7].set(ends).at[5].set(-jnp.inf).at[6, 3:5].set(ends[3:]).astype(dtype)
    by_maximum = layer(x)
    with forms.of("tpu"):
        by_minimum = layer(x)
    by_minimum, by_maximum = (np.asarray(a, np.float32) for a in (by_minimum, by_maximum))
    np.testing.assert_array_equal(by_minimum, by_maximum)
    assert np.isfinite(by_maximum[7:]).all()


@given(hnp.arrays(np.float64, st.integers(1, 6), elements=st.floats(-50, 50)))
def test_jacobian(z):
    """Both cases, entry by entry: s_i (1 − s_i) on the diagonal, −s_i s_j off it."""
    e = np.exp(z - z.max())
    s = e / e.sum()
    jacobian = [[s[i] * (1 - s[j]) if i == j else -s[i] * s[j] for j in range(len(z))] for i in range(len(z))]
    np.testing.assert_allclose(JACOBIAN(z), jacobian, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=4, max_side=3), elements=st.floats(-5, 5)), st.data()
)
def test_any_axis(z, data):
    axis = data.draw(st.integers(-z.ndim, z.ndim - 1))
    cotangent = np.random.default_rng(0).standard_normal(z.shape)
    s, (dz,) = contract.compiled(lambda z: bnderiv.softmax(z, axis=axis))(cotangent, z)
    e = np.exp(z)
    expected = e / e.sum(axis, keepdims=True)
    delta = expected * (cotangent - (expected * cotangent).sum(axis, keepdims=True))
    np.testing.assert_allclose(s, expected, rtol=1e-13)
    np.testing.assert_allclose(dz, delta, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_logits_of_ten_thousand(dtype):
    x = jnp.asarray(np.array([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4], [1e4, 0, -1e4]]), dtype)
    s, pull_back = jax.vjp(bnderiv.softmax, x)
    third = jnp.asarray(1 / 3, dtype)
    np.testing.assert_array_equal(s, jnp.array([[0.5, 0.5, 0], [third, third, third], [1, 0, 0]], dtype))
    dx = np.asarray(pull_back(jnp.asarray(np.eye(3), dtype))[0], np.float64)
    expected = [[1 / 4, -1 / 4, 0], [-1 / 9, 2 / 9, -1 / 9], [0, 0, 0]]
    np.testing.assert_allclose(dx, expected, rtol=3 * float(jnp.finfo(dtype).eps))


def test_classes_ruled_out():
    # −inf takes no part: the rest is the softmax of the others, and so is its gradient, to the second derivative.
    z, v = jnp.array([0.3, -np.inf, -1.2, 0.5, -np.inf]), jnp.array([0.7, 5.0, -0.4, 1.1, -3.0])
    rest = np.array([0, 2, 3])

    def gradient(layer, z, v):
        s, pull_back = jax.vjp(layer, z)
        return s, pull_back(v)[0]

    def second(layer, z, v):
        return jax.grad(lambda z: (gradient(layer, z, v)[1] * jnp.cos(v)).sum())(z)

    for actual, expected in zip(
        (*gradient(bnderiv.softmax, z, v), second(bnderiv.softmax, z, v)),
        (*gradient(bnderiv.reference.softmax, z[rest], v[rest]), second(bnderiv.reference.softmax, z[rest], v[rest])),
        strict=True,
    ):
        np.testing.assert_allclose(actual[rest], expected, rtol=1e-13)
        np.testing.assert_array_equal(actual[np.array([1, 4])], [0, 0])


@pytest.mark.parametrize("row", [[-np.inf, -np.inf], [np.inf, 1.0], [np.nan, 1.0]])
def test_rows_without_a_softmax_are_nan_and_alone(row):
    x = jnp.array([[1.0, 2.0], row, [0.0, 0.0]])
    s = bnderiv.softmax(x)
    np.testing.assert_array_equal(s, jax.nn.softmax(x))
    assert np.isnan(s[1]).all()
    assert np.isfinite(s[::2]).all()


@pytest.mark.parametrize("axis", [2, -3])
def test_axis_out_of_range(axis):
    with pytest.raises(ValueError, match=rf"axis must lie in \[-2, 2\) .* got {axis}"):
        bnderiv.softmax(jnp.ones((2, 3)), axis=axis)


@pytest.mark.parametrize("axis", [None, 1.0, (0, 1), "rows", True])
def test_axis_that_is_no_integer(axis):
    with pytest.raises(TypeError, match="axis must be an integer"):
        bnderiv.softmax(jnp.ones((2, 3)), axis=axis)


def test_number_without_axes():
    with pytest.raises(ValueError, match=r"x must have rank 1 or more .* got float64\[\]"):
        bnderiv.softmax(jnp.asarray(1.0))
