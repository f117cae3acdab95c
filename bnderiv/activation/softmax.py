"""Softmax with its gradient in closed form (derivation.md, A8–A10)."""

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv import _checks
from bnderiv._cpu import once
from bnderiv._gpu import start_of_row
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._target import by_target


def softmax(x: jax.Array, axis: int = -1) -> jax.Array:
    """`exp(x) / Σ exp(x)` along `axis`, with the maximum subtracted first.

    The gradient is s (δ − Σ δ s) (derivation.md, A10). Only the output s is saved. Half precision is computed in
    float32. An entry −inf has s = 0 and gradient 0. A row that is all −inf, or that has a +inf, is NaN (0/0, ∞/∞).

    Args:
      x: rank 1 or more, floating dtype.
      axis: the axis that sums to 1.

    Returns:
      Array of the same shape and dtype.

    Raises:
      TypeError: `x` does not have a floating dtype, or `axis` is not an integer.
      ValueError: `x` is a scalar or empty, or `axis` is out of range.

    >>> bnderiv.softmax(jnp.array([0.0, 0.0, -jnp.inf]))
    Array([0.5, 0.5, 0. ], dtype=float32)
    """
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 1, "the axis to normalize, and any others")
    axis = _checks.axis("axis", axis, x.ndim)
    _checks.nonempty("x", x)
    return _softmax(axis, x)


@closed_form(static=1)
def _softmax(axis, x):
    wide = x.astype(accumulator(x.dtype))
    e = jnp.exp(below_highest(wide, axis))  # (A8)
    return (e / e.sum(axis, keepdims=True)).astype(x.dtype)


def _softmax_fwd(axis, x):
    s = _softmax.body(axis, x)
    return s, s


def _softmax_bwd(axis, s, delta):
    wide = accumulator(s.dtype)
    s, delta, dtype = start_of_row(s.astype(wide), (axis,)), delta.astype(wide), s.dtype
    # By `once`: otherwise XLA:CPU fuses the sum into the loop that uses it, and 256×32000 takes 1.05 times the time.
    mean = once((delta * s).sum(axis, keepdims=True))
    return ((s * (delta - mean)).astype(dtype),)  # (A10)


_softmax.defvjp(_softmax_fwd, _softmax_bwd)


def below_highest(z, axis, part=1.0):
    """`part` times z − max z along `axis`. The maximum cancels in the quotient, so it needs no derivative.

    A TPU takes the minimum of −z, in fewer cycles: XLA would take the maximum of half precision before the widening, in
    a separate kernel.
    """

    def by_minimum(z):
        negated = -part * z
        return jnp.min(lax.stop_gradient(negated), axis, keepdims=True) - negated

    def by_maximum(z):
        return part * z - part * jnp.max(lax.stop_gradient(z), axis, keepdims=True)

    return by_target(z, tpu=by_minimum, default=by_maximum)
