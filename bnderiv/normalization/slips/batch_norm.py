"""What people get wrong in batch norm, alone, with its ReLU, and as a graph of single operations."""

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from bnderiv.normalization.slips.following import Line, Slip, followed, inputs_of, run, spoken
from bnderiv.normalization.slips.table import MASK_SLIPS, RETURNED_SLIPS, RIGHT, SLIPS

# The terms of each sum, and whether it is a mean: to find sums over other axes.
_SUMMED: dict[str, tuple[Line, bool]] = {
    "mu": (lambda v: v.x, True),
    "var": (lambda v: (v.x - v.mu) ** 2, True),
    "d_gamma": (lambda v: v.dy * v.x_hat, False),
    "d_beta": (lambda v: v.dy, False),
    "d_var": (lambda v: -0.5 * v.inv_std**3 * v.d_x_hat * (v.x - v.mu), False),
    "d_mu": (lambda v: -v.inv_std * v.d_x_hat, False),
}


def of_batch_norm_relu(steps: Any) -> Iterator[Any]:
    """As `of_batch_norm`, with the slips of the ReLU behind it, and of a residual z."""
    y, z, dy = steps.y, steps.residual, steps.dy
    total = "y" if z is None else "y + z"
    others = {"x": steps.x, "x̂": steps.x_hat, "δ_a": dy} | ({} if z is None else {"y": y, "z": z})
    masked = ("d_y",) if z is None else ("d_y", "d_residual")
    for step in masked:
        for name, array in others.items():
            sentence = f"the mask of the wrong array: [{name} > 0] in place of [{total} > 0]"
            yield step, sentence, np.where(array > 0, dy, 0)
        yield step, f"no mask: δ_a in place of δ_a [{total} > 0]", dy
    if z is not None:
        after = np.where(y > 0, y, 0)
        yield "total", "the residual is forgotten", y
        yield "a", "the residual is forgotten: max(y, 0) in place of max(y + z, 0)", after
        yield "a", "the residual is added after the ReLU: max(y, 0) + z in place of max(y + z, 0)", after + z
        sentence = "the gradient of the sum goes to z unchanged: no γ/√(σ² + ε) belongs in it"
        yield "d_residual", sentence, steps.dx_through_x_hat
    yield from of_batch_norm(steps)


def of_batch_norm_graph(steps: Any) -> Iterator[Any]:
    """As `of_batch_norm`, with the slips of single nodes."""
    yield "std", "the root is missing: σ² + ε in place of √(σ² + ε)", steps.var + steps.eps
    for step in ("d_c", "dx_through_c"):
        yield step, "a missing path: c̄ is r x̂̄ + 2 c q̄, here 2 c q̄ is missing", steps.d_c_through_x_hat
        yield step, "a missing path: c̄ is r x̂̄ + 2 c q̄, here r x̂̄ is missing", steps.d_c_through_q
    yield from of_batch_norm(steps)


def of_batch_norm(steps: Any) -> Iterator[Any]:
    """(step, sentence, the value it would have given) for every slip and every step after it.

    A fourth entry names the steps where the slip was made: if those are right, it was not.

    Args:
      steps: the right steps, or any object with the inputs and options of `BatchNorm`.
    """
    inputs = inputs_of(steps)
    if inputs is None:
        return
    right = run(RIGHT, inputs)
    for step, (term, mean) in _SUMMED.items():
        if mean and inputs.masked:
            continue  # the mean of what counts is no sum over other axes
        yield from _other_axes(step, term(right), inputs.over, mean)
    yield from followed(RIGHT, known(inputs), inputs, by_channel(inputs))


def known(inputs: SimpleNamespace) -> list[Slip]:
    """The slips that can be made with these inputs."""
    slips = [*(MASK_SLIPS if inputs.masked else ()), *(RETURNED_SLIPS if inputs.returned else ()), *SLIPS]
    if not inputs.masked and inputs.N == inputs.M:
        slips = [slip for slip in slips if "wrong m" not in slip[0]]
    return spoken(slips, inputs)


def by_channel(inputs: SimpleNamespace) -> Callable[[str, np.ndarray], np.ndarray]:
    """What gives a value the shape that it has in the steps: (C,), or that of x."""
    return lambda _, a: a if a.shape in (inputs.x.shape, ()) else a.reshape(-1)


def _other_axes(step: str, terms: np.ndarray, others: tuple[int, ...], mean: bool) -> Iterator[tuple[str, str, Any]]:
    for length in range(terms.ndim + 1):
        for axes in itertools.combinations(range(terms.ndim), length):
            if axes != others:
                value = terms.mean(axes) if mean else terms.sum(axes)
                sentence = f"a sum over the wrong axes: over {axes}, must be over {others}, all but the channels'"
                yield step, sentence, value
                yield step, sentence, terms.mean(axes, keepdims=True) if mean else terms.sum(axes, keepdims=True)
