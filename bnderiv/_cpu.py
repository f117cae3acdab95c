"""What is done for a CPU alone, and how a program is known to be one for a CPU."""

import jax
import jax.numpy as jnp


def on_cpu() -> bool:
    """Whether the default backend is the CPU. Only speed may hang on it: programs can be placed elsewhere."""
    return jax.default_backend() == "cpu"


def on_one_device() -> bool:
    """Whether there is just one device in all, so that no axis can be sharded over several."""
    return jax.device_count() == 1


def quotient(a: jax.Array, by: int | jax.Array = 1) -> jax.Array:
    """a / by, with its producers computed once.

    XLA:CPU recomputes a value's producers at every use, back to the nearest operation it considers expensive. A
    division is one, unless it is by a constant; so XLA must not know `by`.
    """
    return a / jnp.where(a == a, by, 2 * by).astype(a.dtype)
