"""What the pooling layers must equal: the plain forward, differentiated by JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv._numbers import accumulator

__all__ = ["avg_pool", "max_pool"]


def avg_pool(
    x,
    window,
    *,
    strides=None,
    padding="VALID",
    count_include_pad=True,
    ceil_mode=False,
    divisor_override=None,
    channel_axis=-1,
    batch_axis=0,
):
    """`lax.reduce_window` with a sum, over the number of cells; see `bnderiv.avg_pool`."""
    axes, window, strides, _, pads, beyond = _geometry(
        x, window, strides, padding, 1, ceil_mode, channel_axis, batch_axis
    )

    def at_axes(values: Any, others: Any) -> Any:
        return [values[axes.index(a)] if a in axes else others for a in range(x.ndim)]

    def sums(a, pads):
        zero, around = np.zeros((), a.dtype), at_axes(pads, (0, 0))
        return lax.reduce_window(a, zero, lax.add, at_axes(window, 1), at_axes(strides, 1), around)

    wide = x.astype(accumulator(x.dtype))
    past = [(0, more) for more in beyond]
    around = [(low, high + more) for (low, high), more in zip(pads, beyond, strict=True)]
    if divisor_override is not None:
        count = divisor_override
    elif count_include_pad:
        count = sums(jnp.ones_like(jnp.pad(wide, at_axes(pads, (0, 0)))), past)
    else:
        count = sums(jnp.ones_like(wide), around)
    return (sums(wide, around) / count).astype(x.dtype)


def max_pool(
    x,
    window,
    *,
    strides=None,
    padding="VALID",
    dilation=1,
    ceil_mode=False,
    channel_axis=-1,
    batch_axis=0,
):
    """The cells of each window side by side, and the one `jnp.argmax` finds; see `bnderiv.max_pool`."""
    axes, window, strides, dilation, pads, beyond = _geometry(
        x, window, strides, padding, dilation, ceil_mode, channel_axis, batch_axis
    )
    pads = [(low, high + more) for (low, high), more in zip(pads, beyond, strict=True)]
    front = tuple(range(len(axes)))
    images = jnp.moveaxis(x, axes, front)
    cells = _cells(images, -jnp.inf, window, strides, dilation, pads)
    real = _cells(jnp.ones_like(images, bool), False, window, strides, dilation, pads)
    return jnp.moveaxis(_first_largest(cells, real), front, axes)


@jax.jit
def _first_largest(cells, real):
    """Along axis 0 the largest real cell: the first of equals, a NaN above all; −inf where no cell is real."""
    largest = jnp.max(jnp.where(real, cells, -jnp.inf), 0, keepdims=True)
    among = real & ((cells == largest) | jnp.isnan(cells))  # jnp.max of a NaN is NaN, which equals nothing
    return jnp.take_along_axis(cells, jnp.argmax(among, 0, keepdims=True), 0)[0]  # argmax finds the first True


def _cells(images, fill, window, strides, dilation, pads):
    """The cells of all windows, (cells of a window, *windows, ...), in row-major order of the window."""
    n = len(window)
    padded = jnp.pad(images, (*pads, (0, 0), (0, 0)), constant_values=fill)
    places = []
    for i, (size, w, s, d) in enumerate(zip(padded.shape[:n], window, strides, dilation, strict=True)):
        place = np.arange(w)[:, None] * d + np.arange(0, size - (w - 1) * d, s)  # (cells of a window, windows)
        places.append(np.expand_dims(place, [a for a in range(2 * n) if a not in (i, n + i)]))
    cells = padded[tuple(places)]
    return cells.reshape(-1, *cells.shape[n:])


def _geometry(x, window, strides, padding, dilation, ceil_mode, channel_axis, batch_axis):
    axes = tuple(a for a in range(x.ndim) if a not in (channel_axis % x.ndim, batch_axis % x.ndim))
    sizes = [x.shape[a] for a in axes]

    def for_each(value):
        return (value,) * len(axes) if isinstance(value, int) else tuple(value)

    window, dilation = for_each(window), for_each(dilation)
    strides = window if strides is None else for_each(strides)
    reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(sizes, reach, strides, padding)
    elif isinstance(padding, int):
        padding = ((padding, padding),) * len(axes)
    pads, beyond = tuple(map(tuple, padding)), [0] * len(axes)
    for i, (size, (low, high), r, s) in enumerate(zip(sizes, pads, reach, strides, strict=True)):
        starts = [start for start in range(0, size + low, s) if start < size + low + high - r + s]
        if ceil_mode:
            beyond[i] = max(starts[-1] + r - (size + low + high), 0)
    return axes, window, strides, dilation, pads, beyond
