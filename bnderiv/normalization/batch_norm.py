"""Batch normalization with its three-part gradient in closed form (derivation.md, N1–N13, N22, N24, N25)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import PartitionSpec as P

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form, layer
from bnderiv.activation.relu import rectify
from bnderiv.normalization.across_devices import merge
from bnderiv.normalization.channels import Channels
from bnderiv.normalization.moments import batch_stats, in_units, masked, measure
from bnderiv.normalization.running_stats import BatchStats


def batch_norm(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    *,
    channel_axis: int = -1,
    eps: float | jax.Array = 1e-5,
    where: jax.Array | None = None,
    axis_name: Any = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> tuple[jax.Array, BatchStats]:
    """Normalizes each channel by the batch's own statistics, then scales and shifts: y = γ (x − μ)/√(σ² + ε) + β.

    μ and σ² (biased) are taken over every axis but `channel_axis`. With δ = ∂J/∂y and n elements a channel,

        ∂J/∂x = γ/√(σ²+ε) · (δ − mean δ − x̂ · mean(δ x̂)),   ∂J/∂γ = Σ δ x̂,   ∂J/∂β = Σ δ

    (derivation.md, N12, N5, N6), and the cotangents of the returned mean and variance enter ∂J/∂x too (N13). Only x
    and vectors of length C are saved. Right at any mean and scale the dtype can hold (N25): centring is exact at means
    far above the deviation, and nothing overflows at 1e30. NaN and infinity stay in their channel.

    Args:
      x: shape (..., C, ...), rank 2 or more, floating dtype. Half precision is computed in float32.
      gamma: scale, shape (C,).
      beta: shift, shape (C,).
      channel_axis: where C is in `x`.
      eps: ε, added to the variance; at least 0.
      where: booleans that broadcast to `x`. False elements count for nothing in the statistics and in the gradients
        through them, whatever they hold. y at a False place is the same map of the x there, and its cotangent flows
        like any other; an x there that is not finite contributes nothing to any gradient.
      axis_name: name (or tuple of names) of mapped axes to take the statistics over as well, by true counts: under
        `jax.shard_map`, `jax.pmap` or `jax.vmap(axis_name=...)`.
      axis_index_groups: groups of indices along `axis_name` that share statistics, as JAX's collectives take them.

    Returns:
      y, in the shape and dtype of `x`, and `BatchStats(mean, var, count)`, (C,) each in float32 (float64 for float64).

    Raises:
      TypeError: a dtype that is not floating, or `where` not boolean.
      ValueError: shapes that do not fit, an axis out of range, an empty `x`, a negative `eps`, groups without
        `axis_name` or where JAX does not take them.
    """
    return _public(False, x, gamma, beta, channel_axis, eps, where, axis_name, axis_index_groups)


def batch_norm_relu(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    *,
    channel_axis: int = -1,
    eps: float | jax.Array = 1e-5,
    where: jax.Array | None = None,
    axis_name: Any = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> tuple[jax.Array, BatchStats]:
    """`relu(batch_norm(x, ...))` in one rule: x alone is saved, and the mask is rebuilt from it (derivation.md, N22).

    Arguments, returns, errors and gradients as in `batch_norm`, with δ_y = δ·[y > 0] (so 0 at 0, as `relu`).
    """
    return _public(True, x, gamma, beta, channel_axis, eps, where, axis_name, axis_index_groups)


def _public(relu, x, gamma, beta, channel_axis, eps, where, axis_name, groups):
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 2, "batch and channels")
    _checks.nonempty("x", x)
    axis = _checks.axis("channel_axis", channel_axis, x.ndim)
    channels = (x.shape[axis],)
    gamma, beta = _checks.float_array("gamma", gamma), _checks.float_array("beta", beta)
    _checks.shape_is("gamma", gamma, channels, "one per channel of x")
    _checks.shape_is("beta", beta, channels, "one per channel of x")
    eps = nonnegative("eps", eps, accumulator(x.dtype))
    if where is not None:
        where = _checks.mask("where", where, x.shape)
    if groups is not None and axis_name is None:
        raise ValueError("axis_index_groups must come with axis_name, got axis_name=None")
    groups = None if groups is None else tuple(map(tuple, groups))
    return _with_stats(axis, relu, axis_name, groups, x, where, gamma, beta, eps)


def _result(axis, relu, axis_name, groups, x, *_):
    return x, P(x[axis])  # y, and all of the statistics


@layer(static=4, result=_result)
def _with_stats(axis, relu, axis_name, groups, x, where, gamma, beta, eps):
    channels = Channels.of(axis, x.shape, masked=where is not None)
    moments = measure(channels, x, where, eps)
    own = axis_name is None or axis_name == ()
    if not own:
        moments = merge(moments, axis_name, groups)
    y = _normalize(channels, relu, own, x, where, gamma, beta, eps, *_checks.same_varying(x, *moments)[1:])
    return y, batch_stats(moments)


# The core. `own` says whose the moments are. Own, they are functions of this x alone: the backward is the combined form
# (N12), and nothing is left to flow to them. Shared with other devices, they are arguments like any other: the backward
# gives x̂'s part to x and the rest to m and v (N8, N10), from where it reaches every device's x through `measure`.


@closed_form(static=3)
def _normalize(channels, relu, own, x, where, gamma, beta, eps, count, shift, scale, mean, var):
    return _scaled(channels, relu, x, where, gamma, beta, eps, shift, scale, mean, var)


def _scaled(channels, relu, x, where, gamma, beta, eps, shift, scale, mean, var):
    shape, x, where = x.shape, channels.view(x), channels.mask(where)
    r = _inverse_deviation(var, eps, scale)
    usable = _usable(channels, x, where, shift, scale)
    y = _affine(channels, _centred(channels, usable, shift, scale, mean), r, gamma, beta)
    if where is not None:  # elsewhere the same map; by itself, so that in second derivatives too 0 · NaN is 0
        as_it_is = _affine(channels, _centred(channels, x, shift, scale, mean), r, gamma, beta)
        y = jnp.where(usable == x, y, lax.stop_gradient(as_it_is))
    return (rectify(y) if relu else y).astype(x.dtype).reshape(shape)


def _normalize_fwd(channels, relu, own, x, where, gamma, beta, eps, count, shift, scale, mean, var):
    y = _scaled(channels, relu, x, where, gamma, beta, eps, shift, scale, mean, var)
    return y, (x, where, gamma, beta, eps, count, shift, scale, mean, var)


def _normalize_bwd(channels, relu, own, residuals, delta):
    x, where, gamma, beta, eps, n, shift, scale, mean, var = residuals
    shape, x, where, delta = x.shape, channels.view(x), channels.mask(where), channels.view(delta)
    x = _usable(channels, x, where, shift, scale)
    u, r = _centred(channels, x, shift, scale, mean), _inverse_deviation(var, eps, scale)
    delta = delta.astype(u.dtype)
    if relu:
        delta = jnp.where(_affine(channels, u, r, gamma, beta) > 0, delta, 0)  # (N22)

    g = gamma.astype(r.dtype) * r
    d_beta = channels.sum_closely(delta)  # (N6)
    eighth = _centred(channels, x, shift, scale / 8, mean / 8)  # of u; a sum has terms of its own, see `moments`
    d_gamma = channels.sum_closely(delta * eighth) * (8 * r)  # (N5), as x̂ = u r
    d_var = -0.5 * g * (r * d_gamma)  # (N8); g r may overflow where d_gamma is 0
    if own:
        n = jnp.maximum(n, 1)
        through_moments = channels.along(d_beta / n, x) + u * channels.along(r * d_gamma / n, x)
        dx = (delta - masked(where, through_moments)) * channels.along(g, x)  # (N12)
        to_mean = to_var = None
    else:
        dx = delta * channels.along(g, x)  # x̂'s part of (N11)
        to_mean, to_var = -g * d_beta, d_var  # (N10)
    dx = dx * channels.along(scale, x)
    d_eps = (d_var * scale * scale).sum()
    return (
        dx.astype(x.dtype).reshape(shape),
        None,
        d_gamma.astype(gamma.dtype),
        d_beta.astype(beta.dtype),
        d_eps.astype(eps.dtype),
        None,
        None,
        None,
        to_mean,
        to_var,
    )


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _usable(channels, x, where, shift, scale):
    """x; K at a False place where (x − K) s is not finite, as 0 · NaN is to be 0 in every sum."""
    if where is None:
        return x
    finite = jnp.isfinite(in_units(channels, x, shift, scale))
    return jnp.where(where | finite, x, channels.along(shift, x).astype(x.dtype))


def _centred(channels, x, shift, scale, mean):
    return in_units(channels, x, shift, scale) - channels.along(mean, x)


def _inverse_deviation(var, eps, scale):
    """r = 1/√(v + ε s²), also where ε s² is too small to be added: the root of a sum of squares, not its square."""
    least = jnp.sqrt(eps) * scale
    square = var + least**2
    normal = square >= jnp.finfo(square.dtype).tiny
    return 1 / jnp.where(normal, jnp.sqrt(jnp.where(normal, square, 1)), least)


def _affine(channels, u, r, gamma, beta):
    g, b = (channels.along(a.astype(u.dtype), u) for a in (gamma.astype(r.dtype) * r, beta))
    return u * g + b  # (N3) and (N4)


def nonnegative(name: str, value: Any, dtype: Any) -> jax.Array:
    """A scalar of this dtype, at least 0 (a traced one is taken at its word)."""
    if not isinstance(value, (float, int, np.number, np.ndarray, jax.Array)) or jnp.ndim(value):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    number = jnp.asarray(value)
    if not (jnp.issubdtype(number.dtype, jnp.floating) or jnp.issubdtype(number.dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if not isinstance(number, Tracer) and not 0 <= float(number) < np.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
    return number.astype(dtype)
