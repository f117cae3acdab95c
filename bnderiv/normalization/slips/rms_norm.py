"""What people get wrong in RMS norm: a mean square in place of a variance, and no mean (N35, N36)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bnderiv.normalization.slips.following import Line, Slip, followed, inputs_over, spoken
from bnderiv.normalization.slips.layer_norm import of_several, shaped_like

_RIGHT: dict[str, Line] = {
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
_SLIPS: list[Slip] = [
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
    ("the sign of ∂J/∂q: the power −1/2 gives a minus", {"d_mean_square": lambda v: -_RIGHT["d_mean_square"](v)}),
    ("a missing 1/2 in ∂J/∂q", {"d_mean_square": lambda v: 2 * _RIGHT["d_mean_square"](v)}),
    ("a missing γ: δ in place of γ δ in ∂J/∂q", {"d_mean_square": lambda v: -0.5 * v.inv_rms**3 * v.sum(v.dy * v.x)}),
    ("a missing 1/√(q + ε) in the part through x̂", {"dx_through_x_hat": lambda v: v.d_x_hat}),
    ("a missing 1/n in the part through q", {"dx_through_mean_square": lambda v: v.d_mean_square * 2 * v.x}),
    ("a missing 2 in the part through q", {"dx_through_mean_square": lambda v: v.d_mean_square / v.M * v.x}),
    ("a missing term: the part through x̂", {"dx": lambda v: v.dx_through_mean_square}),
    ("a missing term: the part through q", {"dx": lambda v: v.dx_through_x_hat}),
    (
        "a term too many: the part through μ belongs to layer norm",
        {"dx": lambda v: _RIGHT["dx"](v) - v.inv_rms / v.M * v.sum(v.d_x_hat)},
    ),
]


def of_rms_norm(steps: Any) -> Iterator[Any]:
    """As `of_layer_norm`."""
    if of_several(steps):
        return
    rest = tuple(i for i in range(steps.x.ndim) if i not in steps.axis)
    inputs = inputs_over(steps, steps.x.shape, steps.axis, rest)
    yield from followed(_RIGHT, spoken(_SLIPS, inputs), inputs, shaped_like(steps))
