"""Logarithm of softmax with its gradient in closed form (derivation.md, A11–A12)."""

import jax
import jax.numpy as jnp

from bnderiv import _checks
from bnderiv._gpu import start_of_row
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv.activation.softmax import below_highest


def log_softmax(x: jax.Array, axis: int = -1) -> jax.Array:
    """`x − log Σ exp(x)` along `axis`, with the maximum subtracted first.

    The gradient is δ − s Σ δ, where s = softmax(x) (derivation.md, A12). Only x is saved: exp(y) would not give s back
    to full accuracy. Half precision is computed in float32. An entry −inf stays −inf and takes no part in the sum. A
    row that is all −inf, or that has a +inf, is NaN.

    Args:
      x: rank 1 or more, floating dtype.
      axis: the axis whose exponentials sum to 1.

    Returns:
      Array of the same shape and dtype.

    Raises:
      TypeError: `x` does not have a floating dtype, or `axis` is not an integer.
      ValueError: `x` is a scalar or empty, or `axis` is out of range.

    >>> bnderiv.log_softmax(jnp.array([0.0, 0.0, -jnp.inf])).round(3)
    Array([-0.693, -0.693,   -inf], dtype=float32)
    """
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 1, "the axis to normalize, and any others")
    axis = _checks.axis("axis", axis, x.ndim)
    _checks.nonempty("x", x)
    return _log_softmax(axis, x)


@closed_form(static=1)
def _log_softmax(axis, x):
    half, log_sum, _ = log_softmax_parts(x.astype(accumulator(x.dtype)), axis)
    return (2 * half - log_sum).astype(x.dtype)  # (A11)


def _log_softmax_fwd(axis, x):
    return _log_softmax.body(axis, x), x


def _log_softmax_bwd(axis, x, delta):
    wide = accumulator(x.dtype)
    _, _, s = log_softmax_parts(start_of_row(x.astype(wide), (axis,)), axis)
    delta = delta.astype(wide)
    return ((delta - s * delta.sum(axis, keepdims=True)).astype(x.dtype),)  # (A12)


_log_softmax.defvjp(_log_softmax_fwd, _log_softmax_bwd)


def log_softmax_parts(z, axis):
    """½(z − max z), which cannot overflow, log Σ exp(z − max z) and softmax(z) (A8, S5).

    The first two are kept apart: max z + log Σ would round at the size of z.
    """
    half = below_highest(z, axis, part=1 / 2)
    e = jnp.exp(2 * half)
    total = e.sum(axis, keepdims=True)
    return half, jnp.log(total), e / total
