"""What the linear layers must equal: the plain forward, differentiated by JAX."""

import jax
import jax.numpy as jnp

from bnderiv._numbers import accumulator

__all__ = ["dense", "flatten"]


def dense(x, kernel, bias=None):
    """`x @ kernel + bias`; see `bnderiv.dense`."""
    dtype = jnp.result_type(x, kernel) if bias is None else jnp.result_type(x, kernel, bias)
    wide = accumulator(dtype)
    z = jnp.einsum("...d,dh->...h", x.astype(wide), kernel.astype(wide))
    if bias is not None:
        z = z + jnp.broadcast_to(bias.astype(wide), z.shape)
    return z.astype(dtype)


def flatten(x):
    """Row-major ravel of all axes but the first; see `bnderiv.flatten`."""
    return jax.vmap(jnp.ravel)(x)
