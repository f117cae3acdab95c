"""What people get wrong in the convolution's gradients: mostly which way round the kernel lies."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bnderiv.convolution.steps import conv

OPTIONS = ("strides", "padding", "dilation", "groups", "channel_axis", "batch_axis")


def of_conv(steps: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(step, sentence, the value it would have given)."""
    n = len(steps.strides)
    if steps.kernel.ndim != n + 2:
        return  # many layers at once, by vmap
    every = tuple(range(n))
    turned = "a flipped kernel: ∂J/∂w is a correlation of input and δ, nothing is turned by 180°"
    yield "d_kernel", turned, np.flip(steps.d_kernel, every)
    unturned = "a flipped kernel: δ goes back through w turned by 180°, here w was not turned"
    yield "kernel_turned", unturned, np.flip(steps.kernel_turned, every)
    options = {name: getattr(steps, name) for name in OPTIONS}
    w = steps.kernel
    forward = conv(steps.x, np.flip(w, every), steps.bias, steps.dy, **options).z
    yield "z", "a turned kernel: the layer is a correlation, w is not turned by 180°", np.asarray(forward, np.float64)
    if steps.x_padded.shape != steps.x.shape:
        whole = conv(steps.x_padded, w, None, steps.dy, **{**options, "padding": 0}).dx
        yield "dx", "the gradient of the padded input: its rim is not cropped", np.asarray(whole, np.float64)
    # The derivation turns what it is given: the axes flipped here come out unflipped.
    flips = [(every, unturned)]
    for axis in every if n > 1 else ():
        others = tuple(a for a in every if a != axis)
        flips.append((others, f"a kernel flipped along spatial axis {axis} alone; all of them must be reversed"))
    for axes, sentence in flips:
        yield "dx", sentence, np.asarray(conv(steps.x, np.flip(w, axes), None, steps.dy, **options).dx, np.float64)
