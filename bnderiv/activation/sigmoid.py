"""Logistic sigmoid with its gradient in closed form (derivation.md, A6–A7)."""

import jax
from jax import lax

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form


def sigmoid(x: jax.Array) -> jax.Array:
    """`1 / (1 + exp(−x))`, elementwise, for any x without overflow.

    The gradient is δ s (1 − s) (derivation.md, A7). Only the output s is saved. Half precision is computed in float32.

    Args:
      x: any shape, floating dtype.

    Returns:
      Array of the same shape and dtype.

    Raises:
      TypeError: `x` does not have a floating dtype.
      ValueError: `x` is empty.

    >>> bnderiv.sigmoid(jnp.array([-1000.0, 0.0, 1000.0]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    x = _checks.float_array("x", x)
    _checks.nonempty("x", x)
    return _sigmoid(x)


@closed_form
def _sigmoid(x):
    return lax.logistic(x.astype(accumulator(x.dtype))).astype(x.dtype)  # (A6)


def _sigmoid_fwd(x):
    s = _sigmoid.body(x)
    return s, s


def _sigmoid_bwd(s, delta):
    wide = accumulator(s.dtype)
    s, dtype = s.astype(wide), s.dtype
    return ((delta.astype(wide) * s * (1 - s)).astype(dtype),)  # (A7)


_sigmoid.defvjp(_sigmoid_fwd, _sigmoid_bwd)
