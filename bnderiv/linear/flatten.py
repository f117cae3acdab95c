"""The step from feature maps to the fully connected layers: a relabelling of indices (derivation.md, L5)."""

import jax

from bnderiv import _checks
from bnderiv._rule import closed_form


def flatten(x: jax.Array) -> jax.Array:
    """Keeps axis 0 and ravels the rest in row-major order.

    The gradient puts every entry of δ back where it came from (derivation.md, L5).

    Args:
      x: shape (N, ...), rank 1 or more, floating dtype.

    Returns:
      Array of shape (N, product of the other axes), same dtype.

    Raises:
      TypeError: `x` has no floating dtype.
      ValueError: `x` is a scalar or empty.
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
