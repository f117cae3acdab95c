"""Batch norm against a long-double truth: at any mean and scale, in every dtype, over very many elements."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from tests.normalization import truth

SHAPES = [(32, 28, 28, 6), (64, 84), (256, 32, 32, 8)]


@jax.jit
def _all(x, gamma, beta, delta):
    y, pull_back, _ = jax.vjp(bnderiv.batch_norm, x, gamma, beta, has_aux=True)
    return y, *pull_back(delta)


def _errors(x, seed, dtype: Any = np.float32, vector_dtype: Any = np.float32):
    rng = np.random.default_rng(seed)
    x, delta = jnp.asarray(x, dtype), jnp.asarray(rng.standard_normal(x.shape), dtype)
    gamma, beta = (jnp.asarray(mean + rng.standard_normal(x.shape[-1]), vector_dtype) for mean in (1, 0))
    # ε is rounded to the dtype it is added in.
    eps = np.float64(np.float32(1e-5)) if vector_dtype == np.float32 else 1e-5
    expected = truth.batch_norm(*(np.asarray(a, np.float64) for a in (x, gamma, beta, delta)), eps=eps)
    return [truth.relative_error(a, e) for a, e in zip(_all(x, gamma, beta, delta), expected, strict=True)]


def _normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.few(1, 4)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mean", [0, 1, 1e2, 1e3, 1e4])
def test_means_far_above_the_deviation(shape, mean):
    y, dx, d_gamma, d_beta = _errors(_normal(shape, 0) + mean, 1)
    assert max(y, dx) < 2e-7
    assert max(d_gamma, d_beta) < 5e-7  # plain sums


@pytest.mark.slow
def test_parameter_gradients_from_one_sample_to_the_next():
    """Plain sums of terms of either sign, which may cancel by chance: off by more than usual in a few of 30 draws."""
    errors = [_errors(_normal((32, 28, 28, 6), seed) + 1e4, seed + 50)[2:] for seed in range(30)]
    assert np.max(errors) < 5e-7
    assert np.median(errors, axis=0).max() < 2e-7


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_distributions(shape):
    normal = _normal(shape, 2)
    outlier = normal.copy()
    outlier[0] = 1e5
    assert max(_errors(normal + 1e6, 3)) < 1e-6
    assert max(_errors(outlier, 3)) < 2e-6
    assert max(_errors(1 + 1e-3 * normal, 3)) < 2e-6


@pytest.mark.few(1)
@pytest.mark.parametrize("scale", [1e18, 1e20, 1e30])
def test_scales_whose_square_is_no_float32(scale):
    assert max(_errors(_normal((32, 28, 28, 6), 4) * scale, 5)) < 1e-6
    assert max(_errors((_normal((64, 84), 4) + 100) * scale, 5)) < 1e-6


@pytest.mark.few(0)
@pytest.mark.parametrize("scale", [1e-6, 1e-12, 1e-30])
def test_scales_far_below_epsilon(scale):
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.standard_normal((64, 5)) * scale, jnp.float32)
    ones, zeros = jnp.ones(5, jnp.float32), jnp.zeros(5, jnp.float32)
    delta = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    expected = truth.batch_norm(x, ones, zeros, delta, np.float64(np.float32(1e-5)))
    for ours, theirs in zip(_all(x, ones, zeros, delta), expected, strict=True):
        assert truth.relative_error(ours, theirs) < 1e-6


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 4e-4), ("bfloat16", 3e-3)])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_half_precision_is_rounded_once(shape, dtype, tolerance):
    assert max(_errors(1e3 + 100 * _normal(shape, 7), 8, jnp.dtype(dtype))) < tolerance


@pytest.mark.slow
def test_float64():
    assert max(_errors(_normal((32, 28, 28, 6), 9) + 1e4, 10, np.float64, np.float64)) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(10_000_000, 1), pytest.param((100, 1000, 100, 1), marks=pytest.mark.exhaustive)], ids=str
)
def test_ten_million_elements_do_not_drift(shape):
    x, gamma, beta = _normal(shape, 11) + 100, np.ones(1), np.zeros(1)
    delta = _normal(shape, 12)
    x, gamma, beta, delta = (a.astype(np.float32) for a in (x, gamma, beta, delta))
    ours = _all(x, gamma, beta, delta)
    expected = truth.batch_norm(x, gamma, beta, delta, np.float64(np.float32(1e-5)))
    assert truth.relative_error(ours[0], expected[0]) < 2e-7
    assert truth.relative_error(ours[1], expected[1]) < 2e-7
    for sum_, true_sum in zip(ours[2:], expected[2:], strict=True):
        # What 10⁷ terms of either sign come to is of the order of √10⁷, or less by chance: so against that. They are
        # plain sums; in a single column that of plain autodiff is off by 1.8e-6 here.
        assert abs(float(sum_[0]) - float(true_sum[0])) < 5e-6 * np.sqrt(x.size)
