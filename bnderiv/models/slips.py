"""What people get wrong in the chain of LeNet-5: batch norm's slips in each of its four places."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from bnderiv.normalization.slips import of_batch_norm


def of_lenet5(steps: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(step, sentence, the value it would have given)."""
    if steps.x.ndim != 4:
        return  # many networks at once, by vmap
    for i in range(1, 5):
        if steps.config.batch_norm:
            norm = SimpleNamespace(
                x=getattr(steps, f"z{i}"),
                **steps.params[f"bn{i}"],
                dy=getattr(steps, f"d_y{i}"),
                eps=steps.config.eps,
                channel_axis=-1,
            )
            for step, sentence, value, *_ in of_batch_norm(norm):
                yield f"delta{i}" if step == "dx" else f"{step}{i}", sentence, value
    N = steps.x.shape[0]
    for i in range(1, 6):
        sentence = f"a mean where a sum belongs: divided by N = {N}, which is in δ already"
        yield f"d_kernel{i}", sentence, getattr(steps, f"d_kernel{i}") / N
    yield "delta5", f"a missing 1/N, N = {N}: the loss is a mean over the examples", steps.delta5 * N
    yield "delta5", "a missing factor: the slope of tanh, 1 − a²", (steps.a5 - steps.targets) / N
