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
    """2^−⌊log₂ |a|⌋ of numbers in float32 or float64: the power of two that brings `a` to between 1 and 2.

    It and its inverse are normal numbers: at least the smallest, which is for infinity and NaN, too, and brings any
    number to 4 at most; and at most the inverse of the smallest, which is for all below the normal numbers.
    No derivative, and no division. (`jnp.frexp` takes forty operations.)
    """
    info = jnp.finfo(a.dtype)
    bits, least = jnp.dtype(f"uint{info.bits}"), 1 << info.nmant  # the bits of the smallest normal number
    most = (2**info.nexp - 2) * least
    exponent = lax.bitcast_convert_type(a, bits) & (most + least)
    exponent = lax.clamp(jnp.asarray(least, bits), exponent, jnp.asarray(most - least, bits))
    return lax.bitcast_convert_type(most - exponent, a.dtype)
