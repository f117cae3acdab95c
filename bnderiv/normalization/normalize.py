"""Normalization and its gradient in closed form (derivation.md, N1–N13, N22, N24, N25, N31): mathematics, nothing else.

Statistics are in a unit of their own, u = (x − K) s, from their sums to the centering (`units.py`). So `mean` and `var`
are m and v here; read K = 0 and s = 1 at first. `groups` says which elements share statistics, and which share gamma
and beta (`groups.py`). Every array has the rank of x and broadcasts against it. `delta` is ∂J/∂y, and `d_a` is ∂J/∂a.
"""

import jax.numpy as jnp
from jax import lax

from bnderiv._cpu import once, platform_layout, weighted_sum
from bnderiv._rule import both_modes, closed_form
from bnderiv._target import GPU, TPU, apart, widened
from bnderiv.activation.relu import rectify
from bnderiv.normalization.groups import Affine
from bnderiv.normalization.measure import about_the_mean, about_zero_first, measured
from bnderiv.normalization.rows import for_parameters_and_x, in_dx, rows
from bnderiv.normalization.sample import by_default_about_a_sample
from bnderiv.normalization.tpu_layout import tpu_layout
from bnderiv.normalization.units import Epsilon, Moments, above_noise, masked

# The statistics. Their backward is parts 2 and 3 of (N11): what reaches x through μ and σ².


@closed_form(static=1, inner=True)
@rows(on_gpu=about_the_mean, on_tpu=about_zero_first)
@platform_layout
@by_default_about_a_sample
@tpu_layout
def statistics(groups, x, where, n, eps, assumed_mean):
    """The `Moments` of x: in one read if the assumed mean is near (`measure.py`)."""

    def mean_of(unit):
        return groups.total(masked(where, groups.repeated(unit).of(x))) / n  # (N1)

    def var_of(unit, square_of_mean):
        mean_of_squares = groups.total(masked(where, groups.repeated(unit).of(x)) ** 2) / n
        # (N2). The difference loses one bit at most, as `measured` keeps no K that is far from the mean (C.4).
        return above_noise(mean_of_squares - square_of_mean, square_of_mean)

    return measured(groups, x, where, eps, assumed_mean, mean_of, var_of)


def _statistics_fwd(groups, x, where, n, eps, assumed_mean):
    with both_modes():  # the unit has no derivative: second derivatives need this rule
        moments = statistics(groups, x, where, n, eps, assumed_mean)
    return moments, (x, where, n, moments.unit, moments.mean)


@platform_layout
def _statistics_bwd(groups, residuals, d):
    x, where, n, unit, mean = residuals
    unit, mean, d_mean, d_var, n = groups.repeated((unit, mean, d.mean, d.var, n))
    slope = d_var * (2 / n)
    # (N11) parts 2 and 3, slope (u − m) + ∂J/∂m / n; by (N9) the m inside v adds nothing
    du = slope * masked(where, in_dx(groups, x, where, unit)) + (d_mean / n - slope * mean)
    dx = unit.back(masked(where, du))  # (N24), (N25). A loss on the statistics is in `d` (N13)
    return dx.astype(x.dtype), None, None, None, None


statistics.defvjp(_statistics_fwd, _statistics_bwd)


# The map. Its backward is part 1 of (N11), the parameters, and what arrives at the statistics.


@closed_form(static=2, inner=True)
def normalize(groups, relu, x, where, affine, eps, moments):
    """y = γ x̂ + β, plus the residual, through the ReLU if `relu`. The moments may be of x or given."""
    return _normalize_fwd(groups, relu, x, where, affine, eps, moments)[0]


def _normalize_fwd(groups, relu, x, where, affine, eps, grouped):
    # `grouped` and `grouped_r` have one number for each group; `moments` and `r` broadcast against x.
    grouped_r = grouped.unit.inverse_root(grouped.var, eps)
    moments, r = groups.repeated((grouped, grouped_r))
    u, g = moments.unit.of(x), affine.gamma * r
    y = groups.mapped(u, moments.mean, g, affine.beta)  # (N3), (N4)
    if where is not None:  # masked and not finite: y is a constant there, so that derivatives have no 0 · NaN
        usable = where | jnp.isfinite(u)
        mapped = groups.mapped(masked(usable, u), moments.mean, g, affine.beta)
        y = jnp.where(usable, mapped, lax.stop_gradient(y))
    z = affine.residual
    if z is not None:
        y = y + widened(z, y.dtype)  # (N31)
    a = (rectify(y) if relu else y).astype(x.dtype)
    # What the ReLU let through can be seen from x; after a sum with z from a, which the next layer keeps anyway. Of z
    # the backward needs the dtype alone.
    seen, like_z = (None, None) if z is None else (a, jnp.zeros((), z.dtype))
    return a, (x, where, Affine(affine.gamma, affine.beta, like_z), seen, grouped._replace(var=None), grouped_r)


@platform_layout
def _normalize_bwd(groups, relu, residuals, delta):
    x, where, (gamma, beta, like_z), a, grouped, grouped_r = residuals
    moments, r = groups.repeated((grouped, grouped_r))
    g = gamma * r

    def through_relu(unit, a):
        if not relu:
            return delta.astype(r.dtype)
        y = a if a is not None else unit.of(x) * g + (beta - moments.mean * g)  # as in the forward, to the bit
        return jnp.where(y > 0, delta, 0).astype(r.dtype)  # (N22)

    def sum_delta_x_hat(u):
        if where is not None:  # 0 · NaN is to be 0 in every sum
            u = masked(where | jnp.isfinite(u), u)
        return r * (groups.inner(delta_2 * u) - moments.mean * sum_delta)  # centered after the sum (D.5)

    unit = moments.unit
    uses = ((unit, a),) * 3
    if relu:  # each use rebuilds the mask. With a residual a TPU stores δ_y, which is the gradient of z
        uses = apart(uses, on=GPU + TPU if a is None else GPU)
    delta_1, delta_2, delta_y = (through_relu(*use) for use in uses)
    sum_delta = groups.inner(delta_1)
    for_gamma, for_var = for_parameters_and_x(groups, x, where, unit, sum_delta_x_hat)
    d_beta = groups.to_parameters(sum_delta)  # (N6)
    d_gamma = groups.to_parameters(for_gamma)  # (N5)
    d_var = once(-0.5 * grouped_r**2 * weighted_sum(groups, gamma, None, for_var))  # (N8)
    d_mean = -weighted_sum(groups, gamma, r, sum_delta)  # (N10)
    dx = unit.back(g * delta_y)  # (N7), (N11) part 1
    d_z = None if a is None else delta_y.astype(like_z.dtype)  # (N31)
    d_eps = Epsilon(groups.over_all(d_var * grouped.unit.scale * grouped.unit.scale), None)  # (N8); s² may overflow
    return dx.astype(x.dtype), None, Affine(d_gamma, d_beta, d_z), d_eps, Moments(None, d_mean, d_var)


normalize.defvjp(_normalize_fwd, _normalize_bwd)
