"""Softmax with its gradient in closed form (derivation.md, A8–A10)."""

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form


def softmax(x: jax.Array, axis: int = -1) -> jax.Array:
    """`exp(x) / Σ exp(x)` along `axis`, with the maximum subtracted first.

    The gradient is s (δ − Σ δ s) (derivation.md, A10). Only the output s is saved. Half precision is computed in
    float32. An entry −inf has s = 0 and gradient 0; a row of nothing but −inf, or with +inf, is NaN (0/0, ∞/∞).

    Args:
      x: rank 1 or more, floating dtype.
      axis: the axis that sums to 1.

    Returns:
      Array of the same shape and dtype.

    Raises:
      TypeError: `x` has no floating dtype, or `axis` is no integer.
      ValueError: `x` is a scalar or empty, or `axis` is out of range.
    """
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 1, "the axis to normalize, and any others")
    axis = _checks.axis("axis", axis, x.ndim)
    _checks.nonempty("x", x)
    return _softmax(axis, x)


@closed_form(static=1)
def _softmax(axis, x):
    wide = x.astype(accumulator(x.dtype))
    # (A8). The shift cancels in the quotient, so it has no derivative of its own.
    e = jnp.exp(wide - jnp.max(lax.stop_gradient(wide), axis, keepdims=True))
    return (e / e.sum(axis, keepdims=True)).astype(x.dtype)


def _softmax_fwd(axis, x):
    s = _softmax.body(axis, x)
    return s, s


def _softmax_bwd(axis, s, delta):
    wide = accumulator(s.dtype)
    s, delta, dtype = s.astype(wide), delta.astype(wide), s.dtype
    return ((s * (delta - (delta * s).sum(axis, keepdims=True))).astype(dtype),)  # (A10)


_softmax.defvjp(_softmax_fwd, _softmax_bwd)
