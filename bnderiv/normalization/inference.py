"""Normalization by given statistics, and its five gradients (derivation.md, N23)."""

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._rule import layer
from bnderiv.normalization.arguments import epsilon, laid, with_channels
from bnderiv.normalization.groups import Affine, per_channel
from bnderiv.normalization.normalize import normalize
from bnderiv.normalization.units import Epsilon, Moments, Unit, scale_for


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
    """y = γ (x − μ)/√(σ² + ε) + β by given statistics, with a gradient for all five arrays (N23).

    Args:
      x: shape (..., C, ...), rank 2 or more, floating dtype. Half precision is computed in float32.
      gamma, beta: γ and β, shape (C,).
      mean, var: μ and σ², shape (C,), such as those of `RunningStats`. An infinite variance gives NaN, never beta;
        so does a negative one, unless σ² + ε is positive.
      channel_axis: the axis of x that has C.
      eps: ε, added to the variance; at least 0.

    Returns:
      y in the shape and dtype of `x`.

    Raises:
      TypeError: a dtype that is not floating.
      ValueError: shapes that do not fit, an axis out of range, an empty `x`, a negative `eps`.

    Example:
      >>> x = jnp.array([[1.0], [5.0]])
      >>> mean, var = jnp.array([3.0]), jnp.array([4.0])
      >>> bnderiv.batch_norm_inference(x, jnp.ones(1), jnp.zeros(1), mean, var, eps=0).tolist()
      [[-1.0], [1.0]]
    """
    x, axis, *vectors = with_channels(x, channel_axis, gamma=gamma, beta=beta, mean=mean, var=var)
    return _inference(axis, x, *vectors, *epsilon(eps, x))


@layer(static=1, result=lambda axis, x, *_: x)
def _inference(axis, x, gamma, beta, mean, var, eps, root):
    groups = per_channel(x, axis)
    gamma, beta, mean, var = (laid(x, (axis,), a) for a in (gamma, beta, mean, var))
    moments = given(mean, var, root)
    return normalize(groups, False, x, None, Affine(gamma, beta), Epsilon(eps, root), moments)


def given(mean: jax.Array, var: jax.Array, root: jax.Array) -> Moments:
    """Given statistics as moments. K is the mean, so m = 0; the gradient of the mean goes through m."""
    shift = lax.stop_gradient(mean)
    finite = jnp.isfinite(shift)
    # |σ²|: where a library takes mean x² − μ², rounding leaves some variances just below 0, and σ² + ε is positive.
    size = jnp.maximum(jnp.sqrt(jnp.abs(var)), root)
    scale = scale_for(size, jnp.where(finite, shift, 0)) / 4  # so that neither x − K nor σ² + ε overflows
    zero = jnp.where(finite, mean - shift, 0)
    # With an infinite σ² r would be 0, and y would be beta for any x. A constant NaN would stop `jax.debug_nans`.
    var = jnp.where(jnp.isinf(var), var - var, var)
    return Moments(Unit(scale, shift * scale), zero * scale, var * scale * scale)
