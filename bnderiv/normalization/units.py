"""The unit statistics are measured in: what keeps them from cancelling at large means and overflowing at 1e30.

A float32 mean of 1e4 is itself off by up to 5e-4, and the square of 1e20 is no float32. So the elements that share
statistics are measured by u = (x − K) s (derivation.md, C.4), in which

    K   lies near the mean              m = mean u             →  μ  = K + m/s
    s   is a power of two, so exact     v = mean u² − m²       →  σ² = v/s²     (of rows: `row_unit.py`)

About any K and s the moments are right as long as m² is at most a few v and nothing over- or underflows. So they are
measured about a K that is near the mean (`measure.py`). From there on K is the mean and s the unit of deviations, in
which no sum of the gradient is far from 1.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._numbers import power_of_two_over

NOISE = 4  # eps times m²: a variance up to this may be the rounding of m² alone. (Measured: up to 2.2 for constants.)


class Unit(NamedTuple):
    """u = (x − K) s, as x s − K s: K s is finite, so the difference does not overflow where x − K would."""

    scale: Any  # s; the Python number 1 in a first measurement
    origin: Any  # K s; None if K is 0

    def of(self, x: jax.Array) -> jax.Array:
        """u."""
        if self.origin is None:
            return x.astype(self.scale.dtype) * self.scale
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
        """√ε s. If s is an array, at least the smallest normal number, whose square is 0.

        Without the maximum, XLA would square √ε and s apart, and s² may overflow.
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

    unit: Any  # a Unit, or a RowUnit; None in a gradient
    mean: jax.Array  # m
    var: jax.Array  # v


def masked(where: jax.Array | None, values: jax.Array) -> jax.Array:
    """`values` where True, elsewhere exactly zero."""
    return values if where is None else jnp.where(where, values, 0)


def about_their_mean(moments: Moments) -> Moments:
    """The moments about K' = μ rounded. So x − K' is rounded no more than x − μ.

    The new m is the remainder of μ that K' cannot hold: 0 if all x are equal.
    """
    unit, mean, var = moments
    origin = unit.origin + finite(mean)
    remainder = lax.select(var > 0, mean + (unit.origin - origin), var)
    return Moments(Unit(unit.scale, origin), remainder, var)


def rescaled(moments: Moments, eps: Epsilon, over_devices: bool = False) -> Moments:
    """The moments in the power of two that brings √(σ² + ε) to between 1 and 2 (`scale_for`)."""
    unit, mean, var = moments
    size = jnp.maximum(jnp.sqrt(var), unit.root(eps))
    scale = scale_for(unit.unscaled(size), unit.unscaled(unit.origin), over_devices)
    ratio = unit.unscaled(scale)
    return Moments(Unit(scale, unit.origin * ratio), mean * ratio, var * ratio * ratio)


def finite(a: jax.Array) -> jax.Array:
    """A mean, or 0 for one that is not finite.

    The select also keeps XLA from fusing the mean's last product into a later sum: two kernels could then have
    different means.
    """
    return lax.select(jnp.isfinite(a), a, jnp.zeros_like(a))


def above_noise(var: jax.Array, square: jax.Array) -> jax.Array:
    """v, but 0 where it may be the rounding of m² alone."""
    return lax.select(var <= NOISE * jnp.finfo(var.dtype).eps * square, jnp.zeros_like(var), var)


def scale_for(size: jax.Array, shift: Any = 0.0, over_devices: bool = False) -> jax.Array:
    """s: the power of two that brings deviations of `size` to between 1 and 2.

    It is smaller if K s would overflow; K is `shift`. What is not finite counts as large.

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
