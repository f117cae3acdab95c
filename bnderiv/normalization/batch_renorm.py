"""Batch renormalization: batch norm with a correction towards the running statistics (derivation.md, N37)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from bnderiv import _checks
from bnderiv._rule import layer
from bnderiv._types import AxisName
from bnderiv.normalization.across_devices import refusals
from bnderiv.normalization.arguments import epsilon, laid, limit, mapped_axes, with_channels
from bnderiv.normalization.batch_norm import batch_stats, moments_of, varying_like
from bnderiv.normalization.groups import Affine, per_channel
from bnderiv.normalization.inference import given
from bnderiv.normalization.normalize import normalize
from bnderiv.normalization.running_stats import BatchStats
from bnderiv.normalization.units import Epsilon, Moments


def batch_renorm(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    *,
    r_max: float | jax.Array = 3.0,
    d_max: float | jax.Array = 5.0,
    channel_axis: int = -1,
    eps: float | jax.Array = 1e-5,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> tuple[jax.Array, BatchStats]:
    """Batch norm, corrected towards the running statistics within limits: y = γ (x̂ r + d) + β (Ioffe, 2017).

    With the batch's μ_B and σ_B² in x̂, and the running `mean` and `var`, μ and σ²,

        r = √(σ_B²+ε) / √(σ²+ε), clipped to [1/r_max, r_max],   d = (μ_B − μ) / √(σ²+ε), clipped to [−d_max, d_max]

    r and d are constants in the gradient, which is that of batch norm with γ r for γ, and

        ∂J/∂γ = Σ δ (x̂ r + d),   ∂J/∂β = Σ δ

    (derivation.md, N37). Where neither is clipped, y is that of `batch_norm_inference` by `mean` and `var`. With
    r_max=1 and d_max=0 this is `batch_norm`. Only x and vectors of length C are saved.

    Args:
      x: shape (..., C, ...), rank 2 or more, floating dtype. Half precision is computed in float32.
      gamma, beta: γ and β, shape (C,).
      mean, var: μ and σ², shape (C,): the running statistics before this batch. They have no gradient. A channel whose
        running variance is infinite is NaN, unless r_max is 1.
      r_max: at least 1, infinity for no limit.
      d_max: at least 0, infinity for no limit.
      channel_axis: the axis of x that has C.
      eps: ε, added to both variances; at least 0.
      where: booleans that broadcast to `x`, as in `batch_norm`.
      axis_name: name, or tuple of names, of mapped axes to take the statistics over too, as in `batch_norm`.
      axis_index_groups: groups of indices along `axis_name` that share statistics, as for JAX's collectives.

    Returns:
      y, in the shape and dtype of `x`, and the batch's `BatchStats(mean, var, count)`, by which
      `update_running_stats` moves the running ones.

    Raises:
      TypeError: a dtype that is not floating, `where` not boolean, or a limit that is no real number.
      ValueError: shapes that do not fit, an axis out of range, an empty `x`, a negative `eps`, a limit that is too
        small, groups without `axis_name` or where JAX does not take them.

    Example:
      >>> x, mean, var = jnp.array([[1.0], [3.0]]), jnp.array([0.0]), jnp.array([4.0])
      >>> y, stats = bnderiv.batch_renorm(x, jnp.ones(1), jnp.zeros(1), mean, var, eps=0)
      >>> y.tolist(), stats.mean.tolist()
      ([[0.5], [1.5]], [2.0])
      >>> y, _ = bnderiv.batch_renorm(x, jnp.ones(1), jnp.zeros(1), mean, var, d_max=0.25, eps=0)
      >>> y.tolist()
      [[-0.25], [0.75]]
    """
    x, axis, *vectors = with_channels(x, channel_axis, gamma=gamma, beta=beta, mean=mean, var=var)
    limits = limit("r_max", r_max, 1, x), limit("d_max", d_max, 0, x)
    epsilons = epsilon(eps, x)
    if where is not None:
        where = _checks.mask("where", where, x.shape)
    axis_name, index_groups = mapped_axes(axis_name, axis_index_groups)
    with refusals(index_groups):
        return _batch_renorm(axis, axis_name, index_groups, x, where, *vectors, *limits, *epsilons)


@layer(static=3, result=lambda axis, axis_name, index_groups, x, *_: (x, P(x[axis])))
def _batch_renorm(axis, axis_name, index_groups, x, where, gamma, beta, mean, var, r_max, d_max, eps, root):
    groups, eps = per_channel(x, axis, over_devices=axis_name is not None), Epsilon(eps, root)
    gamma, beta, mean, var = map(partial(laid, x, (axis,)), (gamma, beta, mean, var))
    n, moments = moments_of(groups, x, where, eps, mean, axis_name, index_groups)
    own = varying_like(x, moments)
    affine = _corrected(gamma, beta, *lax.stop_gradient((own, mean, var, r_max, d_max, eps)))
    return normalize(groups, False, x, where, affine, eps, own), batch_stats(n, moments)


def _corrected(gamma, beta, moments: Moments, mean, var, r_max, d_max, eps) -> Affine:
    """γ (x̂ r + d) + β = (γ r) x̂ + (γ d + β): the affine map of a batch norm (N37)."""
    own, (running, _, running_var) = moments.unit, given(mean, var, eps.root)
    inverse = running.inverse_root(running_var, eps)
    # The ratio and the difference are taken by parts, so that nothing cancels at a large mean. An overflow is clipped.
    r = running.scale / own.scale * (inverse / own.inverse_root(moments.var, eps))
    d = ((own.origin / own.scale - mean) + moments.mean / own.scale) * running.scale * inverse
    return Affine(gamma * _clipped(r, 1 / r_max, r_max), gamma * _clipped(d, -d_max, d_max) + beta)


def _clipped(a: jax.Array, least: jax.Array, most: jax.Array) -> jax.Array:
    return jnp.where(least < most, jnp.clip(a, least, most), most)  # equal limits fix it, even a NaN
