"""Making XLA compute a value once, where it would compute it anew for each of its uses."""

import jax
import jax.numpy as jnp


def quotient(a: jax.Array, by: int | jax.Array = 1) -> jax.Array:
    """a / by, with all that leads to it computed once.

    XLA's CPU backend computes what leads to an element together with each use of it, back to the last operation that
    it holds expensive. A division is, unless it is by a constant; so XLA must not know `by`.
    """
    return a / jnp.where(a == a, by, 2 * by).astype(a.dtype)
