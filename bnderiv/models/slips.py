"""What people get wrong in the chain of LeNet-5: batch norm's slips in each of its four places, and between them."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from bnderiv.convolution.steps import conv2d
from bnderiv.normalization.slips.batch_norm import of_batch_norm


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
    yield from _between_the_norms(steps)
    N = steps.x.shape[0]
    for i in range(1, 6):
        sentence = f"a mean where a sum belongs: divided by N = {N}, which is in δ already"
        yield f"d_kernel{i}", sentence, getattr(steps, f"d_kernel{i}") / N
    yield "delta5", f"a missing 1/N, N = {N}: the loss is a mean over the examples", steps.delta5 * N
    yield "delta5", "a missing factor: the slope of tanh, 1 − a²", (steps.a5 - steps.targets) / N


def _between_the_norms(steps: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """The slips at activations, pools, the flattening, and the second convolution."""
    for i in range(1, 5):
        a, d_a = getattr(steps, f"a{i}"), getattr(steps, f"d_a{i}")
        step = f"d_y{i}" if steps.config.batch_norm else f"delta{i}"
        yield step, "a missing factor: the slope of the activation", d_a
        if steps.config.activation == "tanh":
            yield step, "a missing square: 1 − a in place of 1 − a²", d_a * (1 - a)
            yield step, "tanh of the output: 1 − tanh(a)² in place of 1 − a²", d_a * (1 - np.tanh(a) ** 2)
    if steps.config.pool == "avg":
        for i in (1, 2):
            sentence = "a missing divisor: each of the four cells of a window takes a quarter"
            yield f"d_a{i}", sentence, 4 * getattr(steps, f"d_a{i}")
    N, rows, columns, maps = steps.p2.shape
    sentence = "another order: channels first (C, H, W), must be as the array lies, the last axis fastest"
    yield "d_p2", sentence, np.moveaxis(steps.d_f.reshape(N, maps, rows, columns), 1, -1)
    kernel = np.asarray(steps.params["conv2"]["kernel"])
    unturned = conv2d(steps.p1, kernel[::-1, ::-1], None, steps.delta2).dx  # the derivation turns it back
    sentence = "a flipped kernel: δ goes back through w turned by 180°, here w was not turned"
    yield "d_p1", sentence, np.asarray(unturned, np.float64)
