"""What people get wrong in the activations' slopes."""

from collections.abc import Iterator
from typing import Any

import numpy as np

Slips = Iterator[tuple[str, str, np.ndarray]]

_FORGOTTEN = "the gradient from above is forgotten: the slope τ'(z) alone"


def of_relu(steps: Any) -> Slips:
    """(step, sentence, the value it would have given)."""
    z, v = steps.x, steps.dy
    yield from _slopes(v, {"the mask of the wrong array: 1{v > 0} in place of 1{z > 0}": (v > 0).astype(z.dtype)})
    yield "dx", _FORGOTTEN, steps.slope


def of_tanh(steps: Any) -> Slips:
    """(step, sentence, the value it would have given)."""
    a, v = steps.a, steps.dy
    yield from _slopes(v, {"the slope of tanh from its input: 1 − z² in place of 1 − a²": 1 - steps.x**2})
    yield "dx", _FORGOTTEN, steps.slope
    yield from _slopes(v, {"the slope of tanh from its output: 1 − tanh(a)² in place of 1 − a²": 1 - np.tanh(a) ** 2})
    yield from _slopes(v, {"a missing square: 1 − a in place of 1 − a²": 1 - a})
    yield "dx", "a missing factor: the slope τ'(z)", v


def of_sigmoid(steps: Any) -> Slips:
    """(step, sentence, the value it would have given)."""
    s, v = steps.s, steps.dy
    twice = 1 / (1 + np.exp(-s))
    yield from _slopes(v, {"the sigmoid taken twice: its slope at s in place of z": twice * (1 - twice)})
    yield "dx", _FORGOTTEN, steps.slope
    yield from _slopes(v, {"the slope of tanh on the sigmoid: 1 − s² in place of s (1 − s)": 1 - s**2})
    yield from _slopes(v, {"a missing s: 1 − s in place of s (1 − s)": 1 - s})
    yield "dx", "a missing factor: the slope τ'(z)", v


def of_softmax(steps: Any) -> Slips:
    """(step, sentence, the value it would have given)."""
    s, v = steps.s, steps.dy
    yield "dx", "the diagonal of the Jacobian alone: v s (1 − s), the sigmoid's rule", v * s * (1 - s)
    yield "dx", "a missing term: s v, without the mean Σ v s", v * s
    yield "dx", "the factor s is missing: v − Σ v s", v - steps.mean
    for axis in range(steps.x.ndim):
        if axis != steps.axis % steps.x.ndim:
            sentence = f"softmax over axis {axis}, must be over axis {steps.axis}"
            e = np.exp(steps.x - steps.x.max(axis, keepdims=True))
            other = e / e.sum(axis, keepdims=True)
            yield "s", sentence, other
            yield "dx", sentence, other * (v - (v * other).sum(axis, keepdims=True))
            yield (
                "dx",
                f"the mean Σ v s over axis {axis}, must be over axis {steps.axis}",
                s * (v - (v * s).sum(axis, keepdims=True)),
            )


def of_log_softmax(steps: Any) -> Slips:
    """(step, sentence, the value it would have given)."""
    s, v = steps.s, steps.dy
    K = steps.x.shape[steps.axis]
    yield "log_s", "the logarithm is not taken: s in place of log s", s
    yield "log_s", "a missing term: z − m alone, log S is not subtracted", steps.shifted
    yield "log_s", "the sign of log S: it is subtracted", steps.shifted + np.log(steps.total)
    yield "sum", "a mean: v is summed over the classes", steps.sum / K
    yield "dx", "a missing term: v alone, without s Σ v", v
    yield "dx", "softmax's own rule: s (v − Σ v s)", s * (v - (v * s).sum(steps.axis, keepdims=True))
    yield "dx", "the factor s is missing: v − Σ v", v - steps.sum
    yield "dx", "the sum is forgotten: v − s v in place of v − s Σ v", v - s * v
    yield "dx", "a mean where a sum belongs: v − s Σ v / K", v - s * steps.sum / K
    yield "dx", "the sign of s Σ v: it is subtracted", v + s * steps.sum
    for axis in range(steps.x.ndim):
        if axis != steps.axis % steps.x.ndim:
            sentence = f"Σ v over axis {axis}, must be over axis {steps.axis}"
            yield "dx", sentence, v - s * v.sum(axis, keepdims=True)


def _slopes(v: np.ndarray, wrong: dict[str, np.ndarray]) -> Slips:
    for sentence, slope in wrong.items():
        yield "slope", sentence, slope
        yield "dx", sentence, v * slope
