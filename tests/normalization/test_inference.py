"""Normalization by given statistics: numbers worked by hand, extremes, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from tests.contract import near


def test_numbers_worked_by_hand():
    # σ² + ε = 4: y = γ (x − μ)/2 + β with x = (1, 5), μ = 3, γ = 6, β = 1; δ = (1, 2).
    arrays = [jnp.array([[1.0], [5.0]]), *(jnp.array([a]) for a in (6.0, 1.0, 3.0, 3.0))]
    y, pull_back = jax.vjp(lambda *a: bnderiv.batch_norm_inference(*a, eps=1), *arrays)
    dx, d_gamma, d_beta, d_mean, d_var = pull_back(jnp.array([[1.0], [2.0]]))
    np.testing.assert_array_equal(y.ravel(), [-5, 7])
    np.testing.assert_array_equal(dx.ravel(), [3, 6])  # δ γ/2
    assert (d_gamma[0], d_beta[0], d_mean[0]) == (1, 3, -9)  # Σ δ (x − μ)/2, Σ δ, −γ/2 Σ δ
    assert d_var[0] == -0.5 * 6 / 8 * 2  # −½ γ (σ²+ε)^(−3/2) Σ δ (x − μ)


def test_it_is_batch_norm_at_the_batch_statistics():
    rng = np.random.default_rng(0)
    x, gamma, beta = (jnp.asarray(rng.standard_normal(s)) for s in ((6, 3, 3, 4), 4, 4))
    y, stats = bnderiv.batch_norm(x, gamma, beta)
    near(bnderiv.batch_norm_inference(x, gamma, beta, stats.mean, stats.var), y, 1e-14)


def test_an_infinite_variance_is_not_silently_beta():
    ones = jnp.ones(2)
    y = bnderiv.batch_norm_inference(jnp.ones((3, 2)), ones, ones, ones, jnp.array([1.0, jnp.inf]))
    assert np.isfinite(y[:, 0]).all()
    assert np.isnan(y[:, 1]).all()


@pytest.mark.few(1)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("layers", [bnderiv, bnderiv.forward_mode])
def test_a_variance_that_rounding_left_below_0(layers):
    """As in checkpoints of libraries that take mean x² − μ². Only σ² + ε has to be positive."""
    rng = np.random.default_rng(0)
    x, delta, gamma, beta = (rng.standard_normal(s).astype(np.float32) for s in ((7, 3), (7, 3), 3, 3))
    mean, var = np.array([1, 0, -1], np.float32), np.array([-1e-30, -1e-8, -4e-6], np.float32)
    eps = np.float32(1e-5)

    def plain(x, gamma, beta, mean, var):
        return gamma[None] * (x - mean[None]) * (var[None] + eps.astype(var.dtype)) ** -0.5 + beta[None]

    def ours(*arguments):
        return layers.batch_norm_inference(*arguments, eps=eps)

    def derivatives(f, *arguments):
        def gradient(*arguments):
            return jax.grad(lambda *a: jnp.sum(f(*a) * delta.astype(a[0].dtype)), range(5))(*arguments)

        of_gradient = jax.grad(lambda *a: sum(jnp.sum(jnp.sin(g / 1e9)) for g in gradient(*a)), (0, 1, 3, 4))
        return f(*arguments), gradient(*arguments), of_gradient(*arguments)

    arguments = x, gamma, beta, mean, var
    expected = derivatives(plain, *(jnp.asarray(a, jnp.float64) for a in arguments))
    near(jax.jit(lambda *a: derivatives(ours, *a))(*arguments), expected, 1e-5)
    assert np.isnan(ours(x, gamma, beta, mean, var - 2e-5)).all()


@pytest.mark.as_users_compile
def test_statistics_at_1e18():
    ones = jnp.ones(1, jnp.float32)
    x = jnp.array([[1e18], [-1e18]], jnp.float32)
    y, pull_back = jax.vjp(bnderiv.batch_norm_inference, x, ones, 0 * ones, 0 * ones, 1e36 * ones)
    np.testing.assert_allclose(y, [[1], [-1]], rtol=3e-7)
    *_, d_var = pull_back(jnp.array([[1.0], [-1.0]], jnp.float32))
    np.testing.assert_allclose(d_var, [-1e-36], rtol=1e-6)


@pytest.mark.as_users_compile
def test_a_deviation_beyond_the_dtype_is_right_where_y_fits():
    """x − μ is no float32, but a tenth of it is."""
    most, ones = float(np.finfo(np.float32).max), jnp.ones(2, jnp.float32)
    # In the second channel the mean is no float32 in the unit of the deviation.
    mean, var = jnp.array([-8e37, 3e38], jnp.float32), jnp.array([1, 1e-6], jnp.float32)
    x = jnp.array([[most, 3e38]], jnp.float32)
    y = bnderiv.batch_norm_inference(x, ones / 10, 0 * ones, mean, var)
    np.testing.assert_allclose(y, [[(most + 8e37) / 10 / np.sqrt(1 + 1e-5), 0]], rtol=3e-7)


@pytest.mark.parametrize("argument", ["gamma", "beta", "mean", "var"])
def test_errors(argument):
    arguments: dict[str, Any] = {"x": jnp.ones((4, 3))} | {
        name: jnp.ones(3) for name in ("gamma", "beta", "mean", "var")
    }
    call: Any = bnderiv.batch_norm_inference
    with pytest.raises(ValueError, match=rf"{argument}.*\(3,\).*\[2\]"):
        call(**arguments | {argument: jnp.ones(2)})
    with pytest.raises(TypeError, match=f"{argument}.*int32"):
        call(**arguments | {argument: jnp.ones(3, jnp.int32)})
    with pytest.raises(ValueError, match="channel_axis"):
        call(**arguments, channel_axis=-3)
    with pytest.raises(ValueError, match="eps"):
        call(**arguments, eps=-1)
