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
from bnderiv.normalization.groups import Groups

# The first measurement is kept where m² ≤ v, that is, where K is at most a deviation off: y is off by 1.6e-7 then, and
# by 2.6e-7 at two deviations. All elements may also be equal, and then K within either of these distances of them.
NEAR = 2.0**-20  # times |K|: some units in the last place, as a running mean stops before it reaches a constant
OF_EPSILON = 2.0**-12  # times √ε: what is taken for equal by mistake has an x̂ below 4e-7
# A variance below this part of m² is not told from rounding.
NOISE = 16
# A root of ε from here on has a square that is normal, so that constants as large as the dtype holds keep s = 1.
LEAST_ROOT = 2.0**-50
# Elements a sample has at least: its mean is off by about σ/4 then, and σ is near enough.
SAMPLE = 16


class Unit(NamedTuple):
    """u = (x − K) s."""

    shift: jax.Array  # K
    scale: Any  # s

    def of(self, x: jax.Array, times: float = 1.0) -> jax.Array:
        """u `times` a power of two, in a form in which the difference cannot overflow."""
        s = self.scale if times == 1 else self.scale * times
        return x.astype(self.shift.dtype) * s - self.shift * s

    def back(self, du: jax.Array) -> jax.Array:
        """The gradient by x of what has the gradient `du` by u."""
        return du * self.scale

    def inverse_root(self, var: jax.Array, eps: "Epsilon") -> jax.Array:
        """r = 1/√(v + ε s²)."""
        return 1 / jnp.sqrt(var + (eps.root * self.scale) ** 2)


class Epsilon(NamedTuple):
    """ε, by which the gradient is taken, and its root, which is a normal number where ε is none (1e-40)."""

    value: jax.Array
    root: Any

    @staticmethod
    def of(eps: Any, dtype: Any) -> "Epsilon":
        """Of a number or a scalar array; the root is taken in the wider dtype."""
        if isinstance(eps, (float, int)):
            root: Any = math.sqrt(eps)
        else:
            wider = eps.dtype if jnp.dtype(eps.dtype).itemsize > jnp.dtype(dtype).itemsize else dtype
            root = jnp.sqrt(jnp.asarray(eps, wider))
        return Epsilon(jnp.asarray(eps, dtype), jnp.asarray(root, dtype))


def masked(where: jax.Array | None, values: jax.Array) -> jax.Array:
    """`values` where True, elsewhere exactly zero."""
    return values if where is None else jnp.where(where, values, 0)


def measured(
    groups: Groups,
    x: jax.Array,
    where: jax.Array | None,
    n: jax.Array,
    eps: Epsilon,
    assumed_mean: jax.Array | None,
    mean_and_var: Callable[[Unit], tuple[jax.Array, jax.Array]],
) -> tuple[Unit, jax.Array, jax.Array]:
    """A unit, and m and v in it by `mean_and_var`.

    In one read of x if the assumed mean, or a sample's, is near. Otherwise in three more, for K, for s, for m and v.
    """
    constant = lax.stop_gradient(x)
    shift = _sample_mean(groups, constant, where) if assumed_mean is None else assumed_mean
    _, shift, one = same_varying(x, shift, jnp.ones_like(shift))
    unit = Unit(shift, one)
    once = unit, *mean_and_var(unit)
    good = _is_good(unit, *lax.stop_gradient(once[1:]), eps)

    def again() -> Any:
        # XLA:GPU runs both branches of a conditional whose operations are all cheap. The barrier is not, to it.
        unit = lax.optimization_barrier(_from_all(groups, constant, where, n, eps))
        chosen = jax.tree.map(partial(lax.select, good), once, (unit, *mean_and_var(unit)))
        return constants_apart(*about_the_mean(*chosen), scale_for(eps.root, least=LEAST_ROOT))

    return lax.cond(_all(good), lambda: about_the_mean(*once), again)


def _is_good(unit: Unit, mean: jax.Array, var: jax.Array, eps: Epsilon) -> jax.Array:
    info = jnp.finfo(var.dtype)
    close = jnp.maximum(NEAR * jnp.abs(unit.shift), OF_EPSILON * eps.root)
    equal = (jnp.abs(mean) <= close) & (var <= NOISE * info.eps * mean**2)
    # In the middle of the dtype's range nothing over- or underflows on the way back (see `scale_for`). Not so for NaN.
    middle = (var + eps.value >= _middle(info) ** -2) & (var <= _middle(info) ** 2)
    return ((mean**2 <= var) | equal) & middle


@jax.custom_batching.custom_vmap
def _all(good: jax.Array) -> jax.Array:
    return good.all()


@_all.def_vmap
def _(axis_size: int, in_batched: Any, good: jax.Array) -> tuple[jax.Array, bool]:
    """Under `vmap` the whole batch is measured again if any of it is: a branch that is not taken costs nothing."""
    return _all(good), False


def _sample_mean(groups: Groups, x: jax.Array, where: jax.Array | None) -> jax.Array:
    """The mean of a small sample: one place of every example (a sharded batch stays so), or more of few examples."""
    first, *others = groups.reduced
    area = math.prod(x.shape[i] for i in others if isinstance(x.shape[i], int))
    taken = 1
    for i in (first, *others):
        size = x.shape[i]
        if isinstance(size, int):
            most = max(SAMPLE, size * area // 32) if i == first else -(-SAMPLE // taken)
            stride = max(1, size // most)
            x, where = _thinned(x, i, stride), None if where is None else _thinned(where, i, stride)
            taken *= x.shape[i]
    n = groups.count(x, where)
    return _rounded_mean(groups, x, where, n if where is None else jnp.maximum(n, 1))[0]


def _thinned(a: jax.Array, axis: int, stride: int) -> jax.Array:
    """Every `stride`-th place along this axis, in the middle of its stretch. In a mask an axis of length 1 stays."""
    if a.shape[axis] == 1 or stride == 1:
        return a
    return lax.slice_in_dim(a, stride // 2, None, stride, axis)


def _from_all(groups: Groups, x: jax.Array, where: jax.Array | None, n: jax.Array, eps: Epsilon) -> Unit:
    """K, the mean rounded, and s, which brings the larger of mean |x − K| and √ε into the middle of the range."""
    shift, small = _rounded_mean(groups, x, where, n)
    size = groups.total(jnp.abs(masked(where, Unit(shift, small).of(x)))) / (small * n)
    # K s must not overflow where nothing deviates from K and √ε is small.
    size = jnp.maximum(jnp.maximum(size, eps.root), jnp.abs(shift) * 2.0**-60)
    return Unit(shift, scale_for(size))


def _rounded_mean(groups: Groups, x: jax.Array, where: jax.Array | None, n: jax.Array) -> tuple[jax.Array, float]:
    """K, and the factor with which no sum of x can overflow."""
    small = 2.0 ** -(x.size.bit_length() if isinstance(x.size, int) else 32)
    mean = groups.total(masked(where, x.astype(n.dtype) * small)) / (small * n)
    # Without its last bit XLA cannot fuse its product into x − K as an FMA, which would subtract a different K.
    info = jnp.finfo(mean.dtype)
    return lax.reduce_precision(mean, info.nexp, info.nmant - 1), small


def scale_for(size: jax.Array, least: float | None = None) -> jax.Array:
    """1 for numbers in the middle of the dtype's range, for others the power of two that brings them there.

    The middle are 2⁻³¹ to 2³¹ in float32, or `least` to 2³¹: their squares are normal, and so are sums and cubes.
    """
    info = jnp.finfo(size.dtype)
    power = _clamped(power_of_two(size), info.tiny, 2.0 ** (info.maxexp - 1))
    return _clamped(power, least or 1 / _middle(info), _middle(info)) / power


def _clamped(a: jax.Array, least: Any, most: Any) -> jax.Array:
    return lax.clamp(jnp.asarray(least, a.dtype), a, jnp.asarray(most, a.dtype))


def _middle(info: Any) -> float:
    return 2.0 ** (-info.minexp // 4)


def about_the_mean(unit: Unit, mean: jax.Array, var: jax.Array) -> tuple[Unit, jax.Array, jax.Array]:
    """The same moments about K' = μ rounded, so that x − K' has no more rounding than x − μ, and equal elements none.

    Where all x are equal, K' is that x. What is left of m then, and of v before, is below their rounding: it is zero.
    """
    noise = NOISE * jnp.finfo(mean.dtype).eps
    shift = lax.stop_gradient(unit.shift + mean / unit.scale)
    left = mean + (unit.shift - shift) * unit.scale
    nothing = jnp.zeros_like(left)
    # Only in value: m is a sum over x all the same, which second derivatives see.
    left = left - lax.stop_gradient(lax.select(jnp.abs(left) <= noise * jnp.abs(mean), left, nothing))
    return Unit(shift, unit.scale), left, lax.select(var <= noise * mean**2, nothing, var)


def constants_apart(unit: Unit, mean: jax.Array, var: jax.Array, scale: jax.Array) -> tuple[Unit, jax.Array, jax.Array]:
    """Where nothing deviates any unit will do: one by `scale`, in which ε s² does not underflow, as in one for 1e36."""
    scale = lax.select(var > 0, unit.scale, jnp.broadcast_to(scale, var.shape))
    return Unit(unit.shift, scale), mean * (scale / unit.scale), var
