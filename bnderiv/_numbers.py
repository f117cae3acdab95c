"""Which dtype a sum is taken in, never less than float32 (a half-precision sum of 4,000 equal terms stops growing);
and powers of two, by which products are exact."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def accumulator(dtype: DTypeLike) -> jnp.dtype:
    """The dtype in which values of `dtype` are summed: float64 for float64, float32 for everything narrower."""
    return jnp.dtype("float64" if jnp.dtype(dtype).itemsize == 8 else "float32")


def power_of_two_over(a: jax.Array) -> jax.Array:
    """2^−⌊log₂ |a|⌋, for float32 or float64: the power of two that brings |a| to between 1 and 2.

    The result and its inverse are normal numbers. So the largest `a` are brought to between 2 and 4, by the smallest
    normal number, which infinity and NaN get too. Zero and subnormal `a` get its inverse.
    It has no derivative, and needs no division. (`jnp.frexp` takes forty operations.)
    """
    info = jnp.finfo(a.dtype)
    bits, least = jnp.dtype(f"uint{info.bits}"), 1 << info.nmant  # the bits of the smallest normal number
    most = (2**info.nexp - 2) * least
    exponent = lax.bitcast_convert_type(a, bits) & (most + least)
    exponent = lax.clamp(jnp.asarray(least, bits), exponent, jnp.asarray(most - least, bits))
    return lax.bitcast_convert_type(most - exponent, a.dtype)
