"""The logarithm of softmax: what it saves, and its accuracy where exp(y) has lost it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import bnderiv

INF, NAN = np.inf, np.nan


def pull(x, v, axis=-1):
    y, pull_back = jax.vjp(lambda x: bnderiv.log_softmax(x, axis), jnp.asarray(x))
    return np.asarray(y, np.float64), np.asarray(pull_back(jnp.asarray(v, y.dtype))[0], np.float64)


def test_numbers_worked_by_hand():
    y, dx = pull(np.log([1.0, 2, 5]), [8.0, 0, 16])
    np.testing.assert_allclose(y, -np.log([8, 4, 8 / 5]), rtol=1e-14)
    np.testing.assert_allclose(dx, [5, -6, 1], rtol=1e-13)


@pytest.mark.few(1)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_jacobian_by_entries(axis):
    x, v = np.random.default_rng(0).standard_normal((2, 3, 4, 2))
    y, dx = pull(x, v, axis)
    np.testing.assert_allclose(y, log_softmax(x, axis), rtol=1e-13)
    s = softmax(x, axis)
    np.testing.assert_allclose(dx, v - s * v.sum(axis, keepdims=True), rtol=1e-12, atol=1e-15)


def test_saves_x_alone():
    x = jax.ShapeDtypeStruct((8, 16), jnp.bfloat16)
    saved = jax.tree.leaves(jax.eval_shape(lambda a: jax.vjp(bnderiv.log_softmax, a)[1], x))
    assert [(s.shape, s.dtype) for s in saved] == [(x.shape, x.dtype)]


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_half_precision_rounds_once(dtype):
    """The value is the truth rounded; s comes of x and not of the rounded y, by which it would be |y|·eps off."""
    x = jnp.asarray(np.array([[0, -10.25, -3.5, -14], [1e4, 1e4 - 2, 0, 1e4]]), dtype)
    wide = np.asarray(x, np.float64)
    eps = float(jnp.finfo(dtype).eps)
    y, dx = pull(x, np.tile([1, 0, 0, 0], (2, 1)))
    rounding = eps / 2 if dtype != "float32" else 2 * eps
    np.testing.assert_allclose(y, log_softmax(wide, -1), rtol=rounding, atol=1e-7)
    expected = np.array([1, 0, 0, 0]) - softmax(wide, -1)
    np.testing.assert_allclose(dx[:, 1:], expected[:, 1:], rtol=1.01 * rounding, atol=float(jnp.finfo(dtype).tiny))


def test_classes_ruled_out_and_rows_without_a_softmax():
    x = np.array([[0.5, -INF, 1.5], [-INF, -INF, -INF], [INF, 0, 0], [NAN, 0, 0], [0, 0, 0]])
    y, dx = pull(x, np.tile([1.0, 2, 3], (5, 1)))
    assert y[0, 1] == -INF
    np.testing.assert_allclose(y[0, [0, 2]], log_softmax(x[0, [0, 2]]), rtol=1e-14)
    np.testing.assert_allclose(dx[0], [1, 2, 3] - 6 * softmax(x[0]), rtol=1e-13)
    assert np.isnan(y[1:4]).all()
    assert np.isnan(dx[1:4]).all()
    assert np.isfinite(y[4]).all()


@pytest.mark.slow
def test_the_value_beside_a_gradient_has_the_same_slope():
    x, v = np.random.default_rng(0).standard_normal((2, 4))
    beside = jax.grad(lambda x: (jax.vjp(bnderiv.log_softmax, x)[0] * v).sum())(jnp.asarray(x))
    np.testing.assert_allclose(beside, pull(x, v)[1], rtol=1e-12)


def test_arguments():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"axis must lie in \[-2, 2\) .* got 2"):
        bnderiv.log_softmax(x, axis=2)
    with pytest.raises(TypeError, match=r"x must have a floating dtype .*int32\[2, 3\]"):
        bnderiv.log_softmax(x.astype(jnp.int32))
    with pytest.raises(ValueError, match="x must have rank 1 or more"):
        bnderiv.log_softmax(x[0, 0])
    with pytest.raises(ValueError, match=r"x must not be empty, got float64\[0, 3\]"):
        bnderiv.log_softmax(x[:0])
