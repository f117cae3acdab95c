"""What people get wrong in layer, group, instance and RMS norm: batch norm's slips, and those of the other axes."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from bnderiv.normalization.slips import MASK_SLIPS, RIGHT, SLIPS, Line, followed, spoken

# What only goes wrong where γ differs between the elements that share statistics.
_GAMMA: tuple[str, dict[str, Line]] = (
    "γ outside of the means: γ r (δ − mean δ − x̂ mean(δ x̂)), which is batch norm's, where γ is the same for all",
    {"dx": lambda v: v.gamma * v.inv_std * (v.dy - v.sum(v.dy) / v.M - v.x_hat * v.sum(v.dy * v.x_hat) / v.M)},
)

_RMS: dict[str, Line] = {
    "mean_square": lambda v: v.sum(v.x**2) / v.M,
    "inv_rms": lambda v: 1 / np.sqrt(v.mean_square + v.eps),
    "x_hat": lambda v: v.x * v.inv_rms,
    "y": lambda v: v.gamma * v.x_hat,
    "d_gamma": lambda v: v.to_parameters(v.dy * v.x_hat),
    "d_x_hat": lambda v: v.gamma * v.dy,
    "d_mean_square": lambda v: -0.5 * v.inv_rms**3 * v.sum(v.d_x_hat * v.x),
    "d_eps": lambda v: v.d_mean_square.sum(),
    "dx_through_x_hat": lambda v: v.inv_rms * v.d_x_hat,
    "dx_through_mean_square": lambda v: v.d_mean_square * 2 / v.M * v.x,
    "dx": lambda v: v.dx_through_x_hat + v.dx_through_mean_square,
}
_RMS_SLIPS: list[tuple[str, dict[str, Line]]] = [
    ("a missing 1/n: the sum for q is not divided by n = {M}", {"mean_square": lambda v: v.sum(v.x**2)}),
    (
        "the variance in place of the mean square: RMS norm takes no mean away",
        {"mean_square": lambda v: v.sum((v.x - v.sum(v.x) / v.M) ** 2) / v.M},
    ),
    ("ε is outside of the root, 1/(√q + ε)", {"inv_rms": lambda v: 1 / (np.sqrt(v.mean_square) + v.eps)}),
    ("ε is missing: 1/√q in place of 1/√(q + ε)", {"inv_rms": lambda v: 1 / np.sqrt(v.mean_square)}),
    ("the root is missing: 1/(q + ε) in place of 1/√(q + ε)", {"inv_rms": lambda v: 1 / (v.mean_square + v.eps)}),
    ("x̂ is centered: RMS norm takes no mean away", {"x_hat": lambda v: (v.x - v.sum(v.x) / v.M) * v.inv_rms}),
    ("1 + γ in place of γ: some models store γ − 1", {"y": lambda v: (1 + v.gamma) * v.x_hat}),
    ("a missing γ: y = x̂", {"y": lambda v: v.x_hat}),
    ("x for x̂: Σ δ x in place of Σ δ x̂", {"d_gamma": lambda v: v.to_parameters(v.dy * v.x)}),
    ("γ δ for δ: ∂J/∂γ has no γ in it", {"d_gamma": lambda v: v.to_parameters(v.gamma * v.dy * v.x_hat)}),
    ("a missing γ: ∂J/∂x̂ is γ δ, not δ", {"d_x_hat": lambda v: v.dy}),
    ("the sign of ∂J/∂q: the power −1/2 gives a minus", {"d_mean_square": lambda v: -_RMS["d_mean_square"](v)}),
    ("a missing 1/2 in ∂J/∂q", {"d_mean_square": lambda v: 2 * _RMS["d_mean_square"](v)}),
    ("a missing γ: δ in place of γ δ in ∂J/∂q", {"d_mean_square": lambda v: -0.5 * v.inv_rms**3 * v.sum(v.dy * v.x)}),
    ("a missing 1/√(q + ε) in the part through x̂", {"dx_through_x_hat": lambda v: v.d_x_hat}),
    ("a missing 1/n in the part through q", {"dx_through_mean_square": lambda v: v.d_mean_square * 2 * v.x}),
    ("a missing 2 in the part through q", {"dx_through_mean_square": lambda v: v.d_mean_square / v.M * v.x}),
    ("a missing term: the part through x̂", {"dx": lambda v: v.dx_through_mean_square}),
    ("a missing term: the part through q", {"dx": lambda v: v.dx_through_x_hat}),
    (
        "a term too many: the part through μ belongs to layer norm",
        {"dx": lambda v: _RMS["dx"](v) - v.inv_rms / v.M * v.sum(v.d_x_hat)},
    ),
]


def of_layer_norm(steps: Any) -> Iterator[Any]:
    """(step, sentence, the value it would have given), and which steps it was made in; as `slips.of_batch_norm`."""
    if _of_several(steps):
        return
    rest = tuple(i for i in range(steps.x.ndim) if i not in steps.axis)
    inputs = _inputs(steps, steps.x.shape, steps.axis, rest)
    yield from _of_other_axes(inputs, steps, "the features", "all other axes")


def of_group_norm(steps: Any) -> Iterator[Any]:
    """As `of_layer_norm`, of x with an axis for the groups."""
    if _of_several(steps):
        return
    x, axis = steps.x, steps.channel_axis % steps.x.ndim
    grouped = (*x.shape[:axis], steps.groups, x.shape[axis] // steps.groups, *x.shape[axis + 1 :])
    over = tuple(i for i in range(1, len(grouped)) if i != axis)
    rest = tuple(i for i in range(len(grouped)) if i not in (axis, axis + 1))
    yield from _of_other_axes(
        _inputs(steps, grouped, over, rest), steps, "a group's channels and places", "examples and places"
    )


def of_instance_norm(steps: Any) -> Iterator[Any]:
    """As `of_layer_norm`."""
    if _of_several(steps):
        return
    axis = steps.channel_axis % steps.x.ndim
    over = tuple(i for i in range(1, steps.x.ndim) if i != axis)
    inputs = _inputs(steps, steps.x.shape, over, (0, *over))
    yield from _of_other_axes(inputs, steps, "the places of an example", "examples and places")


def of_rms_norm(steps: Any) -> Iterator[Any]:
    """As `of_layer_norm`."""
    if _of_several(steps):
        return
    rest = tuple(i for i in range(steps.x.ndim) if i not in steps.axis)
    inputs = _inputs(steps, steps.x.shape, steps.axis, rest)
    slips = [(spoken(sentence, inputs), lines) for sentence, lines in _RMS_SLIPS]
    yield from followed(_RMS, slips, inputs, _shaped_like(steps))


def _of_several(steps: Any) -> bool:
    """Whether these are the steps of many layers at once, by vmap."""
    return np.ndim(steps.gamma) != len(getattr(steps, "axis", ("channels",)))


def _of_other_axes(inputs: SimpleNamespace, steps: Any, over: str, rest: str) -> Iterator[Any]:
    shaped = _shaped_like(steps)
    x_hat = np.where(np.isfinite(steps.x_hat), steps.x_hat, 0) if inputs.masked else steps.x_hat
    for step, term in (("d_gamma", steps.dy * x_hat), ("d_beta", steps.dy)):
        sentence = f"a sum over the wrong axes: over {over}, as for μ; γ and β are summed over {rest}"
        yield step, sentence, inputs.sum(term.reshape(inputs.x.shape)).reshape(steps.mu.shape)
    own = MASK_SLIPS if inputs.masked else ()
    slips = [slip for slip in (_GAMMA, *own, *SLIPS) if "wrong m" not in slip[0]]
    yield from followed(RIGHT, [(spoken(sentence, inputs), lines) for sentence, lines in slips], inputs, shaped)


def _inputs(steps: Any, shape: tuple[int, ...], over: tuple[int, ...], rest: tuple[int, ...]) -> SimpleNamespace:
    """The inputs in the shape for the sums: statistics over the axes `over`, γ and β over `rest`."""
    every = math.prod(shape[i] for i in over)
    x, where = np.reshape(steps.x, shape), getattr(steps, "where", None)
    counts = every
    if where is not None:
        where = np.broadcast_to(where.astype(bool), steps.x.shape).reshape(shape)
        x = np.where(where | np.isfinite(x), x, 0)
        counts = np.maximum(where.sum(over, keepdims=True), 1)
    own = [1 if i in rest else size for i, size in enumerate(shape)]
    return SimpleNamespace(
        x=x,
        gamma=np.reshape(steps.gamma, own),
        beta=np.reshape(getattr(steps, "beta", np.zeros(own)), own),
        dy=np.reshape(steps.dy, shape),
        eps=steps.eps,
        M=counts,
        N=every,
        every=every,
        masked=where is not None,
        m_bar=0.0,
        v_bar=0.0,
        sum=lambda a: a.sum(over, keepdims=True),
        total=lambda a: (a if where is None else np.where(where, a, 0)).sum(over, keepdims=True),
        share=lambda a: a if where is None else np.where(where, a, 0),
        to_parameters=lambda a: a.sum(rest, keepdims=True),
    )


def _shaped_like(steps: Any) -> Any:
    def shaped(step: str, value: np.ndarray) -> np.ndarray:
        shape = np.shape(getattr(steps, step, value))
        return value.reshape(shape) if value.size == math.prod(shape) else value

    return shaped
