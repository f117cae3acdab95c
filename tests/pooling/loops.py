"""Pooling written as loops over windows and cells, in NumPy: an oracle that shares nothing with the layers."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st


@dataclass(frozen=True)
class Problem:
    """A pooling layer's input and options, drawn at random."""

    shape: tuple[int, int, int, int]
    window: tuple[int, int]
    strides: tuple[int, int] | None
    padding: Any
    dilation: tuple[int, int]
    channel_axis: int
    batch_axis: int
    seed: int

    def options(self) -> dict[str, Any]:
        return {
            "strides": self.strides,
            "padding": self.padding,
            "channel_axis": self.channel_axis,
            "batch_axis": self.batch_axis,
        }

    @property
    def axes(self) -> tuple[int, ...]:
        """The rows and the columns."""
        return tuple(a for a in range(4) if a not in (self.channel_axis % 4, self.batch_axis % 4))

    def places(self, i: int) -> list[list[int | None]]:
        """The places of each window's cells along the rows (i = 0) or the columns (i = 1), None for padding."""
        size, w, d = self.shape[self.axes[i]], self.window[i], self.dilation[i]
        s = w if self.strides is None else self.strides[i]
        reach = (w - 1) * d + 1
        if self.padding == "SAME":
            total = max((int(np.ceil(size / s)) - 1) * s + reach - size, 0)
            before, after = total // 2, (total + 1) // 2
        else:
            before, after = (0, 0) if self.padding == "VALID" else self.padding[i]
        starts = range(-before, size + after - reach + 1, s)
        return [[p if 0 <= p < size else None for p in range(t, t + reach, d)] for t in starts]

    @property
    def columns_are_padded(self) -> bool:
        return any(None in places for places in self.places(1))

    def windows(self):
        """For each window its place in the output, and the places of its cells: row-major, None for padding."""
        for (i, rows), (j, columns) in itertools.product(enumerate(self.places(0)), enumerate(self.places(1))):
            cells = [None if p is None or q is None else (p, q) for p, q in itertools.product(rows, columns)]
            yield (i, j), cells

    def images(self, x: np.ndarray) -> np.ndarray:
        """A view with the rows and the columns in front."""
        return np.moveaxis(x, self.axes, (0, 1))


def outputs_like(problem: Problem, x: np.ndarray) -> np.ndarray:
    *_, ((i, j), _) = problem.windows()
    shape = list(x.shape)
    shape[problem.axes[0]], shape[problem.axes[1]] = i + 1, j + 1
    return np.zeros(shape)


def average(problem: Problem, x: np.ndarray, dy: np.ndarray, count_include_pad: bool) -> tuple[np.ndarray, np.ndarray]:
    """y and dx, one window after the other."""
    y, dx = outputs_like(problem, x), np.zeros(x.shape)
    for place, cells in problem.windows():
        real = [c for c in cells if c is not None]
        count = len(cells) if count_include_pad else len(real)
        for cell in real:
            problem.images(y)[place] += problem.images(x)[cell] / count
            problem.images(dx)[cell] += problem.images(dy)[place] / count
    return y, dx


def maximum(problem: Problem, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y and dx, one number after the other."""
    y, dx = outputs_like(problem, x), np.zeros(x.shape)
    x_images, y_images, dx_images, dy_images = map(problem.images, (x, y, dx, dy))
    for place, cells in problem.windows():
        for rest in np.ndindex(x_images.shape[2:]):
            best, winner = -np.inf, None
            for cell in cells:
                if cell is None:
                    continue
                value = x_images[cell][rest]
                if winner is None or value > best or (np.isnan(value) and not np.isnan(best)):
                    best, winner = value, cell
            y_images[place][rest] = best
            if winner is not None:
                dx_images[winner][rest] += dy_images[place][rest]
    return y, dx


@st.composite
def problems(draw, dilated: bool = False) -> Problem:
    """Small images in any layout, under any windows that fit."""
    channel, batch = draw(st.permutations(range(4)))[:2]
    axes = [a for a in range(4) if a not in (channel, batch)]
    shape = [draw(st.integers(1, 2)) for _ in range(4)]
    window, strides, dilation, pads = [], [], [], []
    padding = draw(st.sampled_from(["VALID", "SAME", None]))
    for a in axes:
        w, s = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        d = draw(st.integers(1, 3)) if dilated else 1
        reach = (w - 1) * d + 1
        before, after = (draw(st.integers(0, reach - 1)) for _ in range(2))
        least = max(reach - before - after, 1) if padding is None else 1 if padding == "SAME" else reach
        shape[a] = least + draw(st.integers(0, 4))
        for values, value in ((window, w), (strides, s), (dilation, d), (pads, (before, after))):
            values.append(value)
    return Problem(
        shape=tuple(shape),
        window=tuple(window),
        strides=draw(st.sampled_from([None, tuple(strides)])),
        padding=padding or tuple(pads),
        dilation=tuple(dilation),
        channel_axis=channel - draw(st.sampled_from([0, 4])),
        batch_axis=batch - draw(st.sampled_from([0, 4])),
        seed=draw(st.integers(0, 99)),
    )
