"""What people get wrong in the running statistics: which value the momentum weighs, which variance is kept (N27)."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def of_update_running_stats(steps: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(step, sentence, the value it would have given)."""
    old, counted = steps.momentum, steps.count > 0

    def average(weight: Any, before: np.ndarray, batch: np.ndarray) -> np.ndarray:
        return np.where(counted, weight * before + (1 - weight) * batch, before)

    other = steps.batch_var * (steps.count / np.maximum(steps.count - 1, 1) if steps.correction is None else 1)
    wrong = "the biased variance: the one that is stored is divided by n − 1"
    wrong = (
        wrong if steps.correction is not None else "the unbiased variance: with unbiased=False the biased one is stored"
    )
    yield "stored_var", wrong, other
    yield "new_var", wrong, average(old, steps.var, other)
    exchanged = "the momentum weighs the new value, as PyTorch's: it must weigh the old one"
    yield "new_mean", exchanged, average(1 - old, steps.mean, steps.mu)
    yield "new_var", exchanged, average(1 - old, steps.var, steps.stored_var)
    yield "new_var", f"{exchanged}; and {wrong}", average(1 - old, steps.var, other)
    deviation = "the average of the deviations, squared: it is of the variances"
    yield "new_var", deviation, average(old, np.sqrt(steps.var), np.sqrt(steps.stored_var)) ** 2
