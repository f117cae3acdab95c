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
# The terms of the gradient by the output y and the cotangent v.
GRADIENT = {
    "relu": lambda y, v: (np.where(y > 0, v, 0),),
    "tanh": lambda y, v: (v * (1 - y) * (1 + y),),
    "sigmoid": lambda y, v: (v * y * (1 - y),),
    "softmax": lambda y, v: (v * y, -y * (v * y).sum(-1, keepdims=True)),
}
each = pytest.mark.parametrize("name", ACTIVATIONS)


@each
def test_value_and_gradient_within_one_rounding_of_the_truth(name):
    """Of the gradient, the truth is that at the saved output, which is rounded already."""
    layer, rng = getattr(bnderiv, name), np.random.default_rng(0)
    dtypes = "float64", "float32", "float16", "bfloat16"
    points = [tuple(jnp.asarray(rng.standard_normal((5, 7)) * size, d) for size in (4, 1)) for d in dtypes]

    @jax.jit
    def in_each(points):
        return [(y, pull_back(v)[0]) for (y, pull_back), v in ((jax.vjp(layer, x), v) for x, v in points)]

    for (x, v), results in zip(points, in_each(points), strict=True):
        info, half = jnp.finfo(x.dtype), x.dtype.itemsize == 2
        assert all(a.dtype == x.dtype for a in results)
        x, v, *(y, dx) = (np.asarray(a, np.float64) for a in (x, v, *results))
        # Half precision is rounded once; float32 and float64 carry the few roundings of exp and the sum.
        rounding, few = (0.51 * float(info.eps), 1e-6) if half else (0, 8 * float(info.eps))
        for actual, terms in ((y, (ORACLE[name](x),)), (dx, GRADIENT[name](y, v))):
            allowed = rounding * abs(sum(terms)) + few * sum(map(abs, terms)) + float(info.smallest_normal)
            assert (abs(actual - sum(terms)) <= allowed).all()


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
