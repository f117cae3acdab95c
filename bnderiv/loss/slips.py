"""What people get wrong in the losses: a softmax or a label left out, a sign, a mean that is somebody else's."""

from collections.abc import Iterator
from typing import Any

import numpy as np

Slips = Iterator[tuple[str, str, np.ndarray]]


def of_squared_error(steps: Any) -> Slips:
    """(step, sentence, what the slip would have given)."""
    s = _numbers(steps)
    K = s["difference"].shape[-1]
    yield "difference", "the sign: y − a in place of a − y", -s["difference"]
    yield "loss", "a missing ½", 2 * s["loss"]
    yield "loss", f"a mean over the K = {K} elements, must be half their sum", 2 * s["loss"] / K
    for name, sentence in (("d_predictions", "y − a in place of a − y"), ("d_targets", "a − y in place of y − a")):
        yield name, f"the sign: {sentence}", -s[name]
        yield name, "a factor 2: the ½ of J cancels the 2 of the square", 2 * s[name]
        yield name, f"divided by K = {K}: J is a sum over the elements, not their mean", s[name] / K
        yield from _batch_mean(name, s[name])


def of_cross_entropy(steps: Any) -> Slips:
    """(step, sentence, what the slip would have given), for labels of either kind."""
    s = _numbers(steps)
    y, c = _labels_and_weight(s)
    shifted, K = s["shifted"], s["shifted"].shape[-1]
    with np.errstate(all="ignore"):
        batch = tuple(range(shifted.ndim - 1))
        yield (
            "s",
            "softmax over the examples: the sum goes over the classes",
            np.exp(shifted) / np.exp(shifted).sum(batch),
        )
        yield "s", "not divided by S: the exponentials do not sum to 1", np.exp(shifted)
        yield "log_s", "a missing term: u alone, log S is not subtracted", shifted
        yield "log_s", "the sign of log S: it is subtracted", shifted + np.log(s["total"])
        yield "loss", "the sign: J = −Σ y log s, the negative log-likelihood", -s["loss"]
        yield "loss", f"a mean over the K = {K} classes, must be their sum", s["loss"] / K
        yield "d_logits", "a missing term: −y alone, softmax is not added", -c * y
        yield "d_logits", "a missing term: s alone, the labels are not subtracted", c * s["s"]
        yield "d_logits", "the sign: y − s in place of s − y", -s["d_logits"]
        yield "d_logits", "the gradient by s, −y/s: the Jacobian of softmax is missing", -c * y / s["s"]
        yield "d_logits", "log s − y in place of s − y", c * (s["log_s"] - y)
        if "label_sum" in s:
            sentence = "a missing factor Y: s − y is right only for weights that sum to 1"
            yield "d_logits", sentence, c * (s["s"] - y)
            yield "d_labels", "the sign: ∂J/∂y = −log s", -s["d_labels"]
            yield "d_labels", "a missing logarithm: s in place of −log s", c * s["s"]
    for name in ("d_logits", "d_labels"):
        if name in s:
            yield from _batch_mean(name, s[name])


def _batch_mean(name: str, right: np.ndarray) -> Slips:
    N = right[..., 0].size
    if N > 1:
        sentence = f"divided by N = {N}: each example has its own J here; a mean over them is in c"
        yield name, sentence, right / N


def _numbers(steps: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float64) for name, value in steps._asdict().items()}


def _labels_and_weight(s: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """y, and the c that came back to each example: ∂J/∂z = c (Y s − y) and ∂J/∂y = −c log s, solved for them."""
    pair = (s["d_logits"], s["s"] - s["one_hot"]) if "one_hot" in s else (s["d_labels"], -s["log_s"])
    known = np.isfinite(pair[0]) & np.isfinite(pair[1])
    gradient, of_one = (np.where(known, a, 0) for a in pair)
    with np.errstate(all="ignore"):
        c = (gradient * of_one).sum(-1, keepdims=True) / (of_one**2).sum(-1, keepdims=True)
        return s["one_hot"] if "one_hot" in s else s["label_sum"] * s["s"] - s["d_logits"] / c, c
