"""What people get wrong in batch renormalization: the correction, and what of it is differentiated (N37)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bnderiv.normalization.slips.batch_norm import by_channel, known
from bnderiv.normalization.slips.following import Line, Slip, followed, inputs_of
from bnderiv.normalization.slips.table import RIGHT

_RIGHT: dict[str, Line] = {
    **{name: RIGHT[name] for name in ("m", "m_back", "mu", "var", "inv_std", "x_hat")},
    "running_std": lambda v: np.sqrt(v.running_var + v.eps),
    "r": lambda v: np.clip(1 / (v.inv_std * v.running_std), 1 / v.r_max, v.r_max),
    "d": lambda v: np.clip((v.mu - v.running_mean) / v.running_std, -v.d_max, v.d_max),
    "corrected": lambda v: v.x_hat * v.r + v.d,
    "y": lambda v: v.gamma * v.corrected + v.beta,
    "d_gamma": lambda v: v.to_parameters(v.dy * v.corrected),
    "d_beta": RIGHT["d_beta"],
    "d_x_hat": lambda v: v.gamma * v.r * v.dy,
    **{name: RIGHT[name] for name in RIGHT if name.startswith(("d_var", "d_eps", "d_mu", "dx"))},
}
_SLIPS: list[Slip] = [
    ("ε is missing in the running deviation: √σ² in place of √(σ² + ε)", {"running_std": lambda v: v.running_var**0.5}),
    ("the running variance in place of the deviation", {"running_std": lambda v: v.running_var + v.eps}),
    ("r is inverted: √(σ² + ε)/√(σ_B² + ε)", {"r": lambda v: np.clip(1 / _ratio(v), 1 / v.r_max, v.r_max)}),
    (
        "the ratio of the variances in place of the deviations",
        {"r": lambda v: np.clip(_ratio(v) ** 2, 1 / v.r_max, v.r_max)},
    ),
    ("r is not clipped", {"r": lambda v: _ratio(v)}),
    (
        "r is clipped to [−r_max, r_max]: its lower limit is 1/r_max",
        {"r": lambda v: np.clip(_ratio(v), -v.r_max, v.r_max)},
    ),
    ("the sign of d: it is (μ_B − μ)/√(σ² + ε)", {"d": lambda v: -_RIGHT["d"](v)}),
    (
        "d by the batch's deviation in place of the running one",
        {"d": lambda v: np.clip((v.mu - v.running_mean) * v.inv_std, -v.d_max, v.d_max)},
    ),
    ("d is not clipped", {"d": lambda v: (v.mu - v.running_mean) / v.running_std}),
    ("r is missing: x̂ + d", {"corrected": lambda v: v.x_hat + v.d}),
    ("d is missing: x̂ r", {"corrected": lambda v: v.x_hat * v.r}),
    ("d inside of the product: (x̂ + d) r", {"corrected": lambda v: (v.x_hat + v.d) * v.r}),
    ("d without γ: γ x̂ r + d + β", {"y": lambda v: v.gamma * v.x_hat * v.r + v.d + v.beta}),
    ("a missing γ: y = x̂ r + d + β", {"y": lambda v: v.corrected + v.beta}),
    ("a missing β: y = γ (x̂ r + d)", {"y": lambda v: v.gamma * v.corrected}),
    ("x̂ for x̂ r + d: Σ δ x̂ is batch norm's", {"d_gamma": lambda v: v.to_parameters(v.dy * v.x_hat)}),
    ("a missing d: Σ δ x̂ r in place of Σ δ (x̂ r + d)", {"d_gamma": lambda v: v.to_parameters(v.dy * v.x_hat * v.r)}),
    ("a missing r: ∂J/∂x̂ is γ r δ, not γ δ", {"d_x_hat": lambda v: v.gamma * v.dy}),
    ("r is differentiated: in the backward it is a constant", {"d_var": lambda v: _d_var_through_r(v)}),
    ("d is differentiated: in the backward it is a constant", {"d_mu": lambda v: _d_mu_through_d(v)}),
    (
        "r and d are differentiated: in the backward they are constants",
        {"d_var": lambda v: _d_var_through_r(v), "d_mu": lambda v: _d_mu_through_d(v)},
    ),
]


_RENAMED = {"var": "batch_var"}


def of_batch_renorm(steps: Any) -> Iterator[Any]:
    """As `of_batch_norm`; the batch's variance is a step of another name, as `var` is the running one."""
    inputs = inputs_of(steps)
    if inputs is None:
        return
    inputs.running_mean, inputs.running_var = (np.expand_dims(a, inputs.over) for a in (steps.mean, steps.var))
    inputs.r_max, inputs.d_max = steps.r_max, steps.d_max
    common = [slip for slip in known(inputs) if not slip[1].keys() & {"y", "d_gamma", "d_x_hat"}]
    slips = [*_SLIPS, *common]
    for step, sentence, value, *made_in in followed(_RIGHT, slips, inputs, by_channel(inputs)):
        names = [tuple(_RENAMED.get(name, name) for name in earlier) for earlier in made_in]
        yield _RENAMED.get(step, step), sentence, value, *names


def _ratio(v: Any) -> Any:
    return 1 / (v.inv_std * v.running_std)


def _d_var_through_r(v: Any) -> Any:
    free = v.r == _ratio(v)  # where r is not clipped
    return _RIGHT["d_var"](v) + 0.5 * v.inv_std**2 * free * v.sum(v.d_x_hat * v.x_hat)


def _d_mu_through_d(v: Any) -> Any:
    free = v.d == (v.mu - v.running_mean) / v.running_std
    return _RIGHT["d_mu"](v) + free / v.running_std * v.sum(v.gamma * v.dy)
