"""Mean and variance per channel that neither cancel nor overflow, and their gradient (derivation.md, N1, N2, N13, N25).

A float32 mean of 1e4 is itself off by up to 5e-4, and the square of 1e20 is no float32. So a channel's moments are
taken in units of its own, u = (x − K)·s, and travel like that from the statistics to the centring, backward included:

    K   the mean or near, a float             m = mean(u)             →  μ  = K + m/s
    s   a power of two, so exact, ≈ 1/|x|     v = mean(u²) − m²       →  σ² = v/s²

K and s are constants chosen near the data; whatever they are, μ and σ² are the same, so they carry no gradient.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv import _cpu
from bnderiv._checks import longer
from bnderiv._numbers import accumulator, power_of_two
from bnderiv._rule import closed_form
from bnderiv.normalization.channels import Channels
from bnderiv.normalization.running_stats import BatchStats


class Moments(NamedTuple):
    """Moments of each channel in its own units; (C,) each, in the accumulator's dtype."""

    count: jax.Array  # n
    shift: jax.Array  # K
    scale: jax.Array  # s
    mean: jax.Array  # m
    var: jax.Array  # v


def measure(channels: Channels, x: jax.Array, where: jax.Array | None, eps: jax.Array) -> Moments:
    """The moments of the True elements of `x` for each channel; all 0 for a channel without any."""
    n = _count(channels, x, where)
    moments: Any = _moments(channels, x, where, n, eps)
    return recentre(Moments(n, *moments))


@jax.jit
def recentre(moments: Moments) -> Moments:
    """The same moments about K' = μ rounded, so that equal elements are told to have no deviation at all.

    Where all x are equal, K' is that x exactly while K may be some roundings off; what is left of m then, and of v
    before, is smaller than their own rounding errors, and is zero.
    """
    n, shift, scale, mean, var = moments
    noise = 16 * jnp.finfo(mean.dtype).eps
    nearer = lax.stop_gradient(shift + mean / scale)
    left = mean + (shift - nearer) * scale
    left = left - lax.stop_gradient(jnp.where(jnp.abs(left) <= noise * jnp.abs(mean), left, 0))
    var = var - lax.stop_gradient(jnp.where(var <= noise * mean**2, var, 0))
    return Moments(n, nearer, scale, left, var)


@jax.jit
def batch_stats(moments: Moments) -> BatchStats:
    """The moments in the units of x."""
    n, shift, scale, mean, var = moments
    # Twice 1/s, which is exact: s² may underflow to 0 (as the divisor that XLA makes of two divisions), and 1/s²
    # overflow where the variance does; 0/0 or inf times a zero cotangent would be NaN.
    unit = 1 / scale
    return BatchStats(shift + mean * unit, var * unit * unit, lax.stop_gradient(n))


def masked(where: jax.Array | None, values: jax.Array) -> jax.Array:
    """`values` where True, else exactly zero, whatever stood there."""
    return values if where is None else jnp.where(where, values, 0)


@partial(jax.jit, static_argnums=0)
def _count(channels: Channels, x: jax.Array, where: jax.Array | None) -> jax.Array:
    number, dtype = channels.number(channels.view(x)), accumulator(x.dtype)
    all_of_them = x.size // number
    if where is None:
        return jnp.full((number,), all_of_them, dtype)
    # Counted in floats as long as these hold every integer: over a sharded batch, sums of one dtype are one message.
    exact = not longer(all_of_them, 2 ** (jnp.finfo(dtype).nmant + 1))
    ones = jnp.broadcast_to(where, x.shape).astype(dtype if exact else jnp.int32)
    return channels.sum(channels.view(ones)).astype(dtype)


# Every sum below has a power of two of its own in its terms. XLA computes the terms of a sum on the fly as long as
# nothing else wants them; equal expressions (even a vector laid along x) it finds, shares, and so writes out.


@partial(jax.jit, static_argnums=0)
def _units(channels, x, where, n, eps):
    """K, the mean rounded, and s, the power of two that brings the larger of mean |x| and √ε to about 1.

    The sums are of x·2⁻ᵏ with 2ᵏ above the number of elements (k = 32 if that is symbolic), so they cannot overflow.
    What s is taken from bounds the squares: (Σu)² ≥ Σu², and √ε·s ≤ 1.
    """
    x, where, dtype = channels.view(x), channels.mask(where), accumulator(x.dtype)
    elements = x.size // channels.number(x)
    small = 2.0 ** -(elements.bit_length() if isinstance(elements, int) else 32)
    wide, n = x.astype(dtype), jnp.maximum(n, 1)
    shift = channels.sum(masked(where, wide * small)) / (small * n)
    size = channels.sum(masked(where, jnp.abs(wide) * (small / 2))) / (small / 2 * n)
    # Without its last bit K is no longer a product. As one it is open to contraction: recomputed within a fusion that
    # subtracts it, product and difference become one FMA, which subtracts another K than the one that travels.
    info = jnp.finfo(dtype)
    shift = lax.reduce_precision(shift, info.nexp, info.nmant - 1)
    # So that s and 1/s are normal, and s times the few powers of two of the sums. A quotient, because XLA computes it
    # once for a channel (see `_cpu.quotient`).
    largest = 2.0 ** -(info.minexp + 6)
    return shift, 1 / jnp.clip(2 * power_of_two(jnp.maximum(size, jnp.sqrt(eps))), 1 / largest, largest)


def in_units(channels: Channels, x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """u = (x − K)·s, written so that the difference cannot overflow; s is a power of two, so the products are exact."""
    return x.astype(scale.dtype) * channels.along(scale, x) - channels.along(shift * scale, x)


def _measured(channels, x, where, n, eps):
    """K, s, m and v.

    Where two sweeps count, K and s are those of a sample. They are good if no square overflows and m² ≤ v, so that v is
    a difference of numbers at most twice its size; else all of x tells them.
    """

    def about(some, n_of_some):
        units = _units(channels, lax.stop_gradient(some), where, n_of_some, lax.stop_gradient(eps))
        return *units, *_mean_and_var(channels, x, where, n, *units)

    if not _sampled(channels, x, where):
        return about(x, n)
    sample = _sample(channels, x)
    *units, mean, var = about(sample, n * (sample.size / x.size))
    good = jnp.isfinite(var) & (mean**2 <= var)
    return lax.cond(good.all(), lambda: (*units, mean, var), lambda: about(x, n))


def _sampled(channels, x, where):
    """Whether `x` is large and on one device; with few channels, every digit counts (see `Channels.of`)."""
    number = channels.number(channels.view(x))
    large = isinstance(x.size, int) and x.size >= 2**20 and x.size >= 512 * number and number >= 16
    return large and where is None and _cpu.on_cpu() and _cpu.on_one_device()


def _sample(channels, x):
    """Every eighth row of each image; without rows, every eighth example."""
    axis = next((i for i in range(1, x.ndim) if i != channels.axis), 0)
    return lax.slice_in_dim(x, x.shape[axis] // 2 % 8, None, 8, axis)


def _mean_and_var(channels, x, where, n, shift, scale):
    x, where, n = channels.view(x), channels.mask(where), jnp.maximum(n, 1)
    mean = channels.sum(masked(where, in_units(channels, x, shift, 2 * scale))) / (2 * n)  # (N1)
    square = channels.sum(jnp.square(masked(where, in_units(channels, x, shift, 4 * scale)))) / (16 * n)
    return mean, jnp.maximum(square - mean**2, 0)  # (N2)


_moments = closed_form(_measured, static=1)


def _moments_fwd(channels, x, where, n, eps):
    shift, scale, mean, var = _measured(channels, x, where, n, eps)
    return (shift, scale, mean, var), (x, where, n, shift, scale, mean)


def _moments_bwd(channels, residuals, cotangents):
    x, where, n, shift, scale, mean = residuals
    _, _, d_mean, d_var = cotangents  # whatever K and s are, μ and σ² are the same
    shape, x, where, n = x.shape, channels.view(x), channels.mask(where), jnp.maximum(n, 1)
    u = masked(where, in_units(channels, x, shift, scale)) - channels.along(mean, x)
    # (N13): ∂m/∂x = s/n and ∂v/∂x = 2 s (u − m)/n; (N9) is why the mean inside v adds nothing.
    dx = channels.along(d_mean / n, x) + channels.along(2 * d_var / n, x) * u
    dx = masked(where, dx * channels.along(scale, x))
    return dx.astype(x.dtype).reshape(shape), None, None, None


_moments.defvjp(_moments_fwd, _moments_bwd)
