"""What people get wrong in the fully connected layer."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def of_flatten(steps: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(step, sentence, the value it would have given)."""
    x = steps.x
    if x.ndim < 3:
        return
    sentence = "another order: channels first (C, H, W), must be as the array lies, the last axis fastest"
    yield "z", sentence, np.moveaxis(x, -1, 1).reshape(len(x), -1)
    first = steps.dy.reshape(len(x), x.shape[-1], *x.shape[1:-1])
    yield "dx", sentence, np.moveaxis(first, 1, -1)


def of_dense(steps: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(step, sentence, the value it would have given)."""
    if steps.kernel.ndim != 2:
        return  # many layers at once, by vmap
    N = steps.d_kernel_each.shape[0]
    mean = f"a mean where a sum belongs: divided by N = {N}, which is in δ already where the loss is a mean"
    yield "d_kernel", mean, steps.d_kernel / N
    yield "d_bias", mean, steps.d_bias / N
    D, H = steps.kernel.shape
    if N == D:  # a δ has the right shape
        a, delta = steps.x.reshape(N, D), steps.dy.reshape(N, H)
        yield "d_kernel", "a missing transpose: a δ in place of aᵀ δ", a @ delta
    if D == H:  # δ W has the right shape
        yield "dx", "a missing transpose: δ W in place of δ Wᵀ", steps.dy @ steps.kernel
