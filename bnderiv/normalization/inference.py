"""Normalization by given statistics, and its five gradients (derivation.md, N23)."""

import jax
import jax.numpy as jnp

from bnderiv import _checks
from bnderiv._checks import along
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv.normalization.batch_norm import nonnegative


def batch_norm_inference(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    *,
    channel_axis: int = -1,
    eps: float | jax.Array = 1e-5,
) -> jax.Array:
    """y = γ (x − μ)/√(σ² + ε) + β with fixed statistics, differentiable in all five arrays (derivation.md, N23).

    Args:
      x: shape (..., C, ...), rank 2 or more, floating dtype. Half precision is computed in float32.
      gamma, beta: scale and shift, shape (C,).
      mean, var: statistics, shape (C,), such as those of `RunningStats`. An infinite variance gives NaN, never beta.
      channel_axis: where C is in `x`.
      eps: ε, added to the variance; at least 0.

    Returns:
      y in the shape and dtype of `x`.

    Raises:
      TypeError: a dtype that is not floating.
      ValueError: shapes that do not fit, an axis out of range, an empty `x`, a negative `eps`.
    """
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 2, "batch and channels")
    _checks.nonempty("x", x)
    axis = _checks.axis("channel_axis", channel_axis, x.ndim)
    vectors = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    for name, value in vectors.items():
        vectors[name] = _checks.float_array(name, value)
        _checks.shape_is(name, vectors[name], (x.shape[axis],), "one per channel of x")
    return _inference(axis, x, *vectors.values(), nonnegative("eps", eps, accumulator(x.dtype)))


@closed_form(static=1, result=lambda axis, x, *vectors: x)
def _inference(axis, x, gamma, beta, mean, var, eps):
    return _given(axis, x, gamma, beta, mean, var, eps)


def _given(axis, x, gamma, beta, mean, var, eps):
    centred, r = _terms(axis, x, mean, var, eps)
    g = gamma.astype(r.dtype) * r
    return (centred * along(g, axis, x.ndim) + along(beta.astype(r.dtype), axis, x.ndim)).astype(x.dtype)


def _inference_fwd(axis, x, gamma, beta, mean, var, eps):
    # Of beta only the dtype is wanted; the vector is C long.
    return _given(axis, x, gamma, beta, mean, var, eps), (x, gamma, beta, mean, var, eps)


def _inference_bwd(axis, residuals, delta):
    x, gamma, beta, mean, var, eps = residuals
    others = tuple(a for a in range(x.ndim) if a != axis)
    centred, r = _terms(axis, x, mean, var, eps)
    delta = delta.astype(r.dtype)
    g = gamma.astype(r.dtype) * r
    d_beta = delta.sum(others)
    d_gamma = (delta * centred).sum(others) * r
    d_mean = -g * d_beta
    d_var = -0.5 * g * r * d_gamma  # r³ in steps: at var 1e36 its cube is no float32
    dx = delta * along(g, axis, x.ndim)
    return (
        dx.astype(x.dtype),
        d_gamma.astype(gamma.dtype),
        d_beta.astype(beta.dtype),
        d_mean.astype(mean.dtype),
        d_var.astype(var.dtype),
        d_var.sum().astype(eps.dtype),
    )


_inference.defvjp(_inference_fwd, _inference_bwd)


def _terms(axis, x, mean, var, eps):
    """x − μ and 1/√(σ² + ε), the latter NaN where the variance is infinite (0 would turn any x into beta)."""
    dtype = accumulator(x.dtype)
    var = var.astype(dtype)
    r = jnp.where(jnp.isinf(var), jnp.nan, 1 / jnp.sqrt(var + eps))
    return x.astype(dtype) - along(mean.astype(dtype), axis, x.ndim), r
