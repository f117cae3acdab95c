"""Where the windows of a pooling layer lie: one spatial axis at a time, and all of it known at trace time."""

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from bnderiv import _checks

# Cells of a window up to which a loop over them is unrolled. A loop over 500 compiles in 0.15 s, unrolled in 5.5; but
# on a GPU every step of a loop is three kernels.
UNROLLED = 64
# Cells, or windows over a cell, for which all axes are one kernel. Above, it computes the first axis again for each
# step of the second: 5×4/1 forward at 8×28×28×64 on a CPU 1.3 ms, one axis after the other 0.5.
TOGETHER = 9


class Windows(NamedTuple):
    """The windows along one axis: window i has its cell k at i·stride + k·dilation − before."""

    axis: int
    size: int
    window: int
    stride: int
    dilation: int
    before: int
    after: int  # the cells of `beyond` included
    beyond: int = 0  # cells after the padding that ceil_mode adds; no average counts them

    @property
    def reach(self) -> int:
        """Cells from the first to the last of a window, the holes of the dilation included."""
        return (self.window - 1) * self.dilation + 1

    @property
    def count(self) -> int:
        """How many windows there are."""
        return (self.padded - self.reach) // self.stride + 1

    @property
    def padded(self) -> int:
        """Cells of the axis and its padding."""
        return self.size + self.before + self.after

    @property
    def blocks(self) -> list["Block"]:
        """The windows, those together that have the same cells in the input."""
        start = np.arange(self.count) * self.stride - self.before
        first = np.maximum(0, -(start // self.dilation))
        last = np.minimum(self.window - 1, (self.size - 1 - start) // self.dilation)
        changes = [0, *(np.flatnonzero(np.diff(first) | np.diff(last)) + 1), self.count]
        return [
            Block(
                self, int(start[i] + first[i] * self.dilation), int(first[i]), int(last[i] - first[i]) + 1, int(j - i)
            )
            for i, j in itertools.pairwise(changes)
        ]

    @property
    def first_real(self) -> np.ndarray:
        """The first cell of each window that is no padding before the input; 0 where there is none (P9)."""
        first = np.maximum(0, -((np.arange(self.count) * self.stride - self.before) // self.dilation))
        return np.where(first < self.window, first, 0)

    def counted(self, padding: bool) -> np.ndarray:
        """How many cells of each window an average counts: of the input alone, or of its padding as well (P3)."""
        low, high = (-self.before, self.size + self.after - self.beyond) if padding else (0, self.size)
        first = np.arange(self.count) * self.stride - self.before
        return np.minimum(first + self.window, high) - np.maximum(first, low)

    @property
    def margin(self) -> tuple[int, int]:
        """How many zeros are before and after the entries of D (P5); neither is negative."""
        return self.reach - 1 - self.before, self.size + self.before - 1 - (self.count - 1) * self.stride

    @property
    def one_by_one(self) -> bool:
        """Whether there are fewer windows than may cover a cell; then the terms of a gradient are the windows."""
        return self.count < -(-self.reach // self.stride)

    @property
    def cells_of(self) -> np.ndarray:
        """Row b, column p: the number of the cell that window b has at p; −1 if it does not cover p (P6).

        The windows are counted back from p: window 0 is the last that starts at or before p. If they are taken
        `one_by_one`, b is a window's own number.
        """
        place = np.arange(self.size) + self.before
        terms = np.arange(min(self.count, -(-self.reach // self.stride)))[:, None]
        window = terms + 0 * place if self.one_by_one else place // self.stride - terms
        cell, hole = np.divmod(place - window * self.stride, self.dilation)
        covers = (window >= 0) & (window < self.count) & (hole == 0) & (cell >= 0) & (cell < self.window)
        return np.where(covers, cell, -1)


class Block(NamedTuple):
    """`count` windows one after the other that all have the cells `first`, `first` + 1, … in the input."""

    of: Windows
    start: int  # where the first of these windows has cell `first`
    first: int
    cells: int
    count: int

    @property
    def place(self) -> tuple[int, int, int]:
        """Start, stride and count of the windows."""
        return self.start, self.of.stride, self.count


Sides = tuple[Windows, ...]  # the windows along each spatial axis


def windows(
    x: jax.Array,
    window: Any,
    strides: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    channel_axis: Any,
    batch_axis: Any,
) -> Sides:
    """The windows along each spatial axis of `x`.

    Raises:
      TypeError: an argument of another type.
      ValueError: `x` without a spatial axis or empty, an argument out of range, a window larger than the padded input,
        or padding as large as a window (which would then lie in the padding alone).
    """
    _checks.rank_at_least("x", x, 3, "batch, spatial axes, channel")
    _checks.nonempty("x", x)
    _, axes, _ = _checks.image_axes(channel_axis, batch_axis, x.ndim)
    window = _checks.integers("window", window, len(axes))
    strides = window if strides is None else _checks.integers("strides", strides, len(axes))
    dilation = _checks.integers("dilation", dilation, len(axes))
    _checks.boolean("ceil_mode", ceil_mode)
    sizes = tuple(x.shape[a] for a in axes)
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError(f"the spatial axes of x must be known, only batch and channels symbolic, got {x.shape}")
    pads = _checks.paddings(padding, sizes, window, strides, dilation, ceil_mode=ceil_mode)
    sides = []
    for i, (axis, size, m, s, d, (before, after)) in enumerate(
        zip(axes, sizes, window, strides, dilation, pads, strict=True)
    ):
        w = Windows(axis, size, m, s, d, before, after)
        if max(before, after) >= w.reach:
            raise ValueError(
                f"padding on a side must be smaller than the window, which spans {w.reach} along spatial axis {i}, "
                f"got ({before}, {after})"
            )
        beyond = cells_beyond(size, w.reach, s, before, after) if ceil_mode else 0
        sides.append(w._replace(after=after + beyond, beyond=beyond))
    return tuple(sides)


def cells_beyond(size: int, reach: int, stride: int, before: int, after: int) -> int:
    """How many cells past the padding a last window needs that starts in the input or before it, by PyTorch's rule."""
    padded = size + before + after
    count = min(-(-(padded - reach) // stride), (size + before - 1) // stride) + 1
    return max((count - 1) * stride + reach - padded, 0)
