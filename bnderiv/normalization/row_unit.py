"""The unit of a row: its deviation √(σ² + ε). In it r = 1, and so x̂ = u − m (derivation.md, C.4).

Elsewhere s is a power of two, so that σ² is returned without another rounding. Rows return no statistics. And on a TPU
each number of a row costs: layer norm of 64×56×56×96 takes 3.2 megacycles with s and r, and 2.6 in this unit (v6e).
"""

from typing import Any, NamedTuple

import jax

from bnderiv._rule import CustomJvp
from bnderiv.normalization.units import Epsilon, Moments


class RowUnit(NamedTuple):
    """u = (x − K) s, for any s, by 4s and K/4: s alone may be subnormal, and x − K may overflow."""

    quadruple: jax.Array  # 4 s
    quarter: Any  # K/4; None if K is 0
    r: Any = None  # 1/√(v + ε s²); None while it is 1

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
        """r = 1/√(v + ε s²)."""
        return _known_root(self.r, var, (eps.root * self.scale) ** 2)


@CustomJvp
def _known_root(r, var, eps):
    return r  # where it is 1, XLA would not know that of 1/√(v + ε)


@_known_root.defjvp
def _(primals, tangents):
    r = _known_root(*primals)
    return r, -0.5 * r**3 * (tangents[1] + tangents[2])


def in_deviations(moments: Moments, eps: Epsilon) -> Moments:
    """The same moments in the unit of the deviation."""
    unit, mean, var = moments
    r = unit.inverse_root(var, eps)
    return Moments(RowUnit(unit.scaled(4 * r), unit.unscaled(unit.origin) / 4), mean * r, var * r * r)
