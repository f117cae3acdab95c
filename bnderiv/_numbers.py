"""Which dtype a sum is taken in, never less than float32 (a half-precision sum of 4,000 equal terms stops growing);
and powers of two, by which products are exact."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def accumulator(dtype: DTypeLike) -> jnp.dtype:
    """The dtype in which values of `dtype` are summed: float64 for float64, float32 for everything narrower."""
    return jnp.dtype("float64" if jnp.dtype(dtype).itemsize == 8 else "float32")


def power_of_two(a: jax.Array) -> jax.Array:
    """2^⌊log₂ a⌋ of numbers a ≥ 0 in float32 or float64: `a` with no bit but its exponent's.

    0 below the normal numbers, infinity for infinity and NaN. No derivative. (`jnp.frexp` takes forty operations.)
    """
    info = jnp.finfo(a.dtype)
    bits = lax.bitcast_convert_type(a, jnp.dtype(f"uint{info.bits}"))
    return lax.bitcast_convert_type(bits & ((2**info.nexp - 1) << info.nmant), a.dtype)
