"""The unit of a row: its deviation √(σ² + ε). In it r = 1, and so x̂ = u − m (derivation.md, C.4).

Elsewhere s is a power of two, so that σ² is returned without another rounding. Rows return no statistics. And on a TPU
each number of a row costs: layer norm of 64×56×56×96 takes 3.2 megacycles with s and r, and 2.6 in this unit (v6e).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bnderiv._rule import CustomJvp
from bnderiv.normalization.units import Epsilon, Moments


class RowUnit(NamedTuple):
    """u = (x − K) s, for any s, by 4s and K/4: s alone may be subnormal, and x − K may overflow."""

    quadruple: jax.Array  # 4 s
    quarter: Any  # K/4; None if K is 0

    @property
    def scale(self) -> jax.Array:
        """s."""
        return self.quadruple / 4

    def of(self, x: jax.Array) -> jax.Array:
        """u."""
        x = x.astype(self.quadruple.dtype)
        return x * self.quadruple / 4 if self.quarter is None else (x / 4 - self.quarter) * self.quadruple

    def back(self, du: jax.Array) -> jax.Array:
        """∂J/∂x, from `du` = ∂J/∂u. (From `du / 4 * quadruple` XLA would make s, one more number of each row.)"""
        return du * self.quadruple / 4

    def inverse_root(self, var: jax.Array, eps: Epsilon) -> jax.Array:
        """r = 1/√(v + ε s²), which is 1 `in_deviations`."""
        return _inverse_root_of_one(var, (eps.root * self.scale) ** 2)


@CustomJvp
def _inverse_root_of_one(var, eps):
    return jnp.ones_like(var)  # of 1/√(v + ε) XLA would not know that it is 1


@_inverse_root_of_one.defjvp
def _(primals, tangents):
    r = _inverse_root_of_one(*primals)
    return r, -0.5 * r**3 * sum(tangents)


def in_deviations(moments: Moments, eps: Epsilon) -> Moments:
    """The same moments in the unit of the deviation."""
    unit, mean, var = moments
    r = unit.inverse_root(var, eps)
    return Moments(RowUnit(unit.scaled(4 * r), unit.unscaled(unit.origin) / 4), mean * r, var * r * r)
