"""Which dtype a sum is taken in: never less than float32 (a half-precision sum of 4,000 equal terms stops growing)."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def accumulator(dtype: DTypeLike) -> jnp.dtype:
    """The dtype in which values of `dtype` are summed: float64 for float64, float32 for everything narrower."""
    return jnp.dtype("float64" if jnp.dtype(dtype).itemsize == 8 else "float32")
