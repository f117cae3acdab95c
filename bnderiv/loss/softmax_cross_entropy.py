"""Softmax cross entropy with its gradient in closed form (derivation.md, S5–S8), and its options (S11–S13)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._sharding import like_rows
from bnderiv.loss._options import (
    checked_logits,
    checked_options,
    counted,
    gradient_parts_over_counted,
    parts_over_counted,
    per_class,
    smoothed,
    targets,
)
from bnderiv.loss._surprise import gradient_of_weights, surprise, times_surprise


def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: jax.Array | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`−Σ_k t_k log softmax(z)_k` over the last axis: one value per example. t is y, unless an option changes it.

    With label smoothing α, class weights w and n classes that count by `where`,

        t_k = w_k ((1 − α) y_k + α/n)

    and t_k = 0 for a class that does not count (derivation.md, S11). The order is PyTorch's: labels are smoothed first,
    then weighted. Smoothing alone is that of optax, too. Neither divides by the sum of weights: one value per example.

    The gradient is softmax(z)·Σ_k t_k − t for the logits z and −(1 − α) w log softmax(z) for the labels y, by default
    −log softmax(z) (S7, S8, S12). Only the arguments are saved. Half precision is computed in float32.

    A logit −inf rules a class out. It contributes 0 where t is 0, and makes the loss +inf where t is positive. With
    smoothing every class has a positive t: then rule classes out by `where`. The label's gradient is ±inf, and exactly
    0 if the cotangent is 0. A row with +inf, or with all −inf, is NaN.

    Args:
      logits: z, shape (..., K), floating dtype.
      labels: y, weights of the same shape, floating dtype: a one-hot code, probabilities, or with any sum.
      label_smoothing: α, a number in [0, 1]. Labels of any sum get the same α/n, in a row of zeros as well. It is part
        of the program: a schedule of α compiles one for each value.
      class_weights: w, shape (K,), floating dtype. They have a gradient, too (S13).
      where: booleans; what is False does not count, as in optax. Of the rank of `logits` they are for classes, and
        broadcast to (..., K); with one axis less for whole examples, and broadcast to (...). What does not count
        reaches nothing, NaN and infinity included, and has gradient 0. An example of which nothing counts has loss 0.

    Returns:
      Array of shape (...) and dtype `jnp.result_type(logits, labels)`.

    Raises:
      TypeError: an argument does not have a floating dtype, JAX does not promote their dtypes to one (float8), `where`
        is not boolean, or `label_smoothing` no number.
      ValueError: scalars, empty arrays, shapes that do not fit, or `label_smoothing` outside [0, 1].

    >>> bnderiv.softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([[0.5, 0.5]])).round(3)
    Array([0.693], dtype=float32)
    >>> bnderiv.softmax_cross_entropy(jnp.zeros((2, 2)), jnp.ones((2, 2)), where=jnp.array([True, False])).round(3)
    Array([1.386, 0.   ], dtype=float32)
    """
    logits = checked_logits(logits)
    labels = _checks.float_array("labels", labels)
    _checks.shape_is("labels", labels, logits.shape, "that of logits")
    _checks.promoted(logits=logits, labels=labels)
    return _weighted(*checked_options(logits, label_smoothing, class_weights, where), logits, labels)


@closed_form(static=1, result=lambda smoothing, class_weights, where, logits, labels: like_rows(logits, labels))
def _weighted(smoothing, class_weights, where, logits, labels):
    dtype = jnp.result_type(logits, labels)
    z, y = logits.astype(accumulator(dtype)), labels.astype(accumulator(dtype))
    half, log_sum, _ = parts_over_counted(z, where)
    return surprise(targets(smoothing, class_weights, where, y), half, log_sum).astype(dtype)  # (S6)


def _weighted_fwd(smoothing, class_weights, where, logits, labels):
    return _weighted.body(smoothing, class_weights, where, logits, labels), (class_weights, where, logits, labels)


def _weighted_bwd(smoothing, residuals, delta):
    class_weights, where, logits, labels = residuals
    wide = accumulator(delta.dtype)
    z, y, delta = logits.astype(wide), labels.astype(wide), delta[..., None].astype(wide)
    t = targets(smoothing, class_weights, where, y)
    half, log_sum, p = gradient_parts_over_counted(z, where)
    dlogits = counted(where, delta * (p * t.sum(-1, keepdims=True) - t))  # (S7)
    slope = per_class(jnp.full_like(y, 1 - smoothing), class_weights, where)
    dlabels = counted(where, times_surprise(delta, half, log_sum, slope))  # (S8), (S12)
    dweights = gradient_of_weights(delta, half, log_sum, smoothed(smoothing, where, y), class_weights, where)
    return dweights, None, dlogits.astype(logits.dtype), dlabels.astype(labels.dtype)


_weighted.defvjp(_weighted_fwd, _weighted_bwd)
