"""What people get wrong in the one line of batch norm's gradient (N12)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bnderiv.normalization.slips.batch_norm import of_batch_norm
from bnderiv.normalization.slips.following import inputs_of


def of_batch_norm_closed_form(steps: Any) -> Iterator[Any]:
    """As `of_batch_norm`, with the slips of the one line."""
    twins = {"d_beta": "sum_dy", "d_gamma": "sum_dy_x_hat"}
    for step, *slip in of_batch_norm(steps):
        yield step, *slip
        if step in twins:
            yield twins[step], *slip
    inputs = inputs_of(steps)
    if inputs is None:
        return
    dy, share, n = steps.dy, inputs.share, inputs.M
    first, second = (np.expand_dims(a, inputs.over) for a in (steps.sum_dy, steps.sum_dy_x_hat))
    yield "without_mean", "a missing 1/m: the sum is taken away, not the mean", dy - share(first + 0 * dy)
    yield "without_mean", "the mean is not taken away", dy
    yield "without_mean", "the sign: the mean is taken away, not added", dy + share(first / n + 0 * dy)
    less = steps.without_mean
    yield "without_x_hat", "a missing 1/m in the third term, x̂/m Σ δ x̂", less - share(steps.x_hat * second)
    yield "without_x_hat", "a missing term: what is proportional to x̂ is not taken away", less
    yield "without_x_hat", "x for x̂ in the third term, x̂/m Σ δ x̂", less - share(inputs.x * second / n)
    yield "dx", "the factor γ/√(σ² + ε) is missing", steps.without_x_hat
    yield (
        "dx",
        "a missing γ: the factor is γ/√(σ² + ε)",
        steps.without_x_hat * np.expand_dims(steps.inv_std, inputs.over),
    )
