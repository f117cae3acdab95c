"""Fully connected layer, z = a W + b, with its gradient in closed form (derivation.md, L1–L4)."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._target import by_target


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Affine map of the last axis: `x @ kernel + bias`.

    The gradient is ∂J/∂W = aᵀδ, ∂J/∂a = δWᵀ, ∂J/∂b = Σδ (derivation.md, L2–L4). Half precision is accumulated in
    float32.

    Args:
      x: input, shape (..., D), floating dtype.
      kernel: weights, shape (D, H).
      bias: optional, shape (H,). Batch norm cancels it, so leave it out there.

    Returns:
      Array of shape (..., H) and dtype `jnp.result_type(x, kernel, bias)`.

    Raises:
      TypeError: an argument does not have a floating dtype, or JAX does not promote their dtypes to one (float8).
      ValueError: an empty array, or shapes that do not fit.

    >>> bnderiv.dense(jnp.array([[1.0, 2.0]]), jnp.eye(2), jnp.array([0.5, 0.0]))
    Array([[1.5, 2. ]], dtype=float32)
    """
    x = _checks.float_array("x", x)
    kernel = _checks.float_array("kernel", kernel)
    _checks.rank_at_least("x", x, 1, "(..., D)")
    _checks.rank_is("kernel", kernel, 2, "(D, H)")
    _checks.nonempty("x", x)
    _checks.nonempty("kernel", kernel)
    _checks.shape_is("kernel", kernel, (x.shape[-1], kernel.shape[1]), "(D, H), D the last axis of x")
    if bias is not None:
        bias = _checks.float_array("bias", bias)
        _checks.shape_is("bias", bias, (kernel.shape[1],), "(H,), H the columns of kernel")
    _checks.promoted(x=x, kernel=kernel, bias=bias)
    return _dense(x, kernel, bias)


@closed_form(result=lambda x, kernel, bias: P(*x[:-1], kernel[-1]))
def _dense(x, kernel, bias):
    dtype = jnp.result_type(*(a for a in (x, kernel, bias) if a is not None))
    z = _matmul(x.astype(dtype), kernel.astype(dtype))  # (L1)
    if bias is not None:
        z = z + _checks.along(bias, z.ndim - 1, z.ndim).astype(z.dtype)
    return z.astype(dtype)


def _dense_fwd(x, kernel, bias):
    return _dense.body(x, kernel, bias), (x, kernel, bias)


def _dense_bwd(residuals, delta):
    x, kernel, bias = residuals
    dx = _matmul(delta, kernel.astype(delta.dtype).T)  # (L3)
    rows = delta.reshape(-1, delta.shape[-1])
    dkernel = _matmul(x.astype(delta.dtype).reshape(-1, x.shape[-1]).T, rows)  # (L2)
    dbias = None if bias is None else rows.sum(0, dtype=accumulator(delta.dtype)).astype(bias.dtype)  # (L4)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype), dbias


_dense.defvjp(_dense_fwd, _dense_bwd)


def _matmul(a, b):
    wide = accumulator(a.dtype)
    if a.dtype == wide:
        return jnp.matmul(a, b)
    # XLA:CPU has no product of bfloat16 matrices with a float32 result, and fails on some programs that need one.
    return by_target(
        a,
        b,
        cpu=lambda a, b: jnp.matmul(a.astype(wide), b.astype(wide)),
        default=lambda a, b: jnp.matmul(a, b, preferred_element_type=wide),
    )
