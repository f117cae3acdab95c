"""Root mean square normalization, layer norm without the centering, and its gradient (derivation.md, N35, N36)."""

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv import _checks
from bnderiv._checks import same_varying
from bnderiv._cpu import weighted_sum
from bnderiv._gpu import with_a_sum
from bnderiv._numbers import accumulator
from bnderiv._rule import both_modes, closed_form, layer
from bnderiv._target import apart
from bnderiv._types import Axes
from bnderiv.normalization.arguments import epsilon, laid, normalized_axes, parameter
from bnderiv.normalization.groups import Groups
from bnderiv.normalization.measure import all_of, fits
from bnderiv.normalization.row_unit import RowUnit
from bnderiv.normalization.rows import for_parameters_and_x, in_dx, rows
from bnderiv.normalization.tpu_layout import tpu_layout
from bnderiv.normalization.units import Epsilon, Unit, masked, scale_for


def rms_norm(
    x: jax.Array,
    gamma: jax.Array | None,
    *,
    axis: Axes = -1,
    eps: float | jax.Array = 1e-6,
) -> jax.Array:
    """Divides each example by the root mean square of its features: y = γ x/√(q + ε), q = mean x².

    The mean is over `axis`, separately at every place of the other axes. With ĝ = γ δ, δ = ∂J/∂y, and x̂ = x/√(q + ε),

        ∂J/∂x = 1/√(q+ε) · (ĝ − x̂ · mean(ĝ x̂)),   ∂J/∂γ = Σ δ x̂

    (derivation.md, N36), as in layer norm without the terms of the mean. In float32, y and ∂J/∂x are right to 2e-7 at
    any scale that the dtype holds. NaN and infinity stay in their example.

    Args:
      x: rank 1 or more, floating dtype. Half precision is computed in float32.
      gamma: γ, the shape of x along `axis`: (C,) for one axis. None stands for 1.
      axis: the axis of the features, or several.
      eps: ε, added to the mean square; at least 0.

    Returns:
      y, in the shape and dtype of `x`.

    Raises:
      TypeError: a dtype that is not floating.
      ValueError: shapes that do not fit, an axis out of range or named twice, an empty `x`, a negative `eps`.

    Example:
      >>> x = jnp.array([[2e30, -2e30], [4.0, 4.0]])
      >>> bnderiv.rms_norm(x, None, eps=0).round(4).tolist()
      [[1.0, -1.0], [1.0, 1.0]]
    """
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 1, "features")
    _checks.nonempty("x", x)
    axes = normalized_axes(axis, x.ndim)
    return _rms_norm(axes, x, parameter("gamma", gamma, x, axes, 1), *epsilon(eps, x))


@layer(static=1, result=lambda axes, x, *_: x)
def _rms_norm(axes, x, gamma, eps, root):
    groups = Groups(both=(), statistics=axes, parameters=tuple(i for i in range(x.ndim) if i not in axes))
    return by_root_mean_square(groups, x, None, groups.count(x, None), laid(x, axes, gamma), None, Epsilon(eps, root))


@closed_form(static=1, inner=True)
def by_root_mean_square(groups, x, where, n, gamma, beta, eps):
    """y = γ x̂ + β (or without β), of the rank of x like γ and β; `n`, at least 1, counts what shares a mean."""
    return _forward(x, where, gamma, beta, eps, *mean_square(groups, x, where, n, eps))[0]


def _forward(x, where, gamma, beta, eps, unit, square):
    unit = RowUnit(unit.scaled(4 * unit.inverse_root(square, eps)), None)  # u = x̂

    def of(x):
        y = unit.of(x) * gamma  # (N35)
        return y if beta is None else y + beta

    y = of(x)
    if where is not None:  # masked and not finite: y is a constant there, so that derivatives have no 0 · NaN
        usable = where | jnp.isfinite(x)
        y = jnp.where(usable, of(masked(usable, x)), lax.stop_gradient(y))
    return y.astype(x.dtype), unit


def _by_root_mean_square_fwd(groups, x, where, n, gamma, beta, eps):
    with both_modes():  # the unit has no derivative: second derivatives need this rule
        unit, square = mean_square(groups, x, where, n, eps)
    y, unit = _forward(x, where, gamma, beta, eps, unit, square)
    return y, (x, where, n, gamma, beta, unit)


def _by_root_mean_square_bwd(groups, residuals, delta):
    x, where, n, gamma, beta, unit = residuals
    delta, dtype = delta.astype(unit.quadruple.dtype), x.dtype
    if where is not None:  # 0 · NaN is to be 0 in every sum
        x = masked(where | jnp.isfinite(x), x)
    x_hat = in_dx(groups, x, where, unit)
    for_gamma, for_x = for_parameters_and_x(groups, x, where, unit, lambda x_hat: groups.inner(delta * x_hat))
    d_gamma = groups.to_parameters(for_gamma)  # (N36)
    d_beta = None if beta is None else groups.to_parameters(groups.inner(delta))  # (N6)
    sum_g_x_hat = weighted_sum(groups, gamma, None, for_x)  # Σ ĝ x̂, ĝ = γ δ
    dx = unit.back(gamma * delta - masked(where, x_hat) * (sum_g_x_hat / n))  # (N36)
    d_eps = groups.over_all(-0.5 * sum_g_x_hat * unit.scale * unit.scale)  # as ∂J/∂q; s² alone may overflow
    return dx.astype(dtype), None, None, d_gamma, d_beta, Epsilon(d_eps, None)


by_root_mean_square.defvjp(_by_root_mean_square_fwd, _by_root_mean_square_bwd)


def about_zero(groups, x, n, eps, alone):
    """A unit about zero, u = x s, by the largest |x| of each group, and mean u²."""
    largest, tiny = groups.reduce(lax.reduce_max, jnp.abs(x)).astype(n.dtype), jnp.finfo(n.dtype).tiny
    unit = Unit(jnp.maximum(1 / jnp.maximum(jnp.maximum(largest, eps.root), tiny), tiny), None)
    return unit, groups.total(with_a_sum(unit.of(x), groups.statistics) ** 2) / n


@closed_form(static=1, inner=True)
@rows(on_gpu=about_zero)
@tpu_layout
def mean_square(groups, x, where, n, eps):
    """A unit about zero, u = x s, and mean u²: one read of x if s = 1 fits every group.

    Otherwise two more: for the largest |x| of each group, and for mean u² with the s that brings it to 1.
    """
    shape = tuple(1 if i in groups.reduced else size for i, size in enumerate(x.shape))
    _, one = same_varying(x, jnp.ones_like(x, accumulator(x.dtype), shape=shape))

    def measure(scale):
        return scale, groups.total(masked(where, Unit(scale, None).of(x)) ** 2) / n

    def is_good(scale, square):
        return fits(jnp.maximum(square, Unit(scale, None).root(eps) ** 2))

    def measure_again():
        largest = apart(groups.reduce(lax.reduce_max, jnp.abs(masked(where, x)))).astype(one.dtype)
        return measure(scale_for(jnp.maximum(largest, eps.root), over_devices=groups.over_devices))

    first = measure(one)
    # Measured again, a row that fitted keeps its bits, as s is a power of two.
    scale, square = lax.cond(all_of(is_good(*first)), lambda: first, measure_again)
    return Unit(scale, None), square


def _mean_square_fwd(groups, x, where, n, eps):
    with both_modes():
        unit, square = mean_square(groups, x, where, n, eps)
    return (unit, square), (x, where, n, unit)


def _mean_square_bwd(groups, residuals, d):
    x, where, n, unit = residuals
    dx = unit.back(2 * masked(where, unit.of(x)) * (d[1] / n))
    return dx.astype(x.dtype), None, None, None


mean_square.defvjp(_mean_square_fwd, _mean_square_bwd)
