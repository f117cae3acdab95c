"""Softmax cross entropy with its gradient in closed form (derivation.md, S5–S10)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._sharding import like_rows


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`−Σ_k y_k log softmax(z)_k` over the last axis: one value per example.

    The gradient is softmax(z)·Σ_k y_k − y for the logits z and −log softmax(z) for the labels y (derivation.md, S7,
    S8). Only logits and labels are saved. Half precision is computed in float32.

    A logit −inf rules a class out. It contributes 0 where its label is 0, and makes the loss +inf where the label is
    positive. The label's gradient is ±inf, and exactly 0 if the cotangent is 0. A row with +inf, or with all −inf, is
    NaN.

    Args:
      logits: z, shape (..., K), floating dtype.
      labels: y, weights of the same shape, floating dtype: a one-hot code, probabilities, or with any sum.

    Returns:
      Array of shape (...) and dtype `jnp.result_type(logits, labels)`.

    Raises:
      TypeError: an argument does not have a floating dtype.
      ValueError: scalars, empty arrays, or shapes that differ.

    >>> bnderiv.softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([[0.5, 0.5]])).round(3)
    Array([0.693], dtype=float32)
    """
    logits = _checks.float_array("logits", logits)
    labels = _checks.float_array("labels", labels)
    _checks.rank_at_least("logits", logits, 1, "(..., K)")
    _checks.nonempty("logits", logits)
    _checks.shape_is("labels", labels, logits.shape, "that of logits")
    return _weighted(logits, labels)


@closed_form(result=like_rows)
def _weighted(logits, labels):
    dtype = jnp.result_type(logits, labels)
    wide = accumulator(dtype)
    half, log_sum, _ = _log_softmax_parts(logits.astype(wide))
    return _times_surprise(labels.astype(wide), half, log_sum).sum(-1).astype(dtype)  # (S6)


def _weighted_fwd(logits, labels):
    return _weighted.body(logits, labels), (logits, labels)


def _weighted_bwd(residuals, delta):
    logits, labels = residuals
    wide = accumulator(delta.dtype)
    delta, y = delta[..., None].astype(wide), labels.astype(wide)
    half, log_sum, p = _log_softmax_parts(logits.astype(wide))
    dlogits = delta * (p * y.sum(-1, keepdims=True) - y)  # (S7)
    dlabels = _times_surprise(delta, half, log_sum)  # (S8)
    return dlogits.astype(logits.dtype), dlabels.astype(labels.dtype)


_weighted.defvjp(_weighted_fwd, _weighted_bwd)


def softmax_cross_entropy_with_integer_labels(logits: jax.Array, labels: ArrayLike) -> jax.Array:
    """`−log softmax(z)_y` over the last axis: one value per example.

    The gradient is softmax(z) − onehot(y) (derivation.md, S10). Only logits and labels are saved. Half precision is
    computed in float32.

    A label outside [0, K), also a negative one, cannot raise under jit. Its example's loss and row of dlogits are NaN,
    whatever the cotangent; other rows are untouched. To leave an example out, give it any valid label and multiply its
    loss by 0. The factor alone does not help, because 0 · NaN is NaN.

    Args:
      logits: z, shape (..., K), floating dtype.
      labels: y, the index of each example's class, shape (...), integer dtype. They have no gradient.

    Returns:
      Array of shape (...) and the dtype of `logits`.

    Raises:
      TypeError: `logits` does not have a floating dtype, or `labels` an integer dtype.
      ValueError: scalar or empty logits, or labels of another shape than `logits.shape[:-1]`.

    >>> bnderiv.softmax_cross_entropy_with_integer_labels(jnp.zeros((2, 4)), jnp.array([3, 4])).round(3)
    Array([1.386,   nan], dtype=float32)
    """
    logits = _checks.float_array("logits", logits)
    _checks.rank_at_least("logits", logits, 1, "(..., K)")
    _checks.nonempty("logits", logits)
    labels = class_indices(labels, logits.shape[-1])
    _checks.shape_is("labels", labels, logits.shape[:-1], "that of logits without its last axis")
    return _indexed(logits, labels)


@closed_form(result=like_rows)
def _indexed(logits, labels):
    half, log_sum, _ = _log_softmax_parts(logits.astype(accumulator(logits.dtype)))
    hit, valid = one_hot(labels, half)
    picked = jnp.where(hit, half, 0).sum(-1, keepdims=True)
    return (valid * (log_sum - 2 * picked))[..., 0].astype(logits.dtype)  # (S9)


def _indexed_fwd(logits, labels):
    return _indexed.body(logits, labels), (logits, labels)


def _indexed_bwd(residuals, delta):
    logits, labels = residuals
    wide = accumulator(delta.dtype)
    half, _, p = _log_softmax_parts(logits.astype(wide))
    hit, valid = one_hot(labels, half)
    dlogits = delta[..., None].astype(wide) * (valid * (p - hit.astype(wide)))  # (S10)
    return dlogits.astype(logits.dtype), None


_indexed.defvjp(_indexed_fwd, _indexed_bwd)


def _log_softmax_parts(z):
    """½(z − max z), which cannot overflow, log Σ exp(z − max z) and softmax(z) (S5).

    The first two are kept apart: max z + log Σ would round at the size of z.
    """
    half = z / 2 - jnp.max(lax.stop_gradient(z), -1, keepdims=True) / 2
    e = jnp.exp(2 * half)
    total = e.sum(-1, keepdims=True)
    return half, jnp.log(total), e / total


def _times_surprise(weight, half, log_sum):
    """weight · (−log softmax), which is 0 where the weight is 0 and the logarithm infinite.

    The weight may be a cotangent, in which a rule must be linear, so it is not compared with 0. The infinity is made of
    two finite factors, and 0 · big · big = 0. The barrier keeps XLA from folding big · big to inf.
    """
    ruled_out = half == -jnp.inf
    big = lax.optimization_barrier(jnp.finfo(half.dtype).max)
    finite = 2 * (weight * (log_sum / 2 - jnp.where(ruled_out, 0, half)))
    return finite + jnp.where(ruled_out, weight, 0) * big * big


def one_hot(labels, like):
    """Booleans in the shape of `like`, True at each row's label; and a factor, NaN for a label that is no class."""
    labels = labels[..., None]
    classes = lax.broadcasted_iota(labels.dtype, like.shape, like.ndim - 1)
    valid = (labels >= 0) & (labels < like.shape[-1])
    return labels == classes, jnp.where(valid, 1, jnp.nan).astype(like.dtype)


def class_indices(labels: Any, classes: int) -> jax.Array:
    """Integer labels as an array of JAX of at least 32 bits, in which a label that is no class still is none."""
    labels = _checks.integer_array("labels", labels)
    if isinstance(labels, (np.ndarray, np.integer)):
        # Without x64 JAX keeps the low 32 bits, so −2**63, which NumPy makes of a NaN, would become class 0.
        labels = np.where((labels >= 0) & (labels < classes), labels.astype(np.int32), np.int32(-1))
    labels = jnp.asarray(labels)
    # An int8 cannot hold every class. Wider dtypes stay as they are: a cast could wrap into the range of the classes.
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
