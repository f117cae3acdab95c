"""Rectified linear unit with its gradient in closed form (derivation.md, A2–A3)."""

import jax
import jax.numpy as jnp

from bnderiv import _checks
from bnderiv._rule import CustomJvp, closed_form


def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`, elementwise.

    The gradient is δ where x > 0 and 0 elsewhere (derivation.md, A3). At the kink it is 0, as in JAX and PyTorch. NaN
    stays NaN and has gradient 0. Only the output is saved.

    Args:
      x: any shape, floating dtype.

    Returns:
      Array of the same shape and dtype.

    Raises:
      TypeError: `x` does not have a floating dtype.
      ValueError: `x` is empty.

    >>> bnderiv.relu(jnp.array([-1.0, 0.0, 2.0]))
    Array([0., 0., 2.], dtype=float32)
    """
    x = _checks.float_array("x", x)
    _checks.nonempty("x", x)
    return _relu(x)


@CustomJvp
def rectify(x):
    """(A2), with (A3) as its derivative: JAX takes half of the slope of a `maximum` at a tie."""
    return jnp.maximum(x, 0)


@rectify.defjvp
def _(primals, tangents):
    (x,), (tangent,) = primals, tangents
    return rectify(x), jnp.where(x > 0, tangent, 0)


@closed_form
def _relu(x):
    return rectify(x)


def _relu_fwd(x):
    y = rectify(x)
    return y, y


def _relu_bwd(y, delta):
    return (jnp.where(y > 0, delta, 0),)  # (A3): y > 0 exactly where x > 0


_relu.defvjp(_relu_fwd, _relu_bwd)
