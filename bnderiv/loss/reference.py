"""What the losses must equal: the plain forward, differentiated by JAX."""

import jax
import jax.numpy as jnp

from bnderiv._numbers import accumulator

__all__ = ["softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels", "squared_error"]


def softmax_cross_entropy(logits, labels, *, label_smoothing=0.0, class_weights=None, where=None):
    """`−Σ y log softmax(z)`; see `bnderiv.softmax_cross_entropy`. The labels' gradient at a logit −inf is left out."""
    dtype = jnp.result_type(logits, labels)
    labels = labels.astype(accumulator(dtype))
    return _cross_entropy(logits, labels, label_smoothing, class_weights, where).astype(dtype)


def softmax_cross_entropy_with_integer_labels(logits, labels, *, label_smoothing=0.0, class_weights=None, where=None):
    """`−log softmax(z)_y`; see `bnderiv.softmax_cross_entropy_with_integer_labels`."""
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=accumulator(logits.dtype))
    loss = _cross_entropy(logits, one_hot, label_smoothing, class_weights, where)
    known = (labels >= 0) & (labels < logits.shape[-1])
    known = known if where is None else known | ~_counted(where, logits).any(-1)
    return (loss * jnp.where(known, 1, jnp.nan).astype(loss.dtype)).astype(logits.dtype)


def _cross_entropy(logits, labels, smoothing, class_weights, where):
    """−Σ w ((1 − α) y + α/n) log softmax(z) over the n classes that count."""
    counted = _counted(where, logits)
    logits = jnp.where(counted, logits.astype(labels.dtype), -jnp.inf)
    labels = (1 - smoothing) * labels + smoothing / jnp.maximum(counted.sum(-1, keepdims=True), 1).astype(labels.dtype)
    if class_weights is not None:
        labels = labels * jnp.broadcast_to(jnp.asarray(class_weights, labels.dtype), labels.shape)
    labels = jnp.where(counted, labels, 0)
    log_softmax = jax.nn.log_softmax(jnp.where(counted.any(-1, keepdims=True), logits, 0))
    log_softmax = jnp.where((logits == -jnp.inf) & (labels == 0), 0, log_softmax)
    return -(labels * log_softmax).sum(-1)


def _counted(where, logits):
    """`where`, booleans for examples or for classes, in the shape of the logits."""
    if where is None:
        return jnp.ones(logits.shape, bool)
    where = jnp.asarray(where)
    return jnp.broadcast_to(where if where.ndim == logits.ndim else where[..., None], logits.shape)


def squared_error(predictions, targets):
    """`½ Σ (y − a)²`; see `bnderiv.squared_error`."""
    dtype = jnp.result_type(predictions, targets)
    wide = accumulator(dtype)
    error = targets.astype(wide) - predictions.astype(wide)
    return (0.5 * jnp.einsum("...k,...k->...", error, error)).astype(dtype)
