"""Softmax cross entropy with its gradient in closed form (derivation.md, S5–S13)."""

import numbers
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
from bnderiv.activation.log_softmax import log_softmax_parts


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
    logits = _checked_logits(logits)
    labels = _checks.float_array("labels", labels)
    _checks.shape_is("labels", labels, logits.shape, "that of logits")
    _checks.promoted(logits=logits, labels=labels)
    return _weighted(*checked_options(logits, label_smoothing, class_weights, where), logits, labels)


def _like_rows(smoothing, class_weights, where, logits, labels):
    return like_rows(logits, labels)


@closed_form(static=1, result=_like_rows)
def _weighted(smoothing, class_weights, where, logits, labels):
    dtype = jnp.result_type(logits, labels)
    z, y = logits.astype(accumulator(dtype)), labels.astype(accumulator(dtype))
    half, log_sum, _ = _over_counted(z, where)
    return _surprise(targets(smoothing, class_weights, where, y), half, log_sum).astype(dtype)  # (S6)


def _weighted_fwd(smoothing, class_weights, where, logits, labels):
    return _weighted.body(smoothing, class_weights, where, logits, labels), (class_weights, where, logits, labels)


def _weighted_bwd(smoothing, residuals, delta):
    class_weights, where, logits, labels = residuals
    wide = accumulator(delta.dtype)
    z, y, delta = logits.astype(wide), labels.astype(wide), delta[..., None].astype(wide)
    t = targets(smoothing, class_weights, where, y)
    half, log_sum, p = _over_counted(z, where)
    dlogits = _select(where, delta * (p * t.sum(-1, keepdims=True) - t))  # (S7)
    slope = _per_class(_select(where, jnp.full_like(y, 1 - smoothing)), class_weights, where)
    dlabels = _select(where, _times_surprise(delta, half, log_sum, slope))  # (S8), (S12)
    dweights = _gradient_of_weights(delta, half, log_sum, _smoothed(smoothing, where, y), class_weights, where)
    return dweights, None, dlogits.astype(logits.dtype), dlabels.astype(labels.dtype)


_weighted.defvjp(_weighted_fwd, _weighted_bwd)


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
        `where` counts for nothing, as its one-hot code does.

    Returns:
      Array of shape (...) and the dtype of `logits`.

    Raises:
      TypeError: `logits` or `class_weights` does not have a floating dtype, `labels` an integer dtype, `where` is not
        boolean, or `label_smoothing` no number.
      ValueError: scalar or empty logits, shapes that do not fit, or `label_smoothing` outside [0, 1].

    >>> bnderiv.softmax_cross_entropy_with_integer_labels(jnp.zeros((2, 4)), jnp.array([3, 4])).round(3)
    Array([1.386,   nan], dtype=float32)
    """
    logits = _checked_logits(logits)
    labels = class_indices(labels, logits.shape[-1])
    _checks.shape_is("labels", labels, logits.shape[:-1], "that of logits without its last axis")
    return _indexed(*checked_options(logits, label_smoothing, class_weights, where), logits, labels)


@closed_form(static=1, result=_like_rows)
def _indexed(smoothing, class_weights, where, logits, labels):
    z = logits.astype(accumulator(logits.dtype))
    y, valid = _code(labels, z, where)
    half, log_sum, _ = _over_counted(z, where)
    if smoothing or class_weights is not None or where is not None:
        loss = _surprise(targets(smoothing, class_weights, where, y), half, log_sum)
    else:
        loss = 2 * (log_sum[..., 0] / 2 - _at_label(labels, z, half))  # (S9)
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
    half, log_sum, p = _over_counted(z, where)
    dlogits = _select(where, delta * valid * ((p if sums_to_one else p * t.sum(-1, keepdims=True)) - t))  # (S10)
    dweights = _gradient_of_weights(delta * valid, half, log_sum, _smoothed(smoothing, where, y), class_weights, where)
    return dweights, None, dlogits.astype(logits.dtype), None


_indexed.defvjp(_indexed_fwd, _indexed_bwd)


def _checked_logits(logits: Any) -> jax.Array:
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
        counted = logits.shape[:-1] if examples else logits.shape
        where = _checks.mask("where", where, counted, "logits, or of its axes but the last")
        where = where[..., None] if examples else where
        where = jnp.broadcast_to(where, (*where.shape[:-1], logits.shape[-1]))
    return float(label_smoothing), class_weights, where


def targets(smoothing, class_weights, where, y):
    """What the options make of the labels: t = m w ((1 − α) y + α/n) (S11)."""
    return _per_class(_smoothed(smoothing, where, y), class_weights, where)


def _smoothed(smoothing, where, y):
    y = _select(where, y)
    if not smoothing:
        return y
    n = jnp.asarray(y.shape[-1]) if where is None else jnp.maximum(where.sum(-1, keepdims=True), 1)
    return _select(where, (1 - smoothing) * y + smoothing / n.astype(y.dtype))


def _per_class(a, class_weights, where):
    """m w a. Where a class does not count, w may be NaN, and would reach the second derivatives by a product."""
    if class_weights is None:
        return a
    return a * _select(where, lax.expand_dims(class_weights.astype(a.dtype), range(a.ndim - 1)))


def _select(where, a):
    """m a: `a` where it counts, otherwise 0 whatever it holds. What counts may make all of an example NaN."""
    return a if where is None else jnp.where(where, a, 0)


def _over_counted(z, where):
    """The parts of log softmax over the classes that count; finite numbers for an example of which none does."""
    if where is not None:
        z = jnp.where(where, z, jnp.where(where.any(-1, keepdims=True), -jnp.inf, 0).astype(z.dtype))
    return log_softmax_parts(z, -1)


def _surprise(t, half, log_sum):
    """Σ t · (−log softmax). The row's log Σ comes after the sum: XLA:CPU would materialize it for each class."""
    return t.sum(-1) * log_sum[..., 0] + _times_surprise(t, half, 0).sum(-1)


def _at_label(labels, z, half):
    """½(z − max z) at each row's label; anything for a label that is no class.

    A CPU looks it up: with a sum of K terms, of which one is not 0, the loss of 512 examples and 1,000 classes takes
    twice the time. Elsewhere the sum is fused into the other sums of the row.
    """

    def looked_up(labels, z, half):
        place = jnp.clip(labels, 0, z.shape[-1] - 1)[..., None]
        highest = jnp.max(lax.stop_gradient(z), -1, keepdims=True)
        return (jnp.take_along_axis(z, place, -1) / 2 - highest / 2)[..., 0]

    def summed(labels, z, half):
        return jnp.where(one_hot(labels, z)[0], half, 0).sum(-1)

    return by_target(labels, z, half, cpu=looked_up, default=summed)


def _gradient_of_weights(delta, half, log_sum, smoothed, class_weights, where):
    """∂J/∂w_k, the sum over the examples (S13)."""
    if class_weights is None:
        return None
    examples = tuple(range(half.ndim - 1))
    return _select(where, _times_surprise(delta, half, log_sum, smoothed)).sum(examples).astype(class_weights.dtype)


def _times_surprise(weight, half, log_sum, slope=None):
    """weight · slope · (−log softmax), which is 0 where either factor is 0 and the logarithm infinite.

    The weight may be a cotangent, in which a rule must be linear, so it is not compared with 0. The infinity is made of
    two finite factors, and 0 · big · big = 0. The barrier keeps XLA from folding big · big to inf. The slope is
    compared: transposed for forward mode, the infinity is multiplied first.
    """
    ruled_out = half == -jnp.inf
    big = lax.optimization_barrier(jnp.finfo(half.dtype).max)
    infinite = weight
    if slope is not None:
        weight, infinite = weight * slope, jnp.where(slope != 0, weight * slope, 0)
    finite = 2 * (weight * (log_sum / 2 - jnp.where(ruled_out, 0, half)))
    return jnp.where(ruled_out, finite + infinite * big * big, finite)


def _code(labels, z, where):
    """The one-hot code in the dtype of z, and a factor, NaN for a label that is no class of an example that counts."""
    hit, valid = one_hot(labels, z)
    return hit.astype(z.dtype), valid if where is None else jnp.where(where.any(-1, keepdims=True), valid, 1)


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
