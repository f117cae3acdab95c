"""What people get wrong in the convolution's gradients: mostly which way round the kernel lies."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bnderiv.convolution.steps import conv2d

OPTIONS = ("strides", "padding", "dilation", "groups", "channel_axis", "batch_axis")


def of_conv2d(steps: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(step, sentence, the value it would have given)."""
    if steps.kernel.ndim != 4:
        return  # many layers at once, by vmap
    turned = "a flipped kernel: ∂J/∂w is a correlation of input and δ, nothing is turned by 180°"
    yield "d_kernel", turned, steps.d_kernel[::-1, ::-1]
    unturned = "a flipped kernel: δ goes back through w turned by 180°, here w was not turned"
    yield "kernel_turned", unturned, steps.kernel_turned[::-1, ::-1]
    options = {name: getattr(steps, name) for name in OPTIONS}
    w = steps.kernel
    forward = conv2d(steps.x, w[::-1, ::-1], steps.bias, steps.dy, **options).z
    yield "z", "a turned kernel: the layer is a correlation, w is not turned by 180°", np.asarray(forward, np.float64)
    if steps.x_padded.shape != steps.x.shape:
        whole = conv2d(steps.x_padded, w, None, steps.dy, **{**options, "padding": 0}).dx
        yield "dx", "the gradient of the padded input: its rim is not cropped", np.asarray(whole, np.float64)
    for flipped, sentence in (  # the derivation turns what it is given: the axes flipped here come out unflipped
        (w[::-1, ::-1], unturned),
        (w[::-1], "a kernel flipped along its columns alone; both axes must be reversed"),
        (w[:, ::-1], "a kernel flipped along its rows alone; both axes must be reversed"),
    ):
        yield "dx", sentence, np.asarray(conv2d(steps.x, flipped, None, steps.dy, **options).dx, np.float64)
