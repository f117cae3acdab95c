"""The activations, step by step (derivation.md, A1–A12)."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather

# The arguments of every activation.
Input = Annotated[jax.Array, "z", "any", INPUT, "argument"]
FromAbove = Annotated[jax.Array, "v = ∂J/∂a", "as z", INPUT, "gradient from above"]


@derivation
class Relu(NamedTuple):
    """The steps of `relu`."""

    x: Input
    dy: FromAbove
    a: Annotated[jax.Array, "a = max(z, 0)", "as z", "(A2)", "activation"]
    slope: Annotated[jax.Array, "τ'(z) = 1{z > 0}", "as z", "(A3)", "slope, 0 at the kink"]
    dx: Annotated[jax.Array, "δ = v ⊙ τ'(z)", "as z", "(A1)", "gradient of the input"]


@derivation
class Tanh(NamedTuple):
    """The steps of `tanh`."""

    x: Input
    dy: FromAbove
    a: Annotated[jax.Array, "a = tanh z", "as z", "(A4)", "activation"]
    slope: Annotated[jax.Array, "τ'(z) = 1 − a²", "as z", "(A5)", "slope, from the output"]
    dx: Annotated[jax.Array, "δ = v ⊙ τ'(z)", "as z", "(A1)", "gradient of the input"]


@derivation
class Sigmoid(NamedTuple):
    """The steps of `sigmoid`."""

    x: Input
    dy: FromAbove
    s: Annotated[jax.Array, "s = 1/(1+e^−z)", "as z", "(A6)", "activation"]
    slope: Annotated[jax.Array, "τ'(z) = s (1 − s)", "as z", "(A7)", "slope, from the output"]
    dx: Annotated[jax.Array, "δ = v ⊙ τ'(z)", "as z", "(A1)", "gradient of the input"]


@derivation
class Softmax(NamedTuple):
    """The steps of `softmax`."""

    x: Input
    dy: Annotated[jax.Array, "v = ∂J/∂s", "as z", INPUT, "gradient from above"]
    axis: Annotated[int, "the axis that sums to 1"]
    shifted: Annotated[jax.Array, "z − m", "as z", "(A8)", "less the largest, so that nothing overflows"]
    exponentials: Annotated[jax.Array, "e^(z−m)", "as z", "(A8)", "numerators"]
    total: Annotated[jax.Array, "Σ_k e^(z_k−m)", "(..., 1)", "(A8)", "denominator"]
    s: Annotated[jax.Array, "s", "as z", "(A8)", "probabilities"]
    mean: Annotated[jax.Array, "Σ_j v_j s_j", "(..., 1)", "(A10)", "mean of v under the distribution s"]
    dx: Annotated[jax.Array, "δ_i = s_i (v_i − Σ_j v_j s_j)", "as z", "(A10)", "gradient of the input"]


@derivation
class LogSoftmax(NamedTuple):
    """The steps of `log_softmax`."""

    x: Input
    dy: Annotated[jax.Array, "v = ∂J/∂ log s", "as z", INPUT, "gradient from above"]
    axis: Annotated[int, "the axis whose exponentials sum to 1"]
    shifted: Annotated[jax.Array, "z − m", "as z", "(A8)", "less the largest, so that nothing overflows"]
    exponentials: Annotated[jax.Array, "e^(z−m)", "as z", "(A8)", "numerators"]
    total: Annotated[jax.Array, "S = Σ_k e^(z_k−m)", "(..., 1)", "(A8)", "denominator"]
    log_s: Annotated[jax.Array, "log s = z − m − log S", "as z", "(A11)", "log probabilities"]
    s: Annotated[jax.Array, "s", "as z", "(A8)", "probabilities"]
    sum: Annotated[jax.Array, "Σ_j v_j", "(..., 1)", "(A12)", "sum of what comes from above"]
    dx: Annotated[jax.Array, "δ_i = v_i − s_i Σ_j v_j", "as z", "(A12)", "gradient of the input"]


def relu(x: ArrayLike, dy: ArrayLike) -> Relu:
    """max(z, 0) and its gradient.

    Args:
      x: z, any shape, floating dtype (half precision is computed in float32).
      dy: v = ∂J/∂a, shape of x.

    Returns:
      `Relu`.

    Raises:
      TypeError: an argument without floating dtype.
      ValueError: shapes that differ, or an empty array.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.relu(jnp.array([-1.0, 2.0]), jnp.array([5.0, 5.0]))
      >>> s.slope.tolist(), s.dx.tolist()
      ([0.0, 1.0], [0.0, 5.0])
    """
    x, dy = arrays(x=x, dy=dy)
    dy = cotangent(dy, x)
    a = rectify(x)  # (A2)
    slope = jnp.where(a > 0, 1, 0).astype(x.dtype)  # (A3)
    dx = jnp.where(a > 0, dy, 0)  # (A1), selected, not multiplied: an infinite v at a closed gate gives 0
    return gather(Relu, locals())


def tanh(x: ArrayLike, dy: ArrayLike) -> Tanh:
    """tanh z and its gradient. Arguments and errors as in `relu`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.tanh(jnp.array([0.0]), jnp.array([3.0]))
      >>> s.slope.tolist(), s.dx.tolist()
      ([1.0], [3.0])
    """
    x, dy = arrays(x=x, dy=dy)
    dy = cotangent(dy, x)
    a = jnp.tanh(x)  # (A4)
    slope = (1 - a) * (1 + a)  # (A5)
    dx = dy * slope  # (A1)
    return gather(Tanh, locals())


def sigmoid(x: ArrayLike, dy: ArrayLike) -> Sigmoid:
    """1/(1 + e^−z) and its gradient. Arguments and errors as in `relu`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.sigmoid(jnp.array([0.0]), jnp.array([4.0]))
      >>> s.slope.tolist(), s.dx.tolist()
      ([0.25], [1.0])
    """
    x, dy = arrays(x=x, dy=dy)
    dy = cotangent(dy, x)
    s = lax.logistic(x)  # (A6)
    slope = s * (1 - s)  # (A7)
    dx = dy * slope  # (A1)
    return gather(Sigmoid, locals())


def softmax(x: ArrayLike, dy: ArrayLike, axis: int = -1) -> Softmax:
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

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.softmax(jnp.array([0.0, 0.0]), jnp.array([4.0, 0.0]))
      >>> s.mean.tolist(), s.dx.tolist()
      ([2.0], [1.0, -1.0])
    """
    x, dy = arrays(x=x, dy=dy)
    _checks.rank_at_least("x", x, 1, "the axis to normalize, and any others")
    _checks.axis("axis", axis, x.ndim)
    dy = cotangent(dy, x)
    # The shift cancels in (A8), so it counts as a constant if somebody differentiates these steps.
    shifted = x - lax.stop_gradient(x.max(axis, keepdims=True))
    exponentials = jnp.exp(shifted)
    total = exponentials.sum(axis, keepdims=True)
    s = exponentials / total  # (A8)
    mean = (dy * s).sum(axis, keepdims=True)
    dx = s * (dy - mean)  # (A10)
    return gather(Softmax, locals())


def log_softmax(x: ArrayLike, dy: ArrayLike, axis: int = -1) -> LogSoftmax:
    """log softmax along `axis` and its gradient. Arguments and errors as in `softmax`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.log_softmax(jnp.array([0.0, 0.0]), jnp.array([4.0, 0.0]))
      >>> s.sum.tolist(), s.dx.tolist()
      ([4.0], [2.0, -2.0])
    """
    of_softmax = softmax(x, dy, axis)
    x, dy, shifted, exponentials = of_softmax.x, of_softmax.dy, of_softmax.shifted, of_softmax.exponentials
    total, s = of_softmax.total, of_softmax.s  # (A8)
    log_s = shifted - jnp.log(total)  # (A11)
    sum = dy.sum(axis, keepdims=True)
    dx = dy - s * sum  # (A12)
    return gather(LogSoftmax, locals())


def softmax_jacobian(z: ArrayLike) -> jax.Array:
    """∂s_i/∂z_j = s_i (1{i = j} − s_j) along the last axis, shape (..., K, K) by [i, j] (A9).

    Args:
      z: shape (..., K), floating dtype.

    Returns:
      Shape (..., K, K).

    Raises:
      TypeError: no floating dtype.
      ValueError: an empty array, or a number.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> bnderiv.steps.softmax_jacobian(jnp.array([0.0, 0.0])).tolist()
      [[0.25, -0.25], [-0.25, 0.25]]
    """
    (z,) = arrays(z=z)
    _checks.rank_at_least("z", z, 1, "(..., K)")
    s = softmax(z, z).s
    identity = jnp.eye(z.shape[-1], dtype=z.dtype).reshape((1,) * (z.ndim - 1) + (z.shape[-1],) * 2)
    return s[..., :, None] * (identity - s[..., None, :])  # (A9)


def rectify(z: jax.Array) -> jax.Array:
    """max(z, 0), with the slope 0 at 0 (A2). NaN stays NaN."""
    return jnp.where(z > 0, z, lax.stop_gradient(jnp.maximum(z, 0)))
