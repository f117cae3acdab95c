"""Normalization and its gradient in closed form (derivation.md, N1–N13, N22, N24–N26, N31): mathematics, nothing else.

Statistics travel in a unit of their own, u = (x − K) s, from their sums to the centring (`units.py`); who shares
them, and who shares gamma and beta, is said by `groups` (`groups.py`). Everything here has the rank of x and
broadcasts against it. In the code `delta` is ∂J/∂y, and `d_a` is ∂J/∂a.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._cpu import apart, once, platform_layout
from bnderiv._rule import both_modes, closed_form
from bnderiv.activation.relu import rectify
from bnderiv.normalization.sample import sample_mean
from bnderiv.normalization.units import Epsilon, above_noise, masked, measured


class Moments(NamedTuple):
    """The moments of the elements that share statistics, in the unit u = (x − K) s."""

    unit: Any  # a Unit. K near the mean, s a power of two: constants, as μ and σ² do not depend on them
    mean: jax.Array  # m = mean u            μ  = K + m/s
    var: jax.Array  # v = mean (u − m)²      σ² = v/s²


class Affine(NamedTuple):
    """What makes y of x̂."""

    gamma: jax.Array
    beta: jax.Array
    residual: jax.Array | None = None  # z, of the shape of x


# The statistics. Their backward is parts 2 and 3 of (N11): what reaches x through μ and σ².


@closed_form(static=1, inner=True)
@platform_layout
def statistics(groups, x, where, n, eps, assumed_mean):
    quarter = n / 4

    def mean_and_var(unit):
        unit = groups.laid(unit)
        mean = groups.total(masked(where, unit.of(x))) / n  # (N1)
        # Half of u: XLA would share identical terms of the two sums, and materialize them.
        mean_square = groups.total(masked(where, unit.of(x, 1 / 2)) ** 2) / quarter
        square = mean**2
        return mean, above_noise(mean_square - square, square)  # (N2)

    shift = sample_mean(groups, x, where) if assumed_mean is None else assumed_mean
    return Moments(*measured(x, shift, eps, mean_and_var))


def _statistics_fwd(groups, x, where, n, eps, assumed_mean):
    with both_modes():  # a loop has no reverse mode: second derivatives need this rule
        moments = statistics(groups, x, where, n, eps, assumed_mean)
    return moments, (x, where, n, moments.unit, moments.mean)


@platform_layout
def _statistics_bwd(groups, residuals, d):
    x, where, n, *own = residuals
    unit, mean, d_mean, d_var, n = groups.laid((*own, d.mean, d.var, n))
    deviation = masked(where, unit.of(x)) - mean
    du = d_mean + 2 * d_var * deviation  # (N13); by (N9) the mean inside the variance adds nothing
    dx = unit.back(masked(where, du / n))  # (N11) parts 2 and 3
    return dx.astype(x.dtype), None, None, None, None


statistics.defvjp(_statistics_fwd, _statistics_bwd)


# The map. Its backward is part 1 of (N11), the parameters, and what arrives at the statistics.


@closed_form(static=2, inner=True)
def normalize(groups, relu, x, where, affine, eps, moments):
    r = moments.unit.inverse_root(moments.var, eps)
    return _normalize(relu, x, where, affine, *groups.laid((moments, r)))


def _normalize(relu, x, where, affine, moments, r):
    u, g = moments.unit.of(x) - moments.mean, affine.gamma * r
    y = u * g + affine.beta  # (N3), (N4)
    if where is not None:  # the same map at a masked u that is not finite, but apart: 0 · NaN is to be 0 in derivatives
        usable = where | jnp.isfinite(u)
        y = jnp.where(usable, masked(usable, u) * g + affine.beta, lax.stop_gradient(y))
    y = _plus(y, affine.residual)
    return (rectify(y) if relu else y).astype(x.dtype)


def _plus(y, residual, times: Any = 1):
    return y if residual is None else y + residual.astype(y.dtype) * times  # (N31)


def _normalize_fwd(groups, relu, x, where, affine, eps, moments):
    r = moments.unit.inverse_root(moments.var, eps)
    return _normalize(relu, x, where, affine, *groups.laid((moments, r))), (x, where, affine, moments, r)


@platform_layout
def _normalize_bwd(groups, relu, residuals, delta):
    x, where, (gamma, beta, z), own, own_r = residuals
    moments, r = groups.laid((own, own_r))
    g = gamma * r

    def masked_delta(times):
        if not relu:
            return delta
        times = apart(times, r.dtype)
        y = _plus((moments.unit.of(x) - moments.mean) * (g * times) + beta * times, z, times)
        return jnp.where(y > 0, delta, 0)  # (N22)

    # The sums have masks and a u of their own, as XLA would share and materialize what dx and the forward have, too.
    # With a residual, δ_y is materialized anyway, as the gradient of z.
    unit, r_near_one = moments.unit.near_one(r)
    u = unit.of(x)
    if where is not None:  # 0 · NaN is to be 0 in every sum
        u = masked(where | jnp.isfinite(u), u)
    delta_1, delta_2, delta = (masked_delta(times if z is None else 1 / 2) for times in (1 / 4, 1 / 8, 1 / 2))
    sum_delta = groups.inner(delta_1.astype(r.dtype))
    # Of x̂ = r (u − m), r and m stand outside of the sum: m is what K left.
    sum_delta_x_hat = r_near_one * groups.inner(delta_2.astype(r.dtype) * u) - r * moments.mean * sum_delta
    d_beta = groups.to_parameters(sum_delta)  # (N6)
    d_gamma = groups.to_parameters(sum_delta_x_hat)  # (N5)
    d_var = once(-0.5 * (own_r * (own_r * groups.to_statistics(gamma * sum_delta_x_hat))))  # (N8)
    d_mean = -groups.to_statistics(g * sum_delta)  # (N10)
    dx = moments.unit.back(g * delta.astype(r.dtype))  # (N11) part 1
    d_z = None if z is None else delta.astype(z.dtype)  # (N31)
    d_eps = Epsilon(groups.over_all(d_var * own.unit.scale**2), None)
    return dx.astype(x.dtype), None, Affine(d_gamma, d_beta, d_z), d_eps, Moments(None, d_mean, d_var)


normalize.defvjp(_normalize_fwd, _normalize_bwd)
