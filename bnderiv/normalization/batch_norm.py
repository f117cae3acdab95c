"""Batch normalization: the public functions, their checks and their layout. The mathematics is in `normalize.py`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from bnderiv import _checks
from bnderiv._numbers import power_of_two_over
from bnderiv._rule import layer
from bnderiv._types import AxisName
from bnderiv.normalization.across_devices import merge, refusals
from bnderiv.normalization.arguments import epsilon, laid, mapped_axes, with_channels
from bnderiv.normalization.groups import Affine, Groups, per_channel
from bnderiv.normalization.normalize import normalize, statistics
from bnderiv.normalization.running_stats import BatchStats
from bnderiv.normalization.units import Epsilon, Moments


def batch_norm(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    *,
    channel_axis: int = -1,
    eps: float | jax.Array = 1e-5,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    assumed_mean: jax.Array | None = None,
) -> tuple[jax.Array, BatchStats]:
    """Normalizes each channel by its own statistics: y = γ (x − μ)/√(σ² + ε) + β.

    μ and the biased σ² are taken over every axis but `channel_axis`. With δ = ∂J/∂y and n elements in a channel,

        ∂J/∂x = γ/√(σ²+ε) · (δ − mean δ − x̂ · mean(δ x̂)),   ∂J/∂γ = Σ δ x̂,   ∂J/∂β = Σ δ

    (derivation.md, N12, N5, N6). The cotangents of the returned mean and variance enter ∂J/∂x too (N13). Only x and
    vectors of length C are saved. In float32, y and ∂J/∂x are right to 2e-7 at any mean and scale that the dtype holds,
    or to 1e-6 if all but a few elements are equal (C.4). NaN and infinity stay in their channel. If x is a product that
    the same program computes, XLA may take it unrounded in some sums: then y is right to the rounding of x.

    The statistics take one read of x about an assumed mean, and three more if that was off by more than a deviation, or
    if squares over- or underflowed. Under `vmap` the whole batch is read again if any of it needs it.

    Args:
      x: shape (..., C, ...), rank 2 or more, floating dtype. Half precision is computed in float32.
      gamma: γ, shape (C,).
      beta: β, shape (C,).
      channel_axis: the axis of x that has C.
      eps: ε, added to the variance; at least 0.
      where: booleans that broadcast to `x`. Elements where it is False do not count in the statistics, whatever they
        hold. y there is the same map of x, and its cotangent flows like any other; where that x is not finite, a zero
        cotangent contributes zero to every gradient.
      axis_name: name, or tuple of names, of mapped axes to take the statistics over too, by true counts: under
        `jax.shard_map`, `jax.pmap` or `jax.vmap(axis_name=...)`.
      axis_index_groups: groups of indices along `axis_name` that share statistics, as for JAX's collectives.
      assumed_mean: shape (C,), a value near the mean, such as that of the running statistics. Only speed depends on it:
        any value, even NaN or infinity, gives the same result up to rounding. (A σ below 2e-4 √ε may count as 0.)
        By default the mean of a small sample of x. It has no gradient.

    Returns:
      y, in the shape and dtype of `x`, and `BatchStats(mean, var, count)`, (C,) each in float32 (float64 for float64).

    Raises:
      TypeError: a dtype that is not floating, or `where` not boolean.
      ValueError: shapes that do not fit, an axis out of range, an empty `x`, a negative `eps`, groups without
        `axis_name` or where JAX does not take them.

    Example:
      >>> x = jnp.array([[10000.0, 1.0], [10002.0, 3.0]])
      >>> y, stats = bnderiv.batch_norm(x, jnp.ones(2), jnp.zeros(2), eps=0)
      >>> y.tolist()
      [[-1.0, -1.0], [1.0, 1.0]]
      >>> stats.mean.tolist(), stats.var.tolist()
      ([10001.0, 2.0], [1.0, 1.0])
    """
    return _public(False, x, gamma, beta, None, channel_axis, eps, where, axis_name, axis_index_groups, assumed_mean)


def batch_norm_relu(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    residual: jax.Array | None = None,
    *,
    channel_axis: int = -1,
    eps: float | jax.Array = 1e-5,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    assumed_mean: jax.Array | None = None,
) -> tuple[jax.Array, BatchStats]:
    """`relu(batch_norm(x, ...) + residual)` in one rule, which rebuilds the mask (derivation.md, N22, N31).

    Saved are x and vectors of length C, with a residual the output too. Returns, errors and gradients are those of
    `batch_norm`, with δ·[y > 0] for δ: 0 at y = 0, as in `relu`. So are the arguments, with one more. (`batch_norm`
    takes no residual: without a ReLU there is no mask. Add it to y.)

    Args:
      residual: z, added before the ReLU: the input of a residual block, in the shape of `x` and a floating dtype. It is
        not broadcast. Its gradient is δ·[y > 0], in its dtype.

    Example:
      >>> x = jnp.array([[1.0], [3.0]])
      >>> y, _ = bnderiv.batch_norm_relu(x, jnp.ones(1), jnp.zeros(1), eps=0)
      >>> y.tolist()
      [[0.0], [1.0]]
      >>> y, _ = bnderiv.batch_norm_relu(x, jnp.ones(1), jnp.zeros(1), jnp.array([[5.0], [-5.0]]), eps=0)
      >>> y.tolist()
      [[4.0], [0.0]]
    """
    return _public(True, x, gamma, beta, residual, channel_axis, eps, where, axis_name, axis_index_groups, assumed_mean)


def _public(relu, x, gamma, beta, residual, channel_axis, eps, where, axis_name, index_groups, assumed_mean):
    vectors = {"gamma": gamma, "beta": beta}
    if assumed_mean is not None:
        vectors["assumed_mean"] = assumed_mean
    x, axis, *vectors = with_channels(x, channel_axis, **vectors)
    gamma, beta, assumed_mean = (*vectors, None)[:3]
    if residual is not None:
        residual = _checks.float_array("residual", residual)
        _checks.shape_is("residual", residual, x.shape, "that of x")
    eps = epsilon(eps, x)
    if where is not None:
        where = _checks.mask("where", where, x.shape)
    axis_name, index_groups = mapped_axes(axis_name, index_groups)
    with refusals(index_groups):
        return _batch_norm(relu, axis, axis_name, index_groups, x, where, gamma, beta, assumed_mean, residual, *eps)


def _result(relu, axis, axis_name, index_groups, x, *_):
    return x, P(x[axis])  # y, and all of the statistics


@layer(static=4, result=_result)
def _batch_norm(relu, axis, axis_name, index_groups, x, where, gamma, beta, assumed_mean, residual, eps, root):
    groups = per_channel(x, axis, over_devices=axis_name is not None)
    lay = partial(laid, x, (axis,))
    affine, eps = Affine(lay(gamma), lay(beta), residual), Epsilon(eps, root)
    assumed_mean = None if assumed_mean is None else lay(assumed_mean)
    n, moments = moments_of(groups, x, where, eps, assumed_mean, axis_name, index_groups)
    y = normalize(groups, relu, x, where, affine, eps, varying_like(x, moments))
    return y, batch_stats(n, moments)


def moments_of(
    groups: Groups, x: jax.Array, where: Any, eps: Epsilon, assumed_mean: Any, axis_name: Any, index_groups: Any
) -> tuple[Any, Moments]:
    """How many elements a channel or group has, and their moments, over the devices along `axis_name` too."""
    n = groups.count(x, where)
    if assumed_mean is not None and where is not None:  # without elements the mean is 0, whatever is assumed
        assumed_mean = jnp.where(n > 0, assumed_mean, 0)
    least_one = n if where is None else jnp.maximum(n, 1)
    moments = statistics(groups, x, where, least_one, eps, assumed_mean)
    if groups.over_devices:
        n, moments = merge(n, moments, axis_name, index_groups)
    return n, moments


def varying_like(x: jax.Array, moments: Moments) -> Moments:
    """The moments, cast to vary over the manual mesh axes that x varies over."""
    leaves, structure = jax.tree.flatten(moments)
    return jax.tree.unflatten(structure, _checks.same_varying(x, *leaves)[1:])


def batch_stats(n: jax.Array, moments: Moments) -> BatchStats:
    """μ, σ² and the count; (C,) each."""
    unit, mean, var = moments
    scale, origin = unit
    # 1/s by its bits: XLA would merge two divisions by s into one by s², which may underflow.
    inverse = power_of_two_over(scale)
    # The select makes XLA shard the count like the variance. (Under `shard_map` the count is one number.)
    count = jnp.broadcast_to(n, var.shape)
    if not _checks.varying_axes(var):
        count = lax.select(var == var, count, count)
    return jax.tree.map(jnp.ravel, BatchStats((origin + mean) * inverse, var * inverse * inverse, count))
