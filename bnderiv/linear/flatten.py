"""Flatten, between feature maps and fully connected layers, with its gradient (derivation.md, L5)."""

import jax

from bnderiv import _checks
from bnderiv._rule import closed_form


def flatten(x: jax.Array) -> jax.Array:
    """Keeps axis 0 and ravels the other axes in row-major order.

    The gradient is δ in the shape of x (derivation.md, L5).

    Args:
      x: shape (N, ...), rank 1 or more, floating dtype.

    Returns:
      Array of shape (N, product of the other axes), same dtype.

    Raises:
      TypeError: `x` does not have a floating dtype.
      ValueError: `x` is a scalar or empty.

    >>> bnderiv.flatten(jnp.ones((2, 4, 4, 3))).shape
    (2, 48)
    """
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 1, "(N, ...)")
    _checks.nonempty("x", x)
    return _flatten(x.shape, x)


@closed_form(static=1)
def _flatten(shape, x):
    return x.reshape(shape[0], -1)  # (L5)


def _flatten_fwd(shape, x):
    return _flatten.body(shape, x), None


def _flatten_bwd(shape, _, delta):
    return (delta.reshape(shape),)


_flatten.defvjp(_flatten_fwd, _flatten_bwd)
