"""What people get wrong in the convolution's gradients: mostly which way round the kernel lies."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import lax


def of_conv2d(steps: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(step, sentence, what the slip would have given)."""
    d_kernel = np.asarray(steps.d_kernel, np.float64)
    turned = "a flipped kernel: ∂J/∂w is a correlation of input and δ, nothing is turned by 180°"
    yield "d_kernel", turned, d_kernel[::-1, ::-1]
    w = steps.kernel_turned
    unturned = "a flipped kernel: δ goes back through w turned by 180°, here w was not turned"
    yield "kernel_turned", unturned, np.asarray(w, np.float64)[::-1, ::-1]
    for wrong, sentence in (
        (w[::-1, ::-1], unturned),
        (w[::-1], "a kernel flipped along its columns alone; both axes must be reversed"),
        (w[:, ::-1], "a kernel flipped along its rows alone; both axes must be reversed"),
    ):
        dx = _backward(steps, wrong)
        if dx is not None:
            yield "dx", sentence, np.asarray(dx, np.float64)


def _backward(steps: Any, kernel: jax.Array) -> jax.Array | None:
    """dx with another kernel. Layout, dilation and groups are those with which the right kernel gives the right dx."""
    delta, dx, right = steps.delta_padded, steps.dx, steps.kernel_turned
    for images in ("NHWC", "NCHW", *map("".join, itertools.permutations("NHWC"))):
        rows, columns, channel = (images.index(letter) for letter in "HWC")
        if delta.shape[channel] % right.shape[2] or dx.shape[channel] != right.shape[3]:
            continue
        reach = [delta.shape[a] - dx.shape[a] for a in (rows, columns)]
        cells = [k - 1 for k in right.shape[:2]]
        if any(r < 0 or (r and not k) or (k and r % k) for r, k in zip(reach, cells, strict=True)):
            continue
        d = [r // k if k else 1 for r, k in zip(reach, cells, strict=True)]
        groups = delta.shape[channel] // right.shape[2]
        specs, options = (images, "HWIO", images), {"feature_group_count": groups}
        if right.shape[3] % groups or 0 in d:
            continue
        again = lax.conv_general_dilated(delta, right, (1, 1), "VALID", None, d, specs, **options)
        if again.shape == dx.shape and np.allclose(again, dx, rtol=1e-3, atol=1e-5 * float(abs(dx).max())):
            return lax.conv_general_dilated(delta, kernel, (1, 1), "VALID", None, d, specs, **options)
    return None
