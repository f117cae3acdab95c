"""What the losses must equal: the plain forward, differentiated by JAX."""

import jax
import jax.numpy as jnp

from bnderiv._numbers import accumulator

__all__ = ["softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels", "squared_error"]


def softmax_cross_entropy(logits, labels):
    """`−Σ y log softmax(z)`; see `bnderiv.softmax_cross_entropy`. The labels' gradient at a logit −inf is left out."""
    dtype = jnp.result_type(logits, labels)
    wide = accumulator(dtype)
    logits, labels = logits.astype(wide), labels.astype(wide)
    log_softmax = jnp.where((logits == -jnp.inf) & (labels == 0), 0, jax.nn.log_softmax(logits))
    return -(labels * log_softmax).sum(-1).astype(dtype)


def softmax_cross_entropy_with_integer_labels(logits, labels):
    """`−log softmax(z)_y`; see `bnderiv.softmax_cross_entropy_with_integer_labels`."""
    log_softmax = jax.nn.log_softmax(logits.astype(accumulator(logits.dtype)))
    known = (labels >= 0) & (labels < logits.shape[-1])
    picked = jnp.take_along_axis(log_softmax, jnp.where(known, labels, 0)[..., None], -1)[..., 0]
    return (-picked * jnp.where(known, 1, jnp.nan).astype(picked.dtype)).astype(logits.dtype)


def squared_error(predictions, targets):
    """`½ Σ (y − a)²`; see `bnderiv.squared_error`."""
    dtype = jnp.result_type(predictions, targets)
    wide = accumulator(dtype)
    error = targets.astype(wide) - predictions.astype(wide)
    return (0.5 * jnp.einsum("...k,...k->...", error, error)).astype(dtype)
