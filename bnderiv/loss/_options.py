"""The options of the cross entropies: what they make of the labels (derivation.md, S11), and what does not count."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv import _checks
from bnderiv._gpu import start_of_row
from bnderiv.activation.log_softmax import log_softmax_parts


def checked_logits(logits: Any) -> jax.Array:
    logits = _checks.float_array("logits", logits)
    _checks.rank_at_least("logits", logits, 1, "(..., K)")
    _checks.nonempty("logits", logits)
    return logits


def checked_options(
    logits: jax.Array, label_smoothing: Any, class_weights: Any, where: Any
) -> tuple[float, jax.Array | None, jax.Array | None]:
    """The options in normal form: a Python float, (K,), and booleans that broadcast to the logits, K wide."""
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, numbers.Real):
        raise TypeError(f"label_smoothing must be a number known when tracing, got {label_smoothing!r}")
    if not 0 <= float(label_smoothing) <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if class_weights is not None:
        class_weights = _checks.float_array("class_weights", class_weights)
        _checks.shape_is("class_weights", class_weights, logits.shape[-1:], "one per class, the last axis of logits")
    if where is not None:
        examples = jnp.ndim(where) == logits.ndim - 1
        if not examples and jnp.ndim(where) != logits.ndim:  # neither examples nor classes, though it may broadcast
            raise ValueError(
                f"where must have the rank of logits, {logits.ndim}, or one less, got shape {jnp.shape(where)}"
            )
        shape = logits.shape[:-1] if examples else logits.shape
        where = _checks.mask("where", where, shape, "logits, or of its axes but the last")
        where = where[..., None] if examples else where
        where = jnp.broadcast_to(where, (*where.shape[:-1], logits.shape[-1]))
    return float(label_smoothing), class_weights, where


def targets(smoothing, class_weights, where, y):
    """What the options make of the labels: t = m w ((1 − α) y + α/n) (S11)."""
    return per_class(smoothed(smoothing, where, y), class_weights, where)


def smoothed(smoothing, where, y):
    """m ((1 − α) y + α/n): the labels before the weights; n counts the example's classes."""
    y = counted(where, y)
    if not smoothing:
        return y
    n = jnp.asarray(y.shape[-1]) if where is None else jnp.maximum(where.sum(-1, keepdims=True), 1)
    return counted(where, (1 - smoothing) * y + smoothing / n.astype(y.dtype))


def per_class(a, class_weights, where):
    """m w a. Where a class does not count, w may be NaN, and would reach the second derivatives by a product."""
    if class_weights is None:
        return a
    return a * counted(where, lax.expand_dims(class_weights.astype(a.dtype), range(a.ndim - 1)))


def counted(where, a):
    """m a: `a` where it counts, otherwise 0 whatever it holds. What counts may still make its example NaN."""
    return a if where is None else jnp.where(where, a, 0)


def parts_over_counted(z, where):
    """The parts of log softmax over the classes that count; finite numbers for an example of which none does."""
    return log_softmax_parts(_over_counted(z, where), -1)


def gradient_parts_over_counted(z, where):
    """`parts_over_counted`, to be one kernel with the sums of a gradient on a GPU."""
    # After the mask: a row starts with a sum of it, which takes a NaN to the whole row.
    return log_softmax_parts(start_of_row(_over_counted(z, where), (z.ndim - 1,)), -1)


def _over_counted(z, where):
    if where is None:
        return z
    return jnp.where(where, z, jnp.where(where.any(-1, keepdims=True), -jnp.inf, 0).astype(z.dtype))
