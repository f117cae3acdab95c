"""What the four activations share: what they save, which dtypes they keep, where a NaN goes, and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import bnderiv

pytestmark = pytest.mark.fast

ACTIVATIONS = ("relu", "tanh", "sigmoid", "softmax")
ORACLE = {
    "relu": lambda x: np.where(x > 0, x, 0),
    "tanh": np.tanh,
    "sigmoid": scipy.special.expit,
    "softmax": lambda x: scipy.special.softmax(x, axis=-1),
}
each = pytest.mark.parametrize("name", ACTIVATIONS)


@pytest.mark.few(6)
@each
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_value_within_one_rounding_of_the_truth(name, dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)) * 4, dtype)
    y = getattr(bnderiv, name)(x)
    assert y.dtype == x.dtype
    truth = ORACLE[name](np.asarray(x, np.float64))
    # Half precision is rounded once; float32 and float64 carry the few roundings of exp and the sum.
    ulps = 0.51 if jnp.dtype(dtype).itemsize == 2 else 8
    smallest = float(jnp.finfo(dtype).smallest_normal)
    np.testing.assert_allclose(np.asarray(y, np.float64), truth, rtol=ulps * float(jnp.finfo(dtype).eps), atol=smallest)


@each
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saves_its_output_alone(name, dtype):
    x = jax.ShapeDtypeStruct((8, 16), dtype)
    saved = jax.tree.leaves(jax.eval_shape(lambda a: jax.vjp(getattr(bnderiv, name), a)[1], x))
    assert [(s.shape, s.dtype) for s in saved] == [(x.shape, x.dtype)]


@each
def test_nan_stays_in_its_row(name):
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    clean, clean_pull_back = jax.vjp(getattr(bnderiv, name), jnp.asarray(x))
    x[1, 2] = np.nan
    y, pull_back = jax.vjp(getattr(bnderiv, name), jnp.asarray(x))
    (dx,), (clean_dx,) = pull_back(jnp.ones_like(y)), clean_pull_back(jnp.ones_like(y))
    assert np.isnan(y[1, 2])
    for result, expected in ((y, clean), (dx, clean_dx)):
        np.testing.assert_array_equal(result[::2], expected[::2])


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
def test_numbers_without_axes(name):
    value, slope = jax.value_and_grad(getattr(bnderiv, name))(0.5)
    assert value.shape == slope.shape == ()
    expected_value, expected_slope = jax.value_and_grad(getattr(bnderiv.reference, name))(jnp.asarray(0.5))
    np.testing.assert_allclose((value, slope), (expected_value, expected_slope), rtol=1e-14)


@each
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_dtypes_that_have_no_gradient(name, dtype):
    with pytest.raises(TypeError, match=rf"x must have a floating dtype .*{jnp.dtype(dtype).name}\[2, 3\]"):
        getattr(bnderiv, name)(jnp.ones((2, 3), dtype))


@each
def test_lists_are_no_arrays(name):
    with pytest.raises(TypeError, match=r"x must be an array .* got list"):
        getattr(bnderiv, name)([1.0, 2.0])


@each
def test_empty(name):
    with pytest.raises(ValueError, match=r"x must not be empty, got float64\[0, 3\]"):
        getattr(bnderiv, name)(jnp.ones((0, 3)))
