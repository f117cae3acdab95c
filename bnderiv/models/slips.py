"""What people get wrong in the chain of LeNet-5: batch norm's slips in each of its four places."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from bnderiv.normalization.slips import of_batch_norm

_NAMES = ("mu", "var", "inv_std", "x_hat", "y", "d_y", "d_gamma", "d_beta", "d_x_hat", "d_var", "d_mu")


def of_lenet5(steps: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(step, sentence, what the slip would have given)."""
    for i in range(1, 5):
        if getattr(steps, f"mu{i}") is not None:
            part = SimpleNamespace(**{name: getattr(steps, f"{name}{i}") for name in _NAMES})
            for step, sentence, value in of_batch_norm(part):
                yield f"delta{i}" if step == "dx" else f"{step}{i}", sentence, value
    N = steps.z1.shape[0]
    for i in range(1, 6):
        sentence = f"a mean where a sum belongs: divided by N = {N}, which is in δ already"
        yield f"d_kernel{i}", sentence, np.asarray(getattr(steps, f"d_kernel{i}"), np.float64) / N
    delta = np.asarray(steps.delta5, np.float64)
    yield "delta5", f"a missing 1/N, N = {N}: the loss is a mean over the examples", delta * N
    probabilities, targets = (np.asarray(a, np.float64) for a in (steps.a5, steps.targets))
    yield "delta5", "a missing factor: the slope of tanh, 1 − a²", (probabilities - targets) / N
