"""The fully connected layer and flatten, step by step (derivation.md, L1–L5)."""

from typing import Annotated, Any, NamedTuple

import jax
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather


@derivation
class Dense(NamedTuple):
    """The steps of `dense`. N counts all rows if x has more than two axes."""

    x: Annotated[jax.Array, "a", "(..., D)", INPUT, "activations of the layer before"]
    kernel: Annotated[jax.Array, "W", "(D, H)", INPUT, "weights"]
    bias: Annotated[jax.Array | None, "b", "(H,)", INPUT, "biases, or None"]
    dy: Annotated[jax.Array, "δ = ∂J/∂z", "(..., H)", INPUT, "gradient from above"]
    z: Annotated[jax.Array, "z = a W + b", "(..., H)", "(L1)", "weighted sums"]
    d_kernel_each: Annotated[jax.Array, "a_ni δ_nj", "(N, D, H)", "(L2)", "gradient of each example, an outer product"]
    d_kernel: Annotated[
        jax.Array, "∂J/∂W = aᵀ δ", "(D, H)", "(L2)", "gradient of the weights, summed over the examples"
    ]
    d_bias: Annotated[jax.Array, "∂J/∂b = Σ_n δ_n", "(H,)", "(L4)", "gradient of the bias"]
    kernel_transposed: Annotated[jax.Array, "Wᵀ", "(H, D)", "(L3)", "weights, transposed"]
    dx: Annotated[jax.Array, "∂J/∂a = δ Wᵀ", "as x", "(L3)", "gradient of the input"]


def dense(x: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None, dy: ArrayLike) -> Dense:
    """The affine map of the last axis and its three gradients.

    Args:
      x: a, shape (..., D), floating dtype (half precision is computed in float32).
      kernel: W, shape (D, H).
      bias: b, shape (H,), or None.
      dy: δ = ∂J/∂z, shape (..., H).

    Returns:
      `Dense`; `d_bias` is there without a bias as well.

    Raises:
      TypeError: an argument without floating dtype.
      ValueError: shapes that do not fit, or an empty array.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, kernel, dy = jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [4.0]]), jnp.array([[10.0]])
      >>> s = bnderiv.steps.dense(x, kernel, None, dy)
      >>> s.d_kernel.tolist(), s.dx.tolist()
      ([[10.0], [20.0]], [[30.0, 40.0]])
    """
    x, kernel, dy = arrays(x=x, kernel=kernel, dy=dy)
    _checks.rank_at_least("x", x, 1, "(..., D)")
    _checks.rank_is("kernel", kernel, 2, "(D, H)")
    bias = _checked_bias(bias, kernel)
    z = affine(x, kernel, bias)  # (L1)
    dy = cotangent(dy, z)

    a, delta = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])  # every row is an example
    d_kernel_each = a[:, :, None] * delta[:, None, :]  # (L2), one example
    d_kernel = a.T @ delta  # (L2)
    d_bias = delta.sum(0)  # (L4)
    kernel_transposed = kernel.T
    dx = dy @ kernel_transposed  # (L3)
    return gather(Dense, locals())


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """z = a W + b (L1)."""
    _checks.shape_is("kernel", kernel, (x.shape[-1], kernel.shape[1]), "(D, H), D the last axis of x")
    z = x @ kernel
    return z if bias is None else z + _checks.along(bias, z.ndim - 1, z.ndim)


def _checked_bias(bias: Any, kernel: jax.Array) -> jax.Array | None:
    if bias is None:
        return None
    bias = _checks.float_array("bias", bias)
    _checks.shape_is("bias", bias, (kernel.shape[1],), "(H,), H the columns of kernel")
    return bias.astype(kernel.dtype)


@derivation
class Flatten(NamedTuple):
    """The steps of `flatten`."""

    x: Annotated[jax.Array, "x", "(N, ...)", INPUT, "one array for each example"]
    dy: Annotated[jax.Array, "δ = ∂J/∂z", "(N, RSC)", INPUT, "gradient from above"]
    z: Annotated[jax.Array, "z_nk = x_nrsc", "(N, RSC)", "(L5)", "one row for each example, the last axis fastest"]
    dx: Annotated[jax.Array, "∂J/∂x_nrsc = δ_nk", "as x", "(L5)", "every entry of δ back in its place"]


def flatten(x: ArrayLike, dy: ArrayLike) -> Flatten:
    """All axes but the first raveled into one, and the gradient.

    Args:
      x: shape (N, ...), floating dtype.
      dy: δ, shape (N, product of the other axes).

    Returns:
      `Flatten`.

    Raises:
      TypeError: an argument without floating dtype.
      ValueError: shapes that do not fit, or an empty array.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.flatten(jnp.ones((2, 3, 4)), jnp.ones((2, 12)))
      >>> s.z.shape, s.dx.shape
      ((2, 12), (2, 3, 4))
    """
    x, dy = arrays(x=x, dy=dy)
    _checks.rank_at_least("x", x, 1, "(N, ...)")
    z = x.reshape(x.shape[0], -1)  # (L5)
    dy = cotangent(dy, z)
    dx = dy.reshape(x.shape)  # (L5)
    return gather(Flatten, locals())
