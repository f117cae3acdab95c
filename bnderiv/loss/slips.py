"""Common mistakes in the losses: a missing softmax or label, a wrong sign, a mean where a sum belongs."""

from collections.abc import Iterator
from typing import Any

import numpy as np

Slips = Iterator[tuple[str, str, np.ndarray]]


def of_squared_error(steps: Any) -> Slips:
    """(step, sentence, the value it would have given)."""
    K = steps.difference.shape[-1]
    yield "difference", "the sign: y − a in place of a − y", -steps.difference
    yield "loss", "a missing ½", 2 * steps.loss
    yield "loss", f"a mean over the K = {K} elements, must be half their sum", 2 * steps.loss / K
    for name, right, sentence in (
        ("d_predictions", steps.d_predictions, "y − a in place of a − y"),
        ("d_targets", steps.d_targets, "a − y in place of y − a"),
    ):
        yield name, f"the sign: {sentence}", -right
        yield name, "a factor 2: the ½ of J cancels the 2 of the square", 2 * right
        yield name, f"divided by K = {K}: J is a sum over the elements, not their mean", right / K
        yield from _batch_mean(name, right)


def of_cross_entropy(steps: Any) -> Slips:
    """(step, sentence, the value it would have given), for labels of either kind."""
    integers = hasattr(steps, "one_hot")
    labels, c = steps.one_hot if integers else steps.labels, steps.dy[..., None]
    y = labels if steps.targets is None else steps.targets
    s, shifted, K = steps.s, steps.shifted, steps.shifted.shape[-1]
    over_examples = np.exp(shifted).sum(tuple(range(shifted.ndim - 1)))
    yield "s", "softmax over the examples: the sum goes over the classes", np.exp(shifted) / over_examples
    yield "s", "not divided by S: the exponentials do not sum to 1", np.exp(shifted)
    yield "log_s", "a missing term: u alone, log S is not subtracted", shifted
    yield "log_s", "the sign of log S: it is subtracted", shifted + np.log(steps.total)
    yield "loss", "the sign: J = −Σ y log s, the negative log-likelihood", -steps.loss
    yield "loss", f"a mean over the K = {K} classes, must be their sum", steps.loss / K
    yield "d_logits", "a missing term: −y alone, softmax is not added", -c * y
    yield "d_logits", "a missing term: s alone, the labels are not subtracted", c * s
    yield "d_logits", "the sign: y − s in place of s − y", -steps.d_logits
    yield "d_logits", "the gradient w.r.t. s, −y/s: the Jacobian of softmax is missing", -c * y / s
    yield "d_logits", "s y − y in place of s − y: softmax is not multiplied by the labels", c * (s * y - y)
    yield "d_logits", "the gradient from above is forgotten: s − y alone", s * y.sum(-1, keepdims=True) - y + 0 * c
    yield "d_logits", "log s − y in place of s − y", c * (steps.log_s - y)
    yield from _batch_mean("d_logits", steps.d_logits)
    if not integers:
        yield "d_logits", "a missing factor Y: s − y is right only for weights that sum to 1", c * (s - y)
        yield "d_labels", "the sign: ∂J/∂y = −log s", -steps.d_labels
        yield "d_labels", "a missing logarithm: s in place of −log s", c * s
        yield from _batch_mean("d_labels", steps.d_labels)

    if steps.targets is not None:
        yield from _of_options(steps, labels, c)


def _of_options(steps: Any, y: np.ndarray, c: np.ndarray) -> Slips:
    """Slips in t = m w ((1 − α) y + α/n)."""
    alpha, w, t, K = steps.label_smoothing, steps.class_weights, steps.targets, y.shape[-1]
    m = np.ones_like(y) if steps.where is None else steps.where
    w = np.ones(K) if w is None else w
    n = np.maximum(m.sum(-1, keepdims=True), 1)
    wrong = {
        "the options are forgotten: y in place of t": y,
        "the smoothing is forgotten": m * w * y,
        "the class weights are forgotten": m * ((1 - alpha) * y + alpha / n),
        "a missing factor 1 − α: α/n is added, and the labels stay as they were": m * w * (y + alpha / n),
        "α/(n − 1) for the other classes and 1 − α for the label's: the label's class has its share of α, too": m
        * w
        * ((1 - alpha) * y + (1 - y) * alpha / np.maximum(n - 1, 1)),
        "α is not divided by n": m * w * ((1 - alpha) * y + alpha),
        "weighted before it is smoothed: w (1 − α) y + α/n": m * ((1 - alpha) * w * y + alpha / n),
        "the weight of the label's class for all classes: each has its own": m
        * (w * y).sum(-1, keepdims=True)
        * ((1 - alpha) * y + alpha / n),
    }
    if steps.where is not None:
        wrong[f"classes that do not count in n: K = {K} in place of n"] = m * w * ((1 - alpha) * y + alpha / K)
    for sentence, value in wrong.items():
        yield "targets", sentence, value
        yield "d_logits", sentence, c * (value.sum(-1, keepdims=True) * steps.s - value)
    yield "d_logits", "a missing factor Σ t: s − t is right only for targets that sum to 1", c * (steps.s - t)
    if hasattr(steps, "d_labels"):
        yield "d_labels", "missing factors: m w (1 − α) of the labels' gradient", -c * steps.log_s
        yield "d_labels", "a missing factor 1 − α", -c * np.where(m * w == 0, 0, w * steps.log_s)
        yield "d_labels", "a missing factor: the class weights", -c * np.where(m == 0, 0, (1 - alpha) * steps.log_s)
    if steps.d_class_weights is not None:
        examples = tuple(range(y.ndim - 1))
        yield "d_class_weights", "the sign: ∂J/∂w = −Σ … log s", -steps.d_class_weights
        yield "d_class_weights", "w once more: J is linear in it", steps.d_class_weights * w
        unsmoothed = np.where(m * y == 0, 0, -c * y * steps.log_s).sum(examples)
        yield "d_class_weights", "the smoothing is forgotten", unsmoothed


def _batch_mean(name: str, right: np.ndarray) -> Slips:
    N = right[..., 0].size
    if N > 1:
        sentence = f"divided by N = {N}: each example has its own J here; a mean over them is in c"
        yield name, sentence, right / N
