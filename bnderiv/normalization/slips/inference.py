"""What people get wrong in batch norm by given statistics: the gradient of training in its place, above all (N23)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bnderiv.normalization.slips.batch_norm import by_channel
from bnderiv.normalization.slips.following import Line, Slip, followed, inputs_of, spoken
from bnderiv.normalization.slips.table import RIGHT, SLIPS

_GIVEN = ("inv_std", "x_hat", "y", "d_gamma", "d_beta", "d_x_hat", "d_var", "d_eps", "d_mu")
_RIGHT: dict[str, Line] = {name: RIGHT[name] for name in _GIVEN} | {"dx": lambda v: v.inv_std * v.d_x_hat}

# v.own_mu and v.own_var are the batch's.
_SLIPS: list[Slip] = [
    (
        "the batch's own statistics in place of the given ones",
        {
            "inv_std": lambda v: 1 / np.sqrt(v.own_var + v.eps),
            "x_hat": lambda v: (v.x - v.own_mu) * v.inv_std,
        },
    ),
    (
        "the gradient of training: given statistics do not depend on x, so there are no parts through μ and σ²",
        {"dx": lambda v: v.inv_std * (v.d_x_hat - v.sum(v.d_x_hat) / v.M - v.x_hat * v.sum(v.d_x_hat * v.x_hat) / v.M)},
    ),
    ("a missing γ in ∂J/∂x", {"dx": lambda v: v.inv_std * v.dy}),
    ("a missing 1/√(σ² + ε) in ∂J/∂x", {"dx": lambda v: v.d_x_hat}),
]


def of_batch_norm_inference(steps: Any) -> Iterator[Any]:
    """As `of_batch_norm`."""
    inputs = inputs_of(steps)
    if inputs is None:
        return
    inputs.mu, inputs.var = (np.expand_dims(a, inputs.over) for a in (steps.mean, steps.var))
    inputs.own_mu = inputs.x.mean(inputs.over, keepdims=True)
    inputs.own_var = inputs.x.var(inputs.over, keepdims=True)
    common = [slip for slip in SLIPS if slip[1].keys() <= set(_GIVEN)]
    yield from followed(_RIGHT, spoken((*_SLIPS, *common), inputs), inputs, by_channel(inputs))
