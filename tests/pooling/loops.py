"""Pooling written as loops over windows and cells, in NumPy: an oracle that shares nothing with the layers."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st


@dataclass(frozen=True)
class Problem:
    """A pooling layer's input and options, drawn at random."""

    shape: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...] | None
    padding: Any
    dilation: tuple[int, ...]
    ceil_mode: bool
    channel_axis: int
    batch_axis: int
    seed: int

    def options(self) -> dict[str, Any]:
        return {
            "strides": self.strides,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "channel_axis": self.channel_axis,
            "batch_axis": self.batch_axis,
        }

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial ones."""
        rank = len(self.shape)
        return tuple(a for a in range(rank) if a not in (self.channel_axis % rank, self.batch_axis % rank))

    def places(self, i: int) -> list[list[int | str | None]]:
        """The places of each window's cells along spatial axis i, None for padding, "beyond" for what is past it."""
        size, w, d = self.shape[self.axes[i]], self.window[i], self.dilation[i]
        s = w if self.strides is None else self.strides[i]
        reach = (w - 1) * d + 1
        if self.padding == "SAME":
            total = max((int(np.ceil(size / s)) - 1) * s + reach - size, 0)
            before, after = total // 2, (total + 1) // 2
        else:
            before, after = (0, 0) if self.padding == "VALID" else self.padding[i]

        def place(p: int) -> int | str | None:
            return p if 0 <= p < size else "beyond" if p >= size + after else None

        windows = []
        for start in range(-before, size, s):
            windows.append([place(p) for p in range(start, start + reach, d)])
            last = start + reach - 1
            if last + s >= size + after and not (self.ceil_mode and last < size + after - 1):
                break
        return windows

    @property
    def all_but_the_first_are_unpadded(self) -> bool:
        places = [self.places(i) for i in range(1, len(self.axes))]
        return all(isinstance(p, int) for windows in places for cells in windows for p in cells)

    def windows(self):
        """For each window its place in the output, and the places of its cells: row-major, None for padding.

        A cell that is past the padding is "beyond".
        """
        for sides in itertools.product(*(enumerate(self.places(i)) for i in range(len(self.axes)))):
            place, cells = zip(*sides, strict=True)
            yield (
                place,
                [
                    "beyond" if "beyond" in cell else None if None in cell else cell
                    for cell in itertools.product(*cells)
                ],
            )

    def images(self, x: np.ndarray) -> np.ndarray:
        """A view with the spatial axes in front."""
        return np.moveaxis(x, self.axes, range(len(self.axes)))


def outputs_like(problem: Problem, x: np.ndarray) -> np.ndarray:
    *_, (last, _) = problem.windows()
    shape = list(x.shape)
    for axis, i in zip(problem.axes, last, strict=True):
        shape[axis] = i + 1
    return np.zeros(shape)


def average(
    problem: Problem, x: np.ndarray, dy: np.ndarray, count_include_pad: bool, divisor_override: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """y and dx, one window after the other."""
    y, dx = outputs_like(problem, x), np.zeros(x.shape)
    for place, cells in problem.windows():
        real = [c for c in cells if isinstance(c, tuple)]
        count = len(cells) - cells.count("beyond") if count_include_pad else len(real)
        count = divisor_override or count
        for cell in real:
            problem.images(y)[place] += problem.images(x)[cell] / count
            problem.images(dx)[cell] += problem.images(dy)[place] / count
    return y, dx


def maximum(problem: Problem, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y and dx, one number after the other."""
    y, dx = outputs_like(problem, x), np.zeros(x.shape)
    x_images, y_images, dx_images, dy_images = map(problem.images, (x, y, dx, dy))
    for place, cells in problem.windows():
        for rest in np.ndindex(x_images.shape[len(problem.axes) :]):
            best, winner = -np.inf, None
            for cell in cells:
                if not isinstance(cell, tuple):
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
    rank = draw(st.sampled_from([2, 2, 1, 3])) + 2
    channel, batch = draw(st.permutations(range(rank)))[:2]
    axes = [a for a in range(rank) if a not in (channel, batch)]
    shape = [draw(st.integers(1, 2)) for _ in range(rank)]
    window, strides, dilation, pads = [], [], [], []
    padding, ceil_mode = draw(st.sampled_from(["VALID", "SAME", None])), draw(st.booleans())
    for a in axes:
        w, s = draw(st.integers(1, 4 if rank < 5 else 3)), draw(st.integers(1, 4))
        d = draw(st.integers(1, 3)) if dilated else 1
        reach = (w - 1) * d + 1
        before, after = (draw(st.integers(0, reach - 1)) for _ in range(2))
        least = max(reach - before - after, 1) if padding is None else 1 if padding == "SAME" else reach
        shape[a] = least + draw(st.integers(0, 4 if rank < 5 else 2))
        for values, value in ((window, w), (strides, s), (dilation, d), (pads, (before, after))):
            values.append(value)
    return Problem(
        shape=tuple(shape),
        window=tuple(window),
        strides=draw(st.sampled_from([None, tuple(strides)])),
        padding=padding or tuple(pads),
        dilation=tuple(dilation),
        ceil_mode=ceil_mode,
        channel_axis=channel - draw(st.sampled_from([0, rank])),
        batch_axis=batch - draw(st.sampled_from([0, rank])),
        seed=draw(st.integers(0, 99)),
    )
