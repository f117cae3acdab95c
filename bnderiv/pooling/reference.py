"""What the pooling layers must equal: the plain forward, differentiated by JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv._numbers import accumulator

__all__ = ["avg_pool", "max_pool"]


def avg_pool(x, window, *, strides=None, padding="VALID", count_include_pad=True, channel_axis=-1, batch_axis=0):
    """`lax.reduce_window` with a sum, over the number of cells; see `bnderiv.avg_pool`."""
    axes, window, strides, _, pads = _geometry(x, window, strides, padding, 1, channel_axis, batch_axis)

    def at_axes(values: Any, others: Any) -> Any:
        return [values[axes.index(a)] if a in axes else others for a in range(4)]

    def sums(a):
        zero, around = np.zeros((), a.dtype), at_axes(pads, (0, 0))
        return lax.reduce_window(a, zero, lax.add, at_axes(window, 1), at_axes(strides, 1), around)

    wide = x.astype(accumulator(x.dtype))
    count = window[0] * window[1] if count_include_pad else sums(jnp.ones_like(wide))
    return (sums(wide) / count).astype(x.dtype)


def max_pool(x, window, *, strides=None, padding="VALID", dilation=1, channel_axis=-1, batch_axis=0):
    """The cells of each window side by side, and the one `jnp.argmax` finds; see `bnderiv.max_pool`."""
    axes, window, strides, dilation, pads = _geometry(x, window, strides, padding, dilation, channel_axis, batch_axis)
    images = jnp.moveaxis(x, axes, (0, 1))
    cells = _cells(images, -jnp.inf, window, strides, dilation, pads)
    real = _cells(jnp.ones_like(images, bool), False, window, strides, dilation, pads)
    return jnp.moveaxis(_first_largest(cells, real), (0, 1), axes)


@jax.jit
def _first_largest(cells, real):
    """Along axis 0 the largest real cell: the first of equals, a NaN above all; −inf where no cell is real."""
    largest = jnp.max(jnp.where(real, cells, -jnp.inf), 0, keepdims=True)
    among = real & ((cells == largest) | jnp.isnan(cells))  # jnp.max of a NaN is NaN, which equals nothing
    return jnp.take_along_axis(cells, jnp.argmax(among, 0, keepdims=True), 0)[0]  # argmax finds the first True


def _cells(images, fill, window, strides, dilation, pads):
    """The cells of all windows, (m·n, rows, columns, ...), in row-major order of the window."""
    padded = jnp.pad(images, (*pads, (0, 0), (0, 0)), constant_values=fill)
    rows, columns = (
        np.arange(w)[:, None] * d + np.arange(0, size - (w - 1) * d, s)  # (cells of a window, windows)
        for size, w, s, d in zip(padded.shape[:2], window, strides, dilation, strict=True)
    )
    cells = padded[rows[:, None, :, None], columns[None, :, None, :]]
    return cells.reshape(-1, *cells.shape[2:])


def _geometry(x, window, strides, padding, dilation, channel_axis, batch_axis):
    axes = tuple(a for a in range(4) if a not in (channel_axis % 4, batch_axis % 4))
    window, dilation = _both(window), _both(dilation)
    strides = window if strides is None else _both(strides)
    if isinstance(padding, str):
        sizes, reach = [x.shape[a] for a in axes], [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        padding = lax.padtype_to_pads(sizes, reach, strides, padding)
    elif isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    return axes, window, strides, dilation, tuple(map(tuple, padding))


def _both(value):
    return (value, value) if isinstance(value, int) else tuple(value)
