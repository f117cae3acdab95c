"""The losses, step by step (derivation.md, S1–S13): one value for each example, and its gradient times c."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv.loss._options import checked_options
from bnderiv.loss.integer_labels import class_indices, one_hot
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather

# An argument of every loss.
FromAbove = Annotated[jax.Array, "c", "(...)", INPUT, "gradient from above for each example, 1 in the documents"]


@derivation
class SquaredError(NamedTuple):
    """The steps of `squared_error`."""

    predictions: Annotated[jax.Array, "a", "(..., K)", INPUT, "predictions"]
    targets: Annotated[jax.Array, "y", "(..., K)", INPUT, "targets"]
    dy: FromAbove
    difference: Annotated[jax.Array, "a − y", "(..., K)", "(S2)", "error"]
    loss: Annotated[jax.Array, "J = ½ Σ_k (y_k − a_k)²", "(...)", "(S1)", "loss of each example"]
    d_predictions: Annotated[jax.Array, "∂J/∂a = a − y", "(..., K)", "(S2)", "gradient of the predictions"]
    d_targets: Annotated[jax.Array, "∂J/∂y = y − a", "(..., K)", "(S2)", "gradient of the targets"]


def squared_error(predictions: ArrayLike, targets: ArrayLike, dy: ArrayLike | None = None) -> SquaredError:
    """Half the squared distance and its two gradients.

    Args:
      predictions: a, shape (..., K), floating dtype (half precision is computed in float32).
      targets: y, same shape.
      dy: c, the gradient from above for each example, shape (...); None means 1, as in the documents.

    Returns:
      `SquaredError`.

    Raises:
      TypeError: an argument without floating dtype.
      ValueError: shapes that do not fit, or an empty array.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.squared_error(jnp.array([2.0, 1.0]), jnp.array([1.0, 2.0]))
      >>> s.loss.item(), s.d_predictions.tolist()
      (1.0, [1.0, -1.0])
    """
    predictions, targets = arrays(predictions=predictions, targets=targets)
    _checks.rank_at_least("predictions", predictions, 1, "(..., K)")
    _checks.shape_is("targets", targets, predictions.shape, "that of predictions")
    difference = predictions - targets
    loss = (difference**2).sum(-1) / 2  # (S1)
    dy = _from_above(dy, loss)
    d_predictions = dy[..., None] * difference  # (S2)
    d_targets = -dy[..., None] * difference  # (S2)
    return gather(SquaredError, locals())


# Steps of the cross entropy with labels of either kind.
Logits = Annotated[jax.Array, "z", "(..., K)", INPUT, "scores of the classes"]
Shifted = Annotated[jax.Array, "u = z − m", "(..., K)", "(S5)", "less the largest"]
Total = Annotated[jax.Array, "S = Σ_k e^(u_k)", "(..., 1)", "(S5)", "between 1 and K"]
Probabilities = Annotated[jax.Array, "s = softmax(z)", "(..., K)", "(S5)", "probabilities"]
LogProbabilities = Annotated[jax.Array, "log s = u − log S", "(..., K)", "(S5)", "their logarithms"]
# Of its options; an array is None, and has no row, where the option is not used.
Smoothing = Annotated[float, "label smoothing α"]
ClassWeights = Annotated[jax.Array | None, "w", "(K)", INPUT, "weights of the classes"]
Counted = Annotated[jax.Array | None, "m", "(..., K)", INPUT, "1 for a class that counts, otherwise 0"]
Targets = Annotated[
    jax.Array | None,
    "t = m w ((1 − α) y + α/n)",
    "(..., K)",
    "(S11)",
    "what the options make of y; below, read t for y",
]
GradientOfWeights = Annotated[
    jax.Array | None, "∂J/∂w = −Σ m ((1 − α) y + α/n) log s", "(K)", "(S13)", "gradient of the class weights"
]


@derivation
class SoftmaxCrossEntropy(NamedTuple):
    """The steps of `softmax_cross_entropy`."""

    logits: Logits
    labels: Annotated[jax.Array, "y", "(..., K)", INPUT, "one weight for each class"]
    dy: FromAbove
    label_smoothing: Smoothing
    class_weights: ClassWeights
    where: Counted
    shifted: Shifted
    total: Total
    s: Probabilities
    log_s: LogProbabilities
    targets: Targets
    label_sum: Annotated[jax.Array, "Y = Σ_k y_k", "(..., 1)", "(S7)", "sum of the weights, 1 for probabilities"]
    loss: Annotated[jax.Array, "J = −Σ_k y_k log s_k", "(...)", "(S6)", "loss of each example"]
    d_logits: Annotated[jax.Array, "δ = Y s − y", "(..., K)", "(S7)", "gradient of the logits"]
    d_labels: Annotated[
        jax.Array, "∂J/∂y = −log s", "(..., K)", "(S8)", "gradient of the labels, times m w (1 − α) (S12)"
    ]
    d_class_weights: GradientOfWeights


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    dy: ArrayLike | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> SoftmaxCrossEntropy:
    """Cross entropy of a softmax, and the gradients of both arguments.

    Args:
      logits: z, shape (..., K), floating dtype (half precision is computed in float32).
      labels: y, weights of the same shape: one-hot codes, probabilities, or with any sum.
      dy: c, the gradient from above for each example, shape (...); None means 1, as in the documents.
      label_smoothing, class_weights, where: α, w and m, as in `bnderiv.softmax_cross_entropy`.

    Returns:
      `SoftmaxCrossEntropy`.

    Raises:
      TypeError: an argument without floating dtype, or an option of the wrong type.
      ValueError: shapes that do not fit, an empty array, or `label_smoothing` outside [0, 1].

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.softmax_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0]))
      >>> s.d_logits.tolist()
      [-0.5, 0.5]
    """
    logits, labels = arrays(logits=logits, labels=labels)
    _checks.rank_at_least("logits", logits, 1, "(..., K)")
    _checks.shape_is("labels", labels, logits.shape, "that of logits")
    label_smoothing, class_weights, where = _options(logits, label_smoothing, class_weights, where)
    shifted, total, s, log_s = _probabilities(logits, where)
    targets = _targets(labels, label_smoothing, class_weights, where)
    t = labels if targets is None else targets
    label_sum = t.sum(-1, keepdims=True)
    loss = -jnp.where(t == 0, 0, t * log_s).sum(-1)  # (S6), a weight 0 counts for nothing even at −∞
    dy = _from_above(dy, loss)
    d_logits = dy[..., None] * (label_sum * s - t)  # (S7)
    d_labels = -dy[..., None] * log_s  # (S8)
    if targets is not None:
        mw = _weights(logits, class_weights, where)
        d_labels = jnp.where(mw == 0, 0, (1 - label_smoothing) * mw * d_labels)  # (S12)
    d_class_weights = _gradient_of_weights(labels, dy, log_s, label_smoothing, class_weights, where)
    where = None if where is None else jnp.asarray(where, logits.dtype)  # m, as numbers
    return gather(SoftmaxCrossEntropy, locals())


@derivation
class SoftmaxCrossEntropyWithIntegerLabels(NamedTuple):
    """The steps of `softmax_cross_entropy_with_integer_labels`."""

    logits: Logits
    labels: Annotated[jax.Array, "y", "(...), integers", INPUT, "class of each example"]
    dy: FromAbove
    label_smoothing: Smoothing
    class_weights: ClassWeights
    where: Counted
    shifted: Shifted
    total: Total
    s: Probabilities
    log_s: LogProbabilities
    one_hot: Annotated[jax.Array, "1{j = y}", "(..., K)", "(S10)", "the label's code; a row of NaN for no class"]
    targets: Targets
    loss: Annotated[jax.Array, "J = −log s_y", "(...)", "(S9)", "loss of each example"]
    d_logits: Annotated[jax.Array, "δ_j = s_j − 1{j = y}", "(..., K)", "(S10)", "gradient of the logits; T s − t of t"]
    d_class_weights: GradientOfWeights


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    dy: ArrayLike | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> SoftmaxCrossEntropyWithIntegerLabels:
    """`softmax_cross_entropy` where each label is one class, an integer: the negative log-likelihood.

    Args:
      logits: z, shape (..., K), floating dtype (half precision is computed in float32).
      labels: y, the class of each example, shape (...), integer dtype. Outside [0, K): NaN in that row.
      dy: c, the gradient from above for each example, shape (...); None means 1, as in the documents.
      label_smoothing, class_weights, where: α, w and m, as in `bnderiv.softmax_cross_entropy`.

    Returns:
      `SoftmaxCrossEntropyWithIntegerLabels`.

    Raises:
      TypeError: logits without floating dtype, labels without integer dtype, or an option of the wrong type.
      ValueError: shapes that do not fit, an empty array, or `label_smoothing` outside [0, 1].

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.softmax_cross_entropy_with_integer_labels(jnp.array([0.0, 0.0]), jnp.array(0))
      >>> s.one_hot.tolist(), s.d_logits.tolist()
      ([1.0, 0.0], [-0.5, 0.5])
    """
    (logits,) = arrays(logits=logits)
    _checks.rank_at_least("logits", logits, 1, "(..., K)")
    label_smoothing, class_weights, where = _options(logits, label_smoothing, class_weights, where)
    shifted, total, s, log_s = _probabilities(logits, where)
    labels = jnp.asarray(_checks.integer_array("labels", labels))
    one_hot = code(labels, logits)
    targets = _targets(one_hot, label_smoothing, class_weights, where)
    t = one_hot if targets is None else targets
    loss = -jnp.where(t == 0, 0, t * log_s).sum(-1)  # (S9): of a one-hot code one term of the sum is left
    dy = _from_above(dy, loss)
    d_logits = dy[..., None] * ((s if targets is None else t.sum(-1, keepdims=True) * s) - t)  # (S10)
    d_class_weights = _gradient_of_weights(one_hot, dy, log_s, label_smoothing, class_weights, where)
    where = None if where is None else jnp.asarray(where, logits.dtype)  # m, as numbers
    return gather(SoftmaxCrossEntropyWithIntegerLabels, locals())


def code(labels: jax.Array, like: jax.Array) -> jax.Array:
    """The one-hot code 1{j = y} in the shape of `like`, (..., K); NaN if the label is no class.

    Raises:
      TypeError: labels without integer dtype.
      ValueError: labels of another shape than `like.shape[:-1]`.
    """
    labels = class_indices(labels, like.shape[-1])
    _checks.shape_is("labels", labels, like.shape[:-1], "that of logits without its last axis")
    here, valid = one_hot(labels, like)
    return here.astype(like.dtype) * valid


def _options(logits: jax.Array, label_smoothing: Any, class_weights: Any, where: Any) -> tuple[float, Any, Any]:
    """The options in normal form: α, w in the dtype of the logits, and m in their shape."""
    smoothing, weights, counted = checked_options(logits, label_smoothing, class_weights, where)
    return (
        smoothing,
        None if weights is None else weights.astype(logits.dtype),
        None if counted is None else jnp.broadcast_to(counted, logits.shape),
    )


def _targets(y: jax.Array, smoothing: float, weights: Any, where: Any) -> jax.Array | None:
    """t (S11), None without options."""
    if not smoothing and weights is None and where is None:
        return None
    return _smoothed(y, smoothing, where) * _weights(y, weights, where)


def _smoothed(y: jax.Array, smoothing: float, where: Any) -> jax.Array:
    """m ((1 − α) y + α/n)."""
    counted = jnp.ones(y.shape, bool) if where is None else where
    n = jnp.maximum(counted.sum(-1, keepdims=True), 1).astype(y.dtype)
    return jnp.where(counted, (1 - smoothing) * y + smoothing / n, 0)


def _weights(like: jax.Array, weights: Any, where: Any) -> jax.Array:
    """m w, in the shape of `like`; 1 without options."""
    w = jnp.ones(like.shape, like.dtype) if weights is None else jnp.broadcast_to(weights, like.shape)
    return w if where is None else jnp.where(where, w, 0)


def _gradient_of_weights(
    y: jax.Array, dy: jax.Array, log_s: jax.Array, smoothing: float, weights: Any, where: Any
) -> jax.Array | None:
    """(S13), None without weights."""
    if weights is None:
        return None
    t = _smoothed(y, smoothing, where)
    terms = jnp.where(t == 0, 0, -dy[..., None] * t * log_s)
    return terms.sum(tuple(range(y.ndim - 1)))


def _probabilities(z: jax.Array, where: Any) -> tuple[jax.Array, ...]:
    if where is not None:  # a class that does not count is ruled out, unless none does
        z = jnp.where(where, z, jnp.where(where.any(-1, keepdims=True), -jnp.inf, 0).astype(z.dtype))
    shifted = z - lax.stop_gradient(z.max(-1, keepdims=True))
    exponentials = jnp.exp(shifted)
    total = exponentials.sum(-1, keepdims=True)
    return shifted, total, exponentials / total, shifted - jnp.log(total)  # (S5)


def _from_above(dy: ArrayLike | None, loss: jax.Array) -> jax.Array:
    return jnp.ones_like(loss) if dy is None else cotangent(dy, loss)
