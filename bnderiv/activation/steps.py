"""The activations, step by step (derivation.md, A1–A10)."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv import _checks
from bnderiv._steps import arrays, cotangent, derivation


@derivation
class Relu(NamedTuple):
    """The steps of `relu`."""

    a: Annotated[jax.Array, "a = max(z, 0)", "as z", "(A2)", "activation"]
    slope: Annotated[jax.Array, "τ'(z) = 1{z > 0}", "as z", "(A3)", "slope, 0 at the kink"]
    dx: Annotated[jax.Array, "δ = v ⊙ τ'(z)", "as z", "(A1)", "gradient of the input"]


@derivation
class Tanh(NamedTuple):
    """The steps of `tanh`."""

    a: Annotated[jax.Array, "a = tanh z", "as z", "(A4)", "activation"]
    slope: Annotated[jax.Array, "τ'(z) = 1 − a²", "as z", "(A5)", "slope, from the output"]
    dx: Annotated[jax.Array, "δ = v ⊙ τ'(z)", "as z", "(A1)", "gradient of the input"]


@derivation
class Sigmoid(NamedTuple):
    """The steps of `sigmoid`."""

    s: Annotated[jax.Array, "s = 1/(1+e^−z)", "as z", "(A6)", "activation"]
    slope: Annotated[jax.Array, "τ'(z) = s (1 − s)", "as z", "(A7)", "slope, from the output"]
    dx: Annotated[jax.Array, "δ = v ⊙ τ'(z)", "as z", "(A1)", "gradient of the input"]


@derivation
class Softmax(NamedTuple):
    """The steps of `softmax`."""

    shifted: Annotated[jax.Array, "z − m", "as z", "(A8)", "less the largest: changes nothing, overflows nothing"]
    exponentials: Annotated[jax.Array, "e^(z−m)", "as z", "(A8)", "numerators"]
    total: Annotated[jax.Array, "Σ_k e^(z_k−m)", "(..., 1)", "(A8)", "denominator"]
    s: Annotated[jax.Array, "s", "as z", "(A8)", "probabilities"]
    mean: Annotated[jax.Array, "Σ_j v_j s_j", "(..., 1)", "(A10)", "mean of v under the distribution s"]
    dx: Annotated[jax.Array, "δ_i = s_i (v_i − Σ_j v_j s_j)", "as z", "(A10)", "gradient of the input"]


def relu(x: Any, dy: Any) -> Relu:
    """max(z, 0) and its gradient.

    Args:
      x: z, any shape, floating dtype (half precision is computed in float32).
      dy: v = ∂J/∂a, shape of x.

    Returns:
      `Relu`.

    Raises:
      TypeError: an argument without floating dtype.
      ValueError: shapes that differ, or an empty array.
    """
    x, dy = arrays(x=x, dy=dy)
    v = cotangent(dy, x)
    a = rectify(x)
    slope = jnp.where(a > 0, 1, 0).astype(x.dtype)  # (A3)
    return Relu(a, slope, jnp.where(a > 0, v, 0))  # selected, not multiplied: an infinite v at a closed gate gives 0


def tanh(x: Any, dy: Any) -> Tanh:
    """tanh z and its gradient. Arguments and errors as in `relu`."""
    x, dy = arrays(x=x, dy=dy)
    v = cotangent(dy, x)
    a = jnp.tanh(x)  # (A4)
    slope = (1 - a) * (1 + a)  # (A5)
    return Tanh(a, slope, v * slope)  # (A1)


def sigmoid(x: Any, dy: Any) -> Sigmoid:
    """1/(1 + e^−z) and its gradient. Arguments and errors as in `relu`."""
    x, dy = arrays(x=x, dy=dy)
    v = cotangent(dy, x)
    s = lax.logistic(x)  # (A6)
    slope = s * (1 - s)  # (A7)
    return Sigmoid(s, slope, v * slope)  # (A1)


def softmax(x: Any, dy: Any, axis: int = -1) -> Softmax:
    """Softmax along `axis` and its gradient.

    Args:
      x: z, rank 1 or more, floating dtype (half precision is computed in float32).
      dy: v = ∂J/∂s, shape of x.
      axis: the axis that sums to 1.

    Returns:
      `Softmax`.

    Raises:
      TypeError: an argument without floating dtype.
      ValueError: shapes that differ, an empty array, or an axis out of range.
    """
    x, dy = arrays(x=x, dy=dy)
    _checks.rank_at_least("x", x, 1, "the axis to normalize, and any others")
    axis = _checks.axis("axis", axis, x.ndim)
    v = cotangent(dy, x)
    # The shift cancels in (A8), so it is held constant where somebody differentiates these steps.
    shifted = x - lax.stop_gradient(x.max(axis, keepdims=True))
    exponentials = jnp.exp(shifted)
    total = exponentials.sum(axis, keepdims=True)
    s = exponentials / total  # (A8)
    mean = (v * s).sum(axis, keepdims=True)
    return Softmax(shifted, exponentials, total, s, mean, s * (v - mean))  # (A10)


def softmax_jacobian(z: Any) -> jax.Array:
    """∂s_i/∂z_j = s_i (1{i = j} − s_j) along the last axis, shape (..., K, K) by [i, j] (A9).

    Args:
      z: shape (..., K), floating dtype.
    """
    (z,) = arrays(z=z)
    _checks.rank_at_least("z", z, 1, "(..., K)")
    s = softmax(z, z).s
    identity = jnp.eye(z.shape[-1], dtype=z.dtype).reshape((1,) * (z.ndim - 1) + (z.shape[-1],) * 2)
    return s[..., :, None] * (identity - s[..., None, :])  # (A9)


def rectify(z: jax.Array) -> jax.Array:
    """max(z, 0), with the slope 0 at 0 (A2). NaN stays NaN."""
    return jnp.where(z > 0, z, lax.stop_gradient(jnp.maximum(z, 0)))
