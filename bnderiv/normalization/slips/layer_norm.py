"""What people get wrong in layer, group and instance norm: batch norm's slips, and those of the other axes."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from bnderiv.normalization.slips.following import Slip, followed, inputs_over, spoken
from bnderiv.normalization.slips.table import MASK_SLIPS, RIGHT, SLIPS

# What only goes wrong where γ differs between the elements that share statistics.
_GAMMA: Slip = (
    "γ outside of the means: γ r (δ − mean δ − x̂ mean(δ x̂)), which is batch norm's, where γ is the same for all",
    {"dx": lambda v: v.gamma * v.inv_std * (v.dy - v.sum(v.dy) / v.M - v.x_hat * v.sum(v.dy * v.x_hat) / v.M)},
)


def of_layer_norm(steps: Any) -> Iterator[Any]:
    """(step, sentence, the value it would have given), and which steps it was made in; as `of_batch_norm`."""
    if of_several(steps):
        return
    rest = tuple(i for i in range(steps.x.ndim) if i not in steps.axis)
    inputs = inputs_over(steps, steps.x.shape, steps.axis, rest)
    yield from _of_other_axes(inputs, steps, "the features", "all other axes")


def of_group_norm(steps: Any) -> Iterator[Any]:
    """As `of_layer_norm`, of x with an axis for the groups."""
    if of_several(steps):
        return
    x, axis = steps.x, steps.channel_axis % steps.x.ndim
    grouped = (*x.shape[:axis], steps.groups, x.shape[axis] // steps.groups, *x.shape[axis + 1 :])
    over = tuple(i for i in range(1, len(grouped)) if i != axis)
    rest = tuple(i for i in range(len(grouped)) if i not in (axis, axis + 1))
    yield from _of_other_axes(
        inputs_over(steps, grouped, over, rest), steps, "a group's channels and places", "examples and places"
    )


def of_instance_norm(steps: Any) -> Iterator[Any]:
    """As `of_layer_norm`."""
    if of_several(steps):
        return
    axis = steps.channel_axis % steps.x.ndim
    over = tuple(i for i in range(1, steps.x.ndim) if i != axis)
    inputs = inputs_over(steps, steps.x.shape, over, (0, *over))
    yield from _of_other_axes(inputs, steps, "the places of an example", "examples and places")


def of_several(steps: Any) -> bool:
    """Whether these are the steps of many layers at once, by vmap."""
    return np.ndim(steps.gamma) != len(getattr(steps, "axis", ("channels",)))


def _of_other_axes(inputs: SimpleNamespace, steps: Any, over: str, rest: str) -> Iterator[Any]:
    shaped = shaped_like(steps)
    x_hat = np.where(np.isfinite(steps.x_hat), steps.x_hat, 0) if inputs.masked else steps.x_hat
    for step, term in (("d_gamma", steps.dy * x_hat), ("d_beta", steps.dy)):
        sentence = f"a sum over the wrong axes: over {over}, as for μ; γ and β are summed over {rest}"
        yield step, sentence, inputs.sum(term.reshape(inputs.x.shape)).reshape(steps.mu.shape)
    own = MASK_SLIPS if inputs.masked else ()
    slips = [slip for slip in (_GAMMA, *own, *SLIPS) if "wrong m" not in slip[0]]
    yield from followed(RIGHT, spoken(slips, inputs), inputs, shaped)


def shaped_like(steps: Any) -> Any:
    def shaped(step: str, value: np.ndarray) -> np.ndarray:
        shape = np.shape(getattr(steps, step, value))
        return value.reshape(shape) if value.size == math.prod(shape) else value

    return shaped
