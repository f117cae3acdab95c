"""What people get wrong in batch norm over several devices: averages of averages, and what is to be reduced (N26)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bnderiv.normalization.slips.batch_norm import of_batch_norm
from bnderiv.normalization.slips.following import inputs_of


def of_batch_norm_across_devices(steps: Any) -> Iterator[Any]:
    """As `of_batch_norm`, with the slips of the merge and of the collectives."""
    inputs = inputs_of(steps)
    if inputs is None:
        return
    n_i, mu_i, var_i, n, D = steps.counts, steps.means, steps.variances, steps.count, len(steps.shards)
    unweighted = "an average of averages: each device's number must weigh as much as its elements, n_i/n"
    yield "mu", unweighted, mu_i.mean(0)
    yield "var", "a missing term: the means of the devices differ, (μ_i − μ)²", (n_i * var_i).sum(0) / n
    yield "var", "an average of averages: n_i/n is missing, and (μ_i − μ)²", var_i.mean(0)
    yield "var", unweighted, (var_i + (mu_i - steps.mu) ** 2).mean(0)
    yield "var", unweighted, (var_i + mu_i**2).mean(0) - mu_i.mean(0) ** 2
    for step, sums in (("d_beta", steps.sums_dy), ("d_gamma", steps.sums_dy_x_hat)):
        sentence = f"a mean over the {D} devices where a sum belongs: `psum`, not `pmean`"
        yield step, sentence, sums.mean(0)

    def to_its_elements(a: np.ndarray) -> np.ndarray:
        """(D, C) as x broadcasts: a device's number at each of its elements."""
        rows = (np.expand_dims(row, inputs.over) for row in a)
        return np.concatenate([np.repeat(row, m, axis=0) for row, m in zip(rows, steps.shards, strict=True)])

    of_one = [to_its_elements(sums) for sums in (steps.sums_dy, steps.sums_dy_x_hat)]
    factor = np.expand_dims(steps.gamma * steps.inv_std, inputs.over)
    for words, divisor in (("", inputs.M), (", divided by its own n_i", to_its_elements(np.maximum(n_i, 1)))):
        sentence = f"the sums of one device alone{words}: in the backward they go over all devices, by an all-reduce"
        shares = inputs.share((of_one[0] + steps.x_hat * of_one[1]) / divisor)
        yield "dx", sentence, factor * (steps.dy - shares)
    yield from of_batch_norm(steps)
