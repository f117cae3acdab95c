"""Softmax cross entropy of classes by their number, with its gradient in closed form (derivation.md, S9–S13)."""

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
from bnderiv._target import by_target
from bnderiv.loss._options import (
    checked_logits,
    checked_options,
    counted,
    gradient_parts_over_counted,
    parts_over_counted,
    smoothed,
    targets,
)
from bnderiv.loss._surprise import gradient_of_weights, surprise


def softmax_cross_entropy_with_integer_labels(
    logits: jax.Array,
    labels: ArrayLike,
    *,
    label_smoothing: float = 0.0,
    class_weights: jax.Array | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`−log softmax(z)_y` over the last axis: one value per example.

    The gradient is softmax(z) − onehot(y) (derivation.md, S10). Only the arguments are saved. Half precision is
    computed in float32. With options it is `softmax_cross_entropy` of the labels' one-hot code, which is not formed.

    A label outside [0, K), also a negative one, cannot raise under jit. Its example's loss and row of dlogits are NaN,
    whatever the cotangent; other rows are untouched. To leave an example out, use `where`: its label may then be
    anything, so `where=labels >= 0` ignores the label −1. A factor of 0 alone does not help, because 0 · NaN is NaN.

    Args:
      logits: z, shape (..., K), floating dtype.
      labels: y, the index of each example's class, shape (...), integer dtype. They have no gradient.
      label_smoothing, class_weights, where: as in `softmax_cross_entropy`. A label whose class does not count by
        `where` counts for nothing, as its one-hot code does. In optax's function of integers its logit counts.

    Returns:
      Array of shape (...) and the dtype of `logits`.

    Raises:
      TypeError: `logits` or `class_weights` does not have a floating dtype, `labels` an integer dtype, `where` is not
        boolean, or `label_smoothing` no number.
      ValueError: scalar or empty logits, shapes that do not fit, or `label_smoothing` outside [0, 1].

    >>> bnderiv.softmax_cross_entropy_with_integer_labels(jnp.zeros((2, 4)), jnp.array([3, 4])).round(3)
    Array([1.386,   nan], dtype=float32)
    """
    logits = checked_logits(logits)
    labels = class_indices(labels, logits.shape[-1])
    _checks.shape_is("labels", labels, logits.shape[:-1], "that of logits without its last axis")
    return _indexed(*checked_options(logits, label_smoothing, class_weights, where), logits, labels)


@closed_form(static=1, result=lambda smoothing, class_weights, where, logits, labels: like_rows(logits, labels))
def _indexed(smoothing, class_weights, where, logits, labels):
    z = logits.astype(accumulator(logits.dtype))
    y, valid = _code(labels, z, where)
    half, log_sum, _ = parts_over_counted(z, where)
    if smoothing or class_weights is not None or where is not None:
        loss = surprise(targets(smoothing, class_weights, where, y), half, log_sum)
    else:
        loss = log_sum[..., 0] - _at_label(labels, z, half)  # (S9)
    return (valid[..., 0] * loss).astype(logits.dtype)


def _indexed_fwd(smoothing, class_weights, where, logits, labels):
    return _indexed.body(smoothing, class_weights, where, logits, labels), (class_weights, where, logits, labels)


def _indexed_bwd(smoothing, residuals, delta):
    class_weights, where, logits, labels = residuals
    wide = accumulator(delta.dtype)
    z, delta = logits.astype(wide), delta[..., None].astype(wide)
    y, valid = _code(labels, z, where)
    t = targets(smoothing, class_weights, where, y)
    sums_to_one = class_weights is None and where is None
    half, log_sum, p = gradient_parts_over_counted(z, where)
    dlogits = counted(where, delta * valid * ((p if sums_to_one else p * t.sum(-1, keepdims=True)) - t))  # (S10)
    dweights = gradient_of_weights(delta * valid, half, log_sum, smoothed(smoothing, where, y), class_weights, where)
    return dweights, None, dlogits.astype(logits.dtype), None


_indexed.defvjp(_indexed_fwd, _indexed_bwd)


def _at_label(labels, z, half):
    """z − max z at each row's label; anything for a label that is no class.

    A CPU looks it up: with a sum of K terms, of which one is not 0, the loss of 512 examples and 1,000 classes takes
    twice the time. Elsewhere the sum is fused into the other sums of the row.
    """

    def looked_up(labels, z, half):
        highest = jnp.max(lax.stop_gradient(z), -1, keepdims=True)
        return (jnp.take_along_axis(z, labels[..., None], -1) - highest)[..., 0]

    def summed(labels, z, half):
        return 2 * jnp.where(one_hot(labels, z)[0], half, 0).sum(-1)

    return by_target(labels, z, half, cpu=looked_up, default=summed)


def _code(labels, z, where):
    """The one-hot code in the dtype of z, and a factor, NaN for a label that is no class of an example that counts."""
    hit, valid = one_hot(labels, z, None if where is None else where.any(-1, keepdims=True))
    return hit.astype(z.dtype), valid


def one_hot(labels, like, counts=None):
    """Booleans in the shape of `like`, True at each row's label; and a factor, NaN for a label that is no class.

    Where `counts` (..., 1) is False the factor is 1 for any label.
    """
    labels = labels[..., None]
    classes = lax.broadcasted_iota(labels.dtype, like.shape, like.ndim - 1)
    valid = (labels >= 0) & (labels < like.shape[-1])
    # Before the NaN, not after it: `jax.debug_nans` would stop at a label that does not count.
    valid = valid if counts is None else valid | ~counts
    # Chosen as bits, because a constant NaN would stop `jax.debug_nans` whatever the labels are.
    one, nan = np.array([1, np.nan], like.dtype).view(f"u{like.dtype.itemsize}")
    return labels == classes, lax.bitcast_convert_type(jnp.where(valid, one, nan), like.dtype)


def class_indices(labels: Any, classes: int) -> jax.Array:
    """Integer labels as an array of JAX of at least 32 bits, in which a label that is no class still is none."""
    labels = _checks.integer_array("labels", labels)
    if isinstance(labels, (np.ndarray, np.integer)):
        # Without x64 JAX keeps the low 32 bits, so −2**63, which NumPy makes of a NaN, would become class 0.
        labels = np.where((labels >= 0) & (labels < classes), labels.astype(np.int32), np.int32(-1))
    labels = jnp.asarray(labels)
    # An int8 cannot hold every class. Wider dtypes stay as they are: a cast could wrap into the range of the classes.
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)
