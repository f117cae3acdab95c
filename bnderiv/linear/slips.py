"""What people get wrong in the fully connected layer."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def of_dense(steps: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(step, sentence, what the slip would have given)."""
    each, dx = (np.asarray(a, np.float64) for a in (steps.d_kernel_each, steps.dx))
    N = each.shape[0]
    mean = f"a mean where a sum belongs: divided by N = {N}, which is in δ already where the loss is a mean"
    yield "d_kernel", mean, each.sum(0) / N
    yield "d_bias", mean, np.asarray(steps.d_bias, np.float64) / N
    transposed = np.asarray(steps.kernel_transposed, np.float64)
    if transposed.shape[0] == transposed.shape[1]:  # δ W has the right shape: δ back from δ Wᵀ
        try:
            delta = np.linalg.solve(transposed.T, dx.reshape(-1, dx.shape[-1]).T).T
        except np.linalg.LinAlgError:
            return
        yield "dx", "a missing transpose: δ W in place of δ Wᵀ", (delta @ transposed.T).reshape(dx.shape)
