"""The unit statistics are measured in: what keeps them from cancelling at large means and overflowing at 1e30.

A float32 mean of 1e4 is itself off by up to 5e-4, and the square of 1e20 is no float32. So the elements that share
statistics have a zero and a unit of their own, u = (x − K) s (derivation.md, N25), in which

    K   lies near the mean              m = mean u             →  μ  = K + m/s
    s   is a power of two, so exact     v = mean u² − m²       →  σ² = v/s²

About any K and s the moments are right as long as m² is at most a few v and nothing over- or underflows. So they are
measured once, with s = 1 and about a value that is assumed to be near the mean. If that proves wrong for any of them,
the range of x and its mean are found first, about which all are right; those that were good keep theirs. From there on
K is the mean and s the unit of deviations, in which no sum of the gradient is far from 1.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._checks import same_varying
from bnderiv._numbers import power_of_two_over
from bnderiv._target import apart
from bnderiv.normalization.groups import Groups

# The first measurement is kept where m² ≤ v, that is, where K is at most a deviation off: y is off by 1.6e-7 then, and
# by 2.6e-7 at two deviations. If all elements are equal, K may also be within either of these distances of them.
NEAR = 8  # eps times |K|: some units in the last place, as a running mean stops before it reaches a constant
OF_EPSILON = 1 / 2  # √(this times eps) √ε: a deviation that is taken for none by mistake has an x̂ below 3 eps
NOISE = 16  # eps times m²: a variance up to this may be the rounding of m² alone


class Unit(NamedTuple):
    """u = (x − K) s, as x s − K s: K s is finite, so the difference does not overflow where x − K would."""

    scale: Any  # s; 1, the number, before anything is known
    origin: jax.Array  # K s

    def of(self, x: jax.Array) -> jax.Array:
        """u."""
        return self.scaled(x.astype(self.origin.dtype)) - self.origin

    def scaled(self, a: jax.Array) -> jax.Array:
        """a s."""
        return a if isinstance(self.scale, int) else a * self.scale

    def unscaled(self, a: jax.Array) -> jax.Array:
        """a / s."""
        return a if isinstance(self.scale, int) else a / self.scale

    def back(self, du: jax.Array) -> jax.Array:
        """∂J/∂x, from `du` = ∂J/∂u."""
        return du * self.scale

    def root(self, eps: "Epsilon") -> jax.Array:
        """√ε s; of an array s at least the smallest normal number: its square is the same, 0 or ε s².

        Of the product alone, XLA would square the factors apart, and s² may overflow.
        """
        if isinstance(self.scale, int):
            return eps.root
        return jnp.maximum(eps.root * self.scale, jnp.finfo(self.scale.dtype).tiny)

    def inverse_root(self, var: jax.Array, eps: "Epsilon") -> jax.Array:
        """r = 1/√(v + ε s²)."""
        return lax.rsqrt(var + self.root(eps) ** 2)


class Epsilon(NamedTuple):
    """ε, by which the gradient is taken, and its root, which is a normal number where ε is subnormal (1e-40)."""

    value: jax.Array | None
    root: Any

    @staticmethod
    def of(eps: Any, dtype: Any) -> "Epsilon":
        """Of a number or a scalar array; the root is taken in the wider dtype."""
        if not isinstance(eps, jax.Array):
            eps = float(eps)
            root: Any = math.sqrt(eps)
        else:
            wider = eps.dtype if jnp.dtype(eps.dtype).itemsize > jnp.dtype(dtype).itemsize else dtype
            root = jnp.sqrt(jnp.asarray(eps, wider))
        return Epsilon(jnp.asarray(eps, dtype), jnp.asarray(root, dtype))


class Moments(NamedTuple):
    """Mean and variance of the elements that share statistics, in their unit.

    The unit has no derivative, as μ and σ² do not depend on it.
    """

    unit: Any  # a Unit; None in a gradient
    mean: jax.Array  # m
    var: jax.Array  # v


def masked(where: jax.Array | None, values: jax.Array) -> jax.Array:
    """`values` where True, elsewhere exactly zero."""
    return values if where is None else jnp.where(where, values, 0)


def measured(
    groups: Groups,
    x: jax.Array,
    where: jax.Array | None,
    eps: Epsilon,
    shift: jax.Array,
    mean_of: Callable[[Unit], jax.Array],
    var_of: Callable[[Unit, jax.Array], jax.Array],
) -> Moments:
    """The moments: in one read of x if `shift` is near the mean, otherwise in three more."""

    def about(unit: Unit) -> Moments:
        mean = mean_of(unit)
        # XLA would materialize what the two sums share.
        return Moments(unit, mean, var_of(Unit(unit.scale, apart(unit.origin)), mean))

    def closely() -> Moments:
        """Right for any x (N25): in the unit of the range the mean is found to a rounding error, and K is moved there."""
        unit = from_the_smallest(groups, x, where, shift.dtype)
        return centered(about(Unit(unit.scale, unit.origin + _finite(mean_of(unit)))), eps, groups.over_devices)

    _, shift = same_varying(x, _finite(shift))
    first = about(Unit(1, shift))
    return unless(are_good(first, eps), centered(first, eps, groups.over_devices), closely)


def unless(good: jax.Array, first: Any, again: Callable[[], Any]) -> Any:
    """The tree `first`, where it is `good`; elsewhere that of `again`, which is computed only if something is not good.

    What is good stays as it is, to the bit: no channel's result depends on the others.
    """

    def mixed() -> Any:
        # Of a branch that is elementwise but for its sums XLA would make a select, and so take it always.
        return jax.tree.map(partial(lax.select, good), first, apart(again()))

    return lax.cond(all_of(good), lambda: first, mixed)


@jax.custom_batching.custom_vmap
def all_of(good: jax.Array) -> jax.Array:
    """Whether all are true; under `vmap`, all of the whole batch: a branch remains one, where else both would run."""
    return jnp.all(good)


@all_of.def_vmap
def _(size: int, batched: list[bool], good: jax.Array) -> tuple[jax.Array, bool]:
    return all_of(good), False


def from_the_smallest(groups: Groups, x: jax.Array, where: jax.Array | None, dtype: Any) -> Unit:
    """The unit that has the smallest element at 0 and the largest between 1 and 2, or up to 8 if s can be no smaller."""
    low, high = (a.astype(dtype) for a in groups.range(x, where))
    low = _finite(low)
    scale = scale_for(high - low, low)
    return Unit(scale, low * scale)


def are_good(moments: Moments, eps: Epsilon) -> jax.Array:
    """Whether K was near enough to the mean, and squares neither over- nor underflowed."""
    unit, mean, var = moments
    root, deviation = unit.root(eps), jnp.sqrt(var)
    ulp = float(jnp.finfo(var.dtype).eps)
    close = jnp.maximum(NEAR * ulp * jnp.abs(unit.origin), math.sqrt(OF_EPSILON * ulp) * root)
    near = jnp.abs(mean) <= lax.select(var == 0, close, deviation)
    return near & fits(jnp.maximum(deviation, root))


def centered(moments: Moments, eps: Epsilon, over_devices: bool = False) -> Moments:
    """The moments about K' = μ rounded, in the unit of deviations.

    So x − K' has no more rounding than x − μ; m is what K' left of μ. Where all x are equal, K' is that x, and nothing
    is left.
    """
    unit, mean, var = moments
    origin = unit.origin + _finite(mean)
    left = lax.select(var == 0, jnp.zeros_like(mean), mean + (unit.origin - origin))
    size = jnp.maximum(jnp.sqrt(var), unit.root(eps))
    scale = scale_for(unit.unscaled(size), unit.unscaled(origin), over_devices)
    times = unit.unscaled(scale)
    return Moments(Unit(scale, origin * times), left * times, var * times * times)


def _finite(a: jax.Array) -> jax.Array:
    """A mean, or 0 for one that is not finite.

    The select also keeps XLA from fusing the mean's last product into a sum that follows: one kernel would get another
    mean than the next.
    """
    return lax.select(jnp.isfinite(a), a, jnp.zeros_like(a))


def above_noise(var: jax.Array, square: jax.Array) -> jax.Array:
    """v, but 0 where it may be the rounding of m² alone."""
    return lax.select(var <= NOISE * jnp.finfo(var.dtype).eps * square, jnp.zeros_like(var), var)


def fits(size: jax.Array) -> jax.Array:
    """Whether squares of deviations of a `size`, and their sums, neither over- nor underflow. NaN does not fit."""
    most = 2 * middle(size.dtype)
    return lax.clamp(jnp.asarray(1 / most, size.dtype), size, jnp.asarray(most, size.dtype)) == size


def scale_for(size: jax.Array, shift: Any = 0.0, over_devices: bool = False) -> jax.Array:
    """s: the power of two that brings deviations of `size` to between 1 and 2. What is not finite counts as large.

    It is smaller where K s would overflow; K is `shift`. (Where all are equal, deviations are 0 in any unit.)

    `over_devices`: the moments are yet to be merged. Their cotangents are multiplied by ratios of two devices' scales,
    and these must not underflow. So s is 1 while deviations lie between 1/middle and middle, and otherwise brings them
    to the nearer of the two. It is at most middle², also where nothing deviates.
    """
    if over_devices:
        widest = middle(size.dtype)
        size = jnp.maximum(lax.clamp(size / widest, jnp.ones_like(size), size * widest), widest**-2)
    most = 2.0 ** (jnp.finfo(size.dtype).maxexp - 2)
    return power_of_two_over(jnp.maximum(size, jnp.abs(shift) / most))


def middle(dtype: Any) -> float:
    """2³¹ in float32: between this and its inverse squares are normal numbers, and so are sums and cubes."""
    return 2.0 ** (-jnp.finfo(dtype).minexp // 4)
