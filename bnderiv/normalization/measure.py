"""Measures the moments: in one read of x about a value near the mean, otherwise in three more.

The first measurement shows whether its K was near enough (`are_good`). If not, the range of x and its mean are found
first; about that mean the moments are right for any x (derivation.md, C.4).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._checks import same_varying
from bnderiv._cpu import once
from bnderiv._gpu import with_a_sum
from bnderiv._target import apart
from bnderiv.normalization.groups import Groups
from bnderiv.normalization.row_unit import RowUnit, in_deviations
from bnderiv.normalization.units import (
    Epsilon,
    Moments,
    Unit,
    about_their_mean,
    above_noise,
    finite,
    masked,
    middle,
    rescaled,
    scale_for,
)

# The first measurement is kept if m² ≤ v, so if K is at most one deviation off: y is off by 1.6e-7 then, and by 2.6e-7
# at two deviations (derivation.md, C.4). If all elements are equal as far as v can tell, v is 0, and K may be a little
# off. A deviation that is taken for none by mistake is below √(NOISE ulp) times that distance:
NEAR = 8  # ulp · |K| times this: a running mean that moves to a constant stops some ulps before it
OF_EPSILON = 1 / 2  # but at least √(this times ulp) √ε: the x̂ of such a deviation is below 3 ulps
AT_MOST = 1 / 4  # and at most this times √ε: a few of 10⁵ elements may be an ulp off unseen, their x̂ by 16 ulps
# So a deviation up to √(NOISE ulp) AT_MOST √ε, 1.7e-4 √ε in float32, may count as 0.


def measured(
    groups: Groups,
    x: jax.Array,
    where: jax.Array | None,
    eps: Epsilon,
    shift: jax.Array,
    mean_of: Callable[[Unit], jax.Array],
    var_of: Callable[[Unit, jax.Array], jax.Array],
) -> Moments:
    """The moments: in one read of x if `shift`, the first K, is near the mean, otherwise in three more.

    `mean_of` gives m in a unit, `var_of` gives v, from the unit and m².
    """

    def about(unit: Unit) -> tuple[Moments, jax.Array]:
        """The moments, and m²."""
        # Two copies of K s: of one, XLA would materialize u, which both sums have.
        for_mean, for_var = (Unit(unit.scale, origin) for origin in apart((unit.origin, unit.origin)))
        mean = mean_of(for_mean)
        square = mean**2
        return Moments(for_mean, mean, var_of(for_var, square)), square

    def in_three_reads() -> Moments:
        """K moves to the mean, which in the unit of the range is right to rounding."""
        low, high = (a.astype(shift.dtype) for a in groups.ends(x, where))
        unit = of_range(finite(low), high, eps)
        moments, _ = about(Unit(unit.scale, unit.origin + finite(mean_of(unit))))
        return settled(groups, moments, eps)

    # By `once`: otherwise each kernel computes K, and may not round a product.
    first, square_of_mean = about(Unit(1, once(shift)))
    return unless(are_good(first, square_of_mean, eps), settled(groups, first, eps), in_three_reads)


def about_the_mean(groups: Groups, x: jax.Array, n: Any, eps: Epsilon, alone: bool) -> Moments:
    """The moments of rows about the mean, measured in the unit of the range: right for any x (derivation.md, C.4).

    If they are `alone`, without a gradient, they stay in it: XLA for a GPU computes y in the same kernel only if it
    starts from the u − m of the variance.
    """

    def mean_of(a: jax.Array) -> jax.Array:
        return groups.total(a) / n

    tiny, root = jnp.finfo(n.dtype).tiny, eps.root / 4
    low, high = (a.astype(n.dtype) / 4 for a in groups.ends(x, None))
    scale = jnp.maximum(1 / jnp.maximum(jnp.maximum(high - low, root), tiny), tiny)  # over the range, or over √ε
    quarter = low + mean_of(RowUnit(scale, low).of(x)) / scale
    u = RowUnit(scale, quarter).of(x)
    mean = mean_of(u)
    var = mean_of(with_a_sum(u - mean, groups.statistics) ** 2)
    r = lax.rsqrt(var + (root * scale) ** 2)
    if alone:
        return Moments(RowUnit(scale, quarter, r), mean, var)
    return Moments(RowUnit(scale * r, quarter), mean * r, var * r * r)


def about_zero_first(
    groups: Groups, x: jax.Array, where: jax.Array | None, n: Any, eps: Epsilon, again: Callable[[], Moments]
) -> Moments:
    """The moments about K = 0, if that is near the mean; otherwise `again()`.

    Such sums wait for nothing: XLA for a TPU takes them in the kernel that makes x, a matrix product say. And a sample
    of a row is an eighth of 1024 elements, as a TPU reads whole tiles.
    """
    u = masked(where, x.astype(n.dtype))
    mean = groups.total(u) / n
    square = mean**2
    first = Moments(Unit(1, jnp.zeros_like(mean)), mean, above_noise(groups.total(u**2) / n - square, square))
    moments = unless(are_good(first, square, eps), settled(groups, first, eps), again)
    if x.dtype != jnp.bfloat16:
        return moments
    # Without the remainder of the mean y is off by 2⁻⁷ of a rounding, and each vector costs: of rows of 96 elements an
    # eighth of the cycles.
    return moments._replace(mean=same_varying(moments.mean, jnp.zeros_like(mean))[1])


def settled(groups: Groups, moments: Moments, eps: Epsilon) -> Moments:
    """The moments about the mean, in the unit in which the gradient is computed."""
    moments = about_their_mean(moments)
    # Moments of several devices are merged in powers of two.
    if groups.both or groups.over_devices:
        return rescaled(moments, eps, groups.over_devices)
    return in_deviations(moments, eps)


def are_good(moments: Moments, square_of_mean: jax.Array, eps: Epsilon) -> jax.Array:
    """Whether K was near enough to the mean, and squares neither over- nor underflowed."""
    unit, _, var = moments
    ulp, square = float(jnp.finfo(var.dtype).eps), unit.root(eps) ** 2
    close = lax.clamp(OF_EPSILON * ulp * square, (NEAR * ulp * unit.origin) ** 2, AT_MOST**2 * square)
    near = square_of_mean <= lax.select(var > 0, var, close)
    return near & fits(jnp.maximum(var, square))


def fits(square: jax.Array) -> jax.Array:
    """Whether squares of deviations whose mean is `square`, and their sums, neither over- nor underflow. NaN: no."""
    most = (2 * middle(square.dtype)) ** 2
    return lax.clamp(jnp.asarray(1 / most, square.dtype), square, jnp.asarray(most, square.dtype)) == square


def of_range(low: jax.Array, high: jax.Array, eps: Epsilon) -> Unit:
    """The unit with the smallest element at 0, and the larger of range and √ε between 1 and 2.

    The largest element is up to 8 if s is already the smallest normal number.
    """
    scale = scale_for(jnp.maximum(high - low, eps.root), low)
    return Unit(scale, low * scale)


def unless(good: jax.Array, first: Any, again: Callable[[], Any]) -> Any:
    """The tree `first`, where it is `good`; elsewhere that of `again`, which is computed only if something is not good.

    Good values stay the same to the bit, so no channel depends on another. `again` must contain a value that is
    `apart`: XLA turns a branch of sums and elementwise operations into a select, and then always runs it.
    """
    return lax.cond(all_of(good), lambda: first, lambda: jax.tree.map(partial(lax.select, good), first, again()))


@jax.custom_batching.custom_vmap
def all_of(good: jax.Array) -> jax.Array:
    """Whether all are true, under `vmap` in the whole batch.

    So the result has no mapped axis, and a `cond` on it stays a branch. Otherwise JAX would compute both and select.
    """
    return jnp.all(good)


@all_of.def_vmap
def _(size: int, batched: list[bool], good: jax.Array) -> tuple[jax.Array, bool]:
    return all_of(good), False
