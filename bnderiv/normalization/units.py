"""The unit statistics are measured in: what keeps them from cancelling at large means and overflowing at 1e30.

A float32 mean of 1e4 is itself off by up to 5e-4, and the square of 1e20 is no float32. So the elements that share
statistics have a zero and a unit of their own, u = (x − K) s (derivation.md, N25), in which

    K   lies near the mean              m = mean u             →  μ  = K + m/s
    s   is a power of two, so exact     v = mean u² − m²       →  σ² = v/s²

About any K and s the moments are right as long as m² is at most a few v and nothing over- or underflows. So they are
measured once, about a value that is assumed to be near the mean, and again only where that proves wrong.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._checks import same_varying
from bnderiv._numbers import power_of_two

# The first measurement is kept where m² ≤ v, that is, where K is at most a deviation off: y is off by 1.6e-7 then, and
# by 2.6e-7 at two deviations. If all elements are equal, K may also be within either of these distances of them.
NEAR = 2.0**-20  # times |K|: some units in the last place, as a running mean stops before it reaches a constant
OF_EPSILON = 2.0**-12  # times √ε: what is taken for equal by mistake has an x̂ below 4e-7
# A variance below this part of m² is not told from rounding.
NOISE = 16
# Reads of x for one measurement: a bound of the loop. Two are the rule; a guess of 1e228 for numbers around 1 took 16.
MOST_READS = 24


class Unit(NamedTuple):
    """u = (x − K) s, as x s − K s: K s is finite, so the difference does not overflow where x − K would."""

    scale: Any  # s
    origin: jax.Array  # K s

    def of(self, x: jax.Array, times: float = 1.0) -> jax.Array:
        """u, `times` a power of two."""
        scale, origin = self if times == 1 else (self.scale * times, self.origin * times)
        return x.astype(origin.dtype) * scale - origin

    def back(self, du: jax.Array) -> jax.Array:
        """The gradient by x of what has the gradient `du` by u."""
        return du * self.scale

    def near_one(self, r: jax.Array) -> tuple["Unit", jax.Array]:
        """The unit in which deviations are about 1, so that no sum over- or underflows for it; and r in that unit.

        But K s stays finite in it: where all are equal, deviations are 0 in any unit.
        """
        most = 2.0 ** (jnp.finfo(r.dtype).maxexp - 2)
        times = power_of_two(jnp.minimum(4 * r, most / jnp.abs(self.origin)))  # 4 r, as r s may be subnormal
        return Unit(self.scale * times, self.origin * times), r / times

    def root(self, eps: "Epsilon") -> jax.Array:
        """√ε s, at least the smallest normal number: its square is the same, 0 or ε s².

        Of the product alone, XLA would square the factors apart, and s² may overflow.
        """
        root = eps.root * self.scale
        return jnp.maximum(root, jnp.finfo(root.dtype).tiny)

    def inverse_root(self, var: jax.Array, eps: "Epsilon") -> jax.Array:
        """r = 1/√(v + ε s²)."""
        return 1 / jnp.sqrt(var + self.root(eps) ** 2)


class Epsilon(NamedTuple):
    """ε, by which the gradient is taken, and its root, which is a normal number where ε is subnormal (1e-40)."""

    value: jax.Array
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


def masked(where: jax.Array | None, values: jax.Array) -> jax.Array:
    """`values` where True, elsewhere exactly zero."""
    return values if where is None else jnp.where(where, values, 0)


def measured(
    x: jax.Array,
    shift: jax.Array,
    eps: Epsilon,
    mean_and_var: Callable[[Unit], tuple[jax.Array, jax.Array]],
) -> tuple[Unit, jax.Array, jax.Array]:
    """A unit, and m and v in it by `mean_and_var`: in one read of x if `shift` is near the mean.

    Otherwise x is read again for each better unit: once if K was far, some more times if it was off by many orders of
    magnitude.
    """
    # A sum over anything larger might overflow. Nothing is known from a NaN.
    plausible = jnp.abs(shift) < float(jnp.finfo(shift.dtype).max) ** 0.75
    _, shift, one = same_varying(x, lax.select(plausible, shift, jnp.zeros_like(shift)), jnp.ones_like(shift))

    def measure(unit: Unit) -> Any:
        mean, var = mean_and_var(unit)
        root = unit.root(eps)
        near = _is_near(unit, mean, var, root)
        return near & fits(var, root), near, (unit, mean, var)

    def measure_again(state: Any) -> Any:
        reads, done, near, (old, mean, var) = state
        unit = jax.tree.map(partial(lax.select, done), old, _better(old, mean, var, near, eps))
        given_up = (unit.origin == old.origin) & (unit.scale == old.scale)
        good, near, found = measure(unit)
        return reads + 1, good | given_up, near, found

    def until_done() -> Any:
        start = 1, good, near, first
        return lax.while_loop(lambda state: (state[0] < MOST_READS) & jnp.any(~state[1]), measure_again, start)[-1]

    good, near, first = measure(Unit(one, shift))
    return lax.cond(jnp.all(good), lambda: about_the_mean(*first), lambda: about_the_mean(*until_done()))


def _is_near(unit: Unit, mean: jax.Array, var: jax.Array, root: jax.Array) -> jax.Array:
    """Whether K is near the mean. Not so for NaN."""
    close = jnp.maximum(NEAR * jnp.abs(unit.origin), OF_EPSILON * root)
    return jnp.abs(mean) <= lax.select(var == 0, close, jnp.sqrt(var))


def fits(var: jax.Array, root: jax.Array) -> jax.Array:
    """Whether v and √ε s are such that nothing over- or underflows in s: as `scale_for` makes it. Not so for NaN."""
    most = 2 * _middle(jnp.finfo(var.dtype))
    square = var + root**2
    return _clamped(square, most**-2, most**2) == square


def _better(unit: Unit, mean: jax.Array, var: jax.Array, near: jax.Array, eps: Epsilon) -> Unit:
    """K moved to the mean as far as it is known, and s for what was found to deviate from K, or for ε.

    Where all are equal nothing deviates: s is for ε alone then, and not for the 1e30 that K was off from 1e36. But K s
    does not overflow.
    """
    back = 1 / unit.scale
    shift = (unit.origin + mean) * back
    shift = lax.select(jnp.isfinite(shift), shift, unit.origin * back)
    size = jnp.maximum(jnp.abs(mean), jnp.sqrt(var)) * back
    size = lax.select(near & (var == 0), jnp.zeros_like(size), size)
    most = 2.0 ** (jnp.finfo(size.dtype).maxexp - 2)
    scale = jnp.minimum(scale_for(jnp.maximum(size, eps.root)), power_of_two(most / jnp.abs(shift)))
    return Unit(scale, shift * scale)


def scale_for(size: jax.Array) -> jax.Array:
    """1 for numbers in the middle of the dtype's range, for others the power of two that brings them there.

    The middle are 2⁻³¹ to 2³¹ in float32: their squares are normal, and so are sums and cubes.
    """
    info = jnp.finfo(size.dtype)
    power = _clamped(power_of_two(size), info.tiny, 2.0 ** (info.maxexp - 1))
    return _clamped(power, 1 / _middle(info), _middle(info)) / power


def _clamped(a: jax.Array, least: Any, most: Any) -> jax.Array:
    return lax.clamp(jnp.asarray(least, a.dtype), a, jnp.asarray(most, a.dtype))


def _middle(info: Any) -> float:
    return 2.0 ** (-info.minexp // 4)


def above_noise(var: jax.Array, square: jax.Array) -> jax.Array:
    """v, but 0 where it is not told from the rounding of m²."""
    return lax.select(var <= NOISE * jnp.finfo(var.dtype).eps * square, jnp.zeros_like(var), var)


def about_the_mean(unit: Unit, mean: jax.Array, var: jax.Array) -> tuple[Unit, jax.Array, jax.Array]:
    """The moments about K' = μ rounded, so that x − K' has no more rounding than x − μ; m is what K' left of μ.

    Where all x are equal, K' is that x, and nothing is left.
    """
    origin = unit.origin + mean
    left = mean + (unit.origin - origin)
    return Unit(unit.scale, origin), lax.select(var == 0, jnp.zeros_like(left), left), var
