"""The moves of a pooling layer between an input's axis and its windows' axis.

One spatial axis at a time, on whatever axis it is: nothing is transposed.
"""

import jax
from jax import lax

from bnderiv import _checks
from bnderiv.pooling._windows import Sides, Windows


def pad(x: jax.Array, sides: Sides, value: float) -> jax.Array:
    """`x` with its padding, along all axes at once: on a CPU, padding what was computed of padded arrays is slow."""
    return _checks.pad(x, {w.axis: (w.before, w.after) for w in sides}, value)


def take(x: jax.Array, w: Windows, start: int | jax.Array, stride: int, count: int) -> jax.Array:
    """`count` cells along the axis of `w`, the first at `start`, `stride` apart."""
    if isinstance(start, int):
        return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, w.axis)
    return lax.slice_in_dim(
        lax.dynamic_slice_in_dim(x, start, (count - 1) * stride + 1, w.axis), 0, None, stride, w.axis
    )


def collect(x: jax.Array, sides: Sides, cell: tuple[int, ...]) -> jax.Array:
    """What each window has in this cell; 0 in the padding."""
    margins = {}
    for w, k in zip(sides, cell, strict=True):
        at = k * w.dilation - w.before
        first, last = max(0, -(at // w.stride)), min(w.count - 1, (w.size - 1 - at) // w.stride)  # that have it in x
        x = take(x, w, at + first * w.stride, w.stride, last - first + 1)
        margins[w.axis] = first, w.count - 1 - last
    return _checks.pad(x, margins)


def place(delta: jax.Array, sides: Sides, cell: tuple[int, ...]) -> jax.Array:
    """The transpose: each window's δ where it has this cell, 0 elsewhere."""
    margins = {}
    for w, k in zip(sides, cell, strict=True):
        at = k * w.dilation - w.before
        margins[w.axis] = at, w.size - 1 - at - (w.count - 1) * w.stride, w.stride - 1
    return _checks.pad(delta, margins)


def dilate(delta: jax.Array, w: Windows) -> jax.Array:
    """δ with stride − 1 zeros between its entries and a margin: entry p + reach − 1 − k·dilation of the result is the δ
    of the window that has x's cell p as its cell k, or zero where there is none (P5).
    """
    return _checks.pad(delta, {w.axis: (*w.margin, w.stride - 1)})


def with_margins(delta: jax.Array, *sides: Windows) -> jax.Array:
    """δ with room for windows that are not there, for `upsample`."""
    return _checks.pad(delta, {w.axis: (len(w.cells_of) - 1, _starts(w) - w.count) for w in sides if not w.one_by_one})


def upsample(delta: jax.Array, w: Windows, back: int | jax.Array) -> jax.Array:
    """For each of x's cells, δ (with margins) of window `back`, counted back as in `Windows.cells_of`.

    If there is no such window, or it does not cover the cell, the value is arbitrary: `cells_of` is −1 there.
    """
    if w.one_by_one:
        shape = *delta.shape[: w.axis], w.size, *delta.shape[w.axis + 1 :]
        return lax.broadcast_in_dim(lax.dynamic_slice_in_dim(delta, back, 1, w.axis), shape, range(delta.ndim))
    starts = _starts(w)
    delta = lax.dynamic_slice_in_dim(delta, len(w.cells_of) - 1 - back, starts, w.axis)
    shape = (*delta.shape[: w.axis], starts, w.stride, *delta.shape[w.axis + 1 :])
    blocks = lax.broadcast_in_dim(delta, shape, tuple(a + (a > w.axis) for a in range(delta.ndim)))
    return lax.slice_in_dim(lax.collapse(blocks, w.axis, w.axis + 2), w.before, w.before + w.size, axis=w.axis)


def _starts(w: Windows) -> int:
    """How many windows would start within x and the padding before it."""
    return -(-(w.size + w.before) // w.stride)
