"""Hyperbolic tangent with its gradient in closed form (derivation.md, A4–A5)."""

import jax
import jax.numpy as jnp

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form


def tanh(x: jax.Array) -> jax.Array:
    """`tanh(x)`, elementwise.

    The gradient is δ (1 − y²) (derivation.md, A5). Only the output y is saved. Half precision is computed in float32.

    Args:
      x: any shape, floating dtype.

    Returns:
      Array of the same shape and dtype.

    Raises:
      TypeError: `x` does not have a floating dtype.
      ValueError: `x` is empty.

    >>> bnderiv.tanh(jnp.array([0.0, 100.0]))
    Array([0., 1.], dtype=float32)
    """
    x = _checks.float_array("x", x)
    _checks.nonempty("x", x)
    return _tanh(x)


@closed_form
def _tanh(x):
    return jnp.tanh(x.astype(accumulator(x.dtype))).astype(x.dtype)  # (A4)


def _tanh_fwd(x):
    y = _tanh.body(x)
    return y, y


def _tanh_bwd(y, delta):
    wide = accumulator(y.dtype)
    y, dtype = y.astype(wide), y.dtype
    # (A5) as (1 − y)(1 + y). Near |y| = 1 the difference 1 − y is exact; 1 − y² would cancel.
    return ((delta.astype(wide) * (1 - y) * (1 + y)).astype(dtype),)


_tanh.defvjp(_tanh_fwd, _tanh_bwd)
