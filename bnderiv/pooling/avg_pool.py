"""Average pooling with its gradient in closed form (derivation.md, P1–P6)."""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv import _checks
from bnderiv._cpu import quotient
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._target import by_target
from bnderiv.pooling import _xla
from bnderiv.pooling._windows import (
    Windows,
    collect,
    dilate,
    few_overlapping,
    pad,
    place,
    take,
    upsample,
    windows,
    with_margins,
)

# On a CPU, measured at 8×28×28×64. XLA's sums of stride 1 along one axis take half as long to compile as slices, and
# as long to run up to 16 cells: 7×7/1 0.4 ms; of 28 cells 3.4 ms, by halves 0.7.
SUMMED = 16
# Slices added up in one kernel, where windows have a stride: 4×5/3 0.12 ms, by XLA's sums 0.16.
SLICED = 8
# Terms of (P6) in one kernel: 13×1/13 0.06 ms, by (P5) 3.8.
UPSAMPLED = 8


def avg_pool(
    x: jax.Array,
    window: Any,
    *,
    strides: Any = None,
    padding: Any = "VALID",
    count_include_pad: bool = True,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> jax.Array:
    """Mean over each window of each channel: z_ij = 1/(mn) Σ a_{si+x, sj+y}.

    The gradient gives every cell its share of each window that covers it, δ_pq = 1/(mn) Σ δ_ij (derivation.md, P4).
    Half precision is accumulated in float32. Nothing is saved for the backward.

    Args:
      x: images, rank 4, floating dtype: (N, H, W, C), or as `channel_axis` and `batch_axis` say.
      window: (m, n), rows and columns of a window, or one integer for both.
      strides: steps between windows, an integer or a pair; None means the window.
      padding: "VALID" (none), "SAME" (⌈size/stride⌉ windows, the odd cell at the bottom and right), an integer, or
        ((top, bottom), (left, right)); on each side smaller than the window.
      count_include_pad: True divides by mn, the padding counting as zeros; False by the number of real cells.
      channel_axis: the axis of the channels.
      batch_axis: the axis of the examples; the two axes left are rows and columns, in order.

    Returns:
      Array of x's dtype, its rows and columns replaced by the windows' ones.

    Raises:
      TypeError: `x` has no floating dtype, `count_include_pad` is no boolean, or another argument no integers.
      ValueError: `x` of another rank or empty, `channel_axis` equal to `batch_axis`, an argument out of range, or a
        window larger than the padded input.

    >>> x = jnp.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]).reshape(1, 2, 4, 1)
    >>> avg_pool(x, 2).ravel()
    Array([3.5, 5.5], dtype=float32)
    """
    x = _checks.float_array("x", x)
    if not isinstance(count_include_pad, bool):
        raise TypeError(f"count_include_pad must be a boolean, got {count_include_pad!r}")
    both = windows(x, window, strides, padding, 1, channel_axis, batch_axis)
    return _avg_pool(both, count_include_pad, x)


@closed_form(static=2, result=lambda both, count_include_pad, x: x)
def _avg_pool(both, count_include_pad, x):
    total = by_target(
        x.astype(accumulator(x.dtype)),
        cpu=functools.partial(_sums, both),
        default=functools.partial(_xla.sums, both),
    )
    return (total / _divisor(both, count_include_pad, total)).astype(x.dtype)  # (P1)


def _sums(both, x):
    if cells := few_overlapping(both):
        return _sum([collect(x, both, cell) for cell in cells])
    if not all(_summed_by_xla(w) for w in both):
        x, both = pad(x, both, 0), tuple(w._replace(size=w.padded, before=0, after=0) for w in both)
    for w in both:  # over the rows, then over the columns (P2)
        x = _sums_along(x, w)
    return x


def _avg_pool_fwd(both, count_include_pad, x):
    return _avg_pool.body(both, count_include_pad, x), None


def _avg_pool_bwd(both, count_include_pad, _, delta):
    wide = delta.astype(accumulator(delta.dtype))
    n = _divisor(both, count_include_pad, wide)
    dx = by_target(
        wide,
        cpu=lambda delta: _hand_to_cells(both, n, delta),
        default=lambda delta: _xla.hand_to_cells(both, delta / n),
    )
    return (dx.astype(delta.dtype),)


def _hand_to_cells(both, n, delta):
    if cells := few_overlapping(both):  # (P4): the sum over the windows that cover a cell
        share = quotient(delta, n)
        return _sum([place(share, both, cell) for cell in cells])
    share = delta / n
    for w in both:  # the same, one axis at a time
        if w.count == 1 or (w.stride > 1 and len(w.cells_of) <= UPSAMPLED):  # (P6)
            share = with_margins(share, w)
            share = _sum([_where_covered(cell, upsample(share, w, back), w) for back, cell in enumerate(w.cells_of)])
        elif w.window <= SUMMED:  # (P5)
            share = _xla.hand_to_cells((w,), share)
        else:
            share = _sums_along(dilate(share, w), Windows(w.axis, w.size + w.reach - 1, w.window, 1, 1, 0, 0))
    return share


def _sum(terms):
    return functools.reduce(operator.add, terms)


def _where_covered(cell, share, w):
    covered = cell >= 0
    return share if covered.all() else jnp.where(_checks.along(jnp.asarray(covered), w.axis, share.ndim), share, 0)


_avg_pool.defvjp(_avg_pool_fwd, _avg_pool_bwd)


def _sums_along(x, w: Windows):
    """The sums of the windows along one axis, padded unless XLA sums them."""
    if w.window == w.stride == 1:
        return x
    if _summed_by_xla(w):
        return _xla.sums((w,), x)
    if w.window <= SLICED:
        return _sum([take(x, w, k, w.stride, w.count) for k in range(w.window)])
    # A long window is two of half the length: log(cells) additions, and as few roundings.
    half = w.window // 2
    step = half if w.count == 1 else math.gcd(half, w.stride)
    halves = _sums_along(x, w._replace(window=half, stride=step))
    first, second = (take(halves, w, k, max(w.stride // step, 1), w.count) for k in (0, half // step))
    last = [take(x, w, w.window - 1, w.stride, w.count)] if w.window % 2 else []
    return _sum([first, second, *last])


def _summed_by_xla(w: Windows):
    return w.stride == 1 < w.count and w.window <= SUMMED


def _divisor(both, count_include_pad, like):
    """mn, or the number of real cells in each window (P3)."""
    if count_include_pad:
        return both[0].window * both[1].window

    counts = []
    for w in both:
        first = np.arange(w.count) * w.stride - w.before
        real = np.minimum(first + w.window, w.size) - np.maximum(first, 0)
        counts.append(_checks.along(jnp.asarray(real, like.dtype), w.axis, like.ndim))
    return counts[0] * counts[1]
