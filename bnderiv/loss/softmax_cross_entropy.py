"""Softmax and cross entropy in one, with the gradient in closed form (derivation.md, S5–S10)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._sharding import automatic, spread_like_rows


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`−Σ_k y_k log softmax(z)_k` over the last axis: one value per example (a mean over the batch is the caller's).

    The gradient is softmax(z)·Σ_k y_k − y for the logits z, which is softmax(z) − y where the labels y sum to 1, and
    −log softmax(z) for the labels (derivation.md, S7, S8). Only logits and labels are saved. Half precision is computed
    in float32.

    A logit −inf (a class ruled out) contributes 0 where its label is 0, and makes the loss +inf where it is positive.
    Its label's gradient is ±inf, and exactly 0 under a cotangent 0. A row with +inf, or of −inf alone, is NaN.

    Args:
      logits: z, shape (..., K), floating dtype.
      labels: y, weights of the same shape, floating dtype: a one-hot code, probabilities, or with any sum.

    Returns:
      Array of shape (...) and dtype `jnp.result_type(logits, labels)`.

    Raises:
      TypeError: an argument has no floating dtype.
      ValueError: scalars, empty arrays, or shapes that differ.
    """
    logits = _checks.float_array("logits", logits)
    labels = _checks.float_array("labels", labels)
    _checks.rank_at_least("logits", logits, 1, "(..., K)")
    _checks.nonempty("logits", logits)
    _checks.shape_is("labels", labels, logits.shape, "that of logits")
    logits, labels = _checks.same_varying(logits, labels)
    return automatic(_weighted, spread_like_rows, logits=logits, labels=labels)


@closed_form
def _weighted(logits, labels):
    return _weighted_losses(logits, labels)


def _weighted_losses(logits, labels):
    dtype = jnp.result_type(logits, labels)
    wide = accumulator(dtype)
    half, log_sum, _ = _log_softmax_parts(logits.astype(wide))
    return _times_surprise(labels.astype(wide), half, log_sum).sum(-1).astype(dtype)  # (S6)


def _weighted_fwd(logits, labels):
    return _weighted_losses(logits, labels), (logits, labels)


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
    """`−log softmax(z)_y` over the last axis: one value per example (a mean over the batch is the caller's).

    The gradient is softmax(z) − (the one-hot code of y) (derivation.md, S10). Only logits and labels are saved. Half
    precision is computed in float32.

    A label outside [0, K), negative ones included, cannot raise under jit: that example's loss and its row of dlogits
    are NaN, whatever its cotangent; the other rows are untouched. To leave such examples out, give them a label that
    exists and weigh their loss with 0: a weight alone leaves the NaN in.

    Args:
      logits: z, shape (..., K), floating dtype.
      labels: y, the index of each example's class, shape (...), integer dtype. They have no gradient.

    Returns:
      Array of shape (...) and the dtype of `logits`.

    Raises:
      TypeError: `logits` has no floating dtype, or `labels` no integer dtype.
      ValueError: scalar or empty logits, or labels of another shape than `logits.shape[:-1]`.
    """
    logits = _checks.float_array("logits", logits)
    _checks.rank_at_least("logits", logits, 1, "(..., K)")
    _checks.nonempty("logits", logits)
    labels = _class_indices(labels, logits.shape[-1])
    _checks.shape_is("labels", labels, logits.shape[:-1], "that of logits without its last axis")
    logits, labels = _checks.same_varying(logits, labels)
    return automatic(_indexed, spread_like_rows, logits=logits, labels=labels)


@closed_form
def _indexed(logits, labels):
    return _indexed_losses(logits, labels)


def _indexed_losses(logits, labels):
    half, log_sum, _ = _log_softmax_parts(logits.astype(accumulator(logits.dtype)))
    hit, valid = _one_hot(labels, half)
    picked = jnp.where(hit, half, 0).sum(-1, keepdims=True)
    return (valid * (log_sum - 2 * picked))[..., 0].astype(logits.dtype)  # (S9)


def _indexed_fwd(logits, labels):
    return _indexed_losses(logits, labels), (logits, labels)


def _indexed_bwd(residuals, delta):
    logits, labels = residuals
    wide = accumulator(delta.dtype)
    half, _, p = _log_softmax_parts(logits.astype(wide))
    hit, valid = _one_hot(labels, half)
    dlogits = delta[..., None].astype(wide) * (valid * (p - hit.astype(wide)))  # (S10)
    return dlogits.astype(logits.dtype), None


_indexed.defvjp(_indexed_fwd, _indexed_bwd)


def _log_softmax_parts(z):
    """½(z − max z), log Σ exp(z − max z), and softmax(z).

    The first two are kept apart, since max z + log Σ rounds at the size of z (S5). Half of z − max z never overflows.
    """
    half = z / 2 - jnp.max(lax.stop_gradient(z), -1, keepdims=True) / 2
    e = jnp.exp(2 * half)
    total = e.sum(-1, keepdims=True)
    return half, jnp.log(total), e / total


def _times_surprise(weight, half, log_sum):
    """weight · (−log softmax), where an infinite surprise times a zero weight is 0.

    Linear in the weight, as JAX demands of a cotangent, so the weight is not compared with 0: the infinity comes from
    two factors that are finite each, and 0 · big · big = 0. The barrier keeps XLA from folding big · big to inf.
    """
    ruled_out = half == -jnp.inf
    big = lax.optimization_barrier(jnp.finfo(half.dtype).max)
    finite = 2 * (weight * (log_sum / 2 - jnp.where(ruled_out, 0, half)))
    return finite + jnp.where(ruled_out, weight, 0) * big * big


def _one_hot(labels, like):
    """Where each row's label is, without a gather, and a factor that is 1, or NaN where the label is no class."""
    labels = labels[..., None]
    classes = lax.broadcasted_iota(labels.dtype, like.shape, like.ndim - 1)
    valid = (labels >= 0) & (labels < like.shape[-1])
    return labels == classes, jnp.where(valid, 1, jnp.nan).astype(like.dtype)


def _class_indices(labels: Any, classes: int) -> jax.Array:
    if isinstance(labels, int):
        labels = np.asarray(labels)
    if isinstance(labels, (np.ndarray, np.integer)) and np.issubdtype(labels.dtype, np.integer):
        # Without x64 JAX keeps the low 32 bits: −2**63, what NumPy makes of a NaN, would become class 0.
        labels = np.where((labels >= 0) & (labels < classes), labels.astype(np.int32), np.int32(-1))
    if not hasattr(labels, "dtype"):
        raise TypeError(f"labels must be an array of integer dtype, got {type(labels).__name__}")
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must have an integer dtype, got {labels.dtype.name}{list(labels.shape)}")
    # An int8 cannot count to the number of classes; a uint32 or int64 must not wrap into their range.
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
