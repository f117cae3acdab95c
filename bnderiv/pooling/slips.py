"""What people get wrong in the pools: an assignment where windows overlap, the divisor, who wins a tie."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bnderiv.pooling.steps import geometry_of

Slips = Iterator[tuple[str, str, np.ndarray]]
Cells = list[tuple[int, ...]]


def of_avg_pool(steps: Any) -> Slips:
    """(step, sentence, the value it would have given)."""
    if steps.x.ndim != len(steps.window) + 2:
        return  # many layers at once, by vmap
    shape, windows = steps.x.shape, steps.z.shape
    first, cells = _places(steps, 1)
    everyone = np.ones((len(cells), *windows))
    yield from _assigned(everyone * steps.share, everyone > 0, first, cells, shape)

    size = len(cells)
    inside = _read(np.ones(shape), first, cells).sum(0)  # how many cells of each window are no padding (P3)
    right = f"all {size} cells of the window"
    if steps.divisor_override is not None:
        right = f"divisor_override, {steps.divisor_override}"
    elif not steps.count_include_pad:
        right = "the cells that are no padding"
    elif steps.ceil_mode:
        right = "the cells of the padded input"
    wrong = {
        f"the wrong divisor: all {size} cells of the window, must be {right}": size,
        f"the wrong divisor: the cells that are no padding, must be {right}": inside,
        "a missing divisor: a window is divided by the number of its cells": 1,
        **{f"the wrong divisor: one side of the window, {m}, must be {right}": m for m in steps.window if 1 < m < size},
    }
    for sentence, count in wrong.items():
        count = np.broadcast_to(np.asarray(count, np.float64), windows)
        share = steps.dy / count
        yield "count", sentence, count
        yield "z", sentence, steps.total / count
        yield "share", sentence, share
        yield "dx", sentence, _handed(everyone * share, first, cells, shape)


def of_max_pool(steps: Any) -> Slips:
    """(step, sentence, the value it would have given)."""
    if steps.x.ndim != len(steps.window) + 2:
        return  # many layers at once, by vmap
    shape, z, delta = steps.x.shape, steps.z, steps.dy
    first, cells = _places(steps, steps.dilation)
    values = _read(steps.x, first, cells, outside=-np.inf)
    ties = (values == z) | (np.isnan(values) & np.isnan(z))
    won = np.arange(len(cells)).reshape(-1, *[1] * z.ndim) == steps.winner
    yield from _assigned(won * delta, won, first, cells, shape)
    last = np.flip(np.cumsum(np.flip(ties, 0), axis=0), 0) == 1
    for sentence, taken in (
        ("a tie: each of the cells that tie is given all of δ, must be the first alone", ties),
        ("a tie: δ is shared by the cells that tie, must be the first's alone", ties / ties.sum(0)),
        ("a tie: the last of the cells that tie is given δ, must be the first", ties & last),
        ("δ is handed to every cell of the window, must be to the winner alone", np.ones(ties.shape)),
        ("δ is shared by the cells of the window, as in average pooling", np.full(ties.shape, 1 / len(cells))),
    ):
        yield "dx", sentence, _handed(taken * delta, first, cells, shape)


def _places(steps: Any, dilation: int | Sequence[int]) -> tuple[list[np.ndarray], Cells]:
    """Where each window begins on every axis, s i − t, and how far its cells are from there, in row-major order.

    On the axes of batch and channels every place has a window, and each window one cell.
    """
    options = steps.ceil_mode, steps.channel_axis, steps.batch_axis
    w = geometry_of(steps.x, steps.window, steps.strides, steps.padding, dilation, *options)
    first, offsets = [np.arange(size) for size in steps.x.shape], [[0] for _ in steps.x.shape]
    sides = zip(w.spatial, w.counts, w.strides, w.padding, w.window, w.dilation, strict=True)
    for axis, count, stride, (before, _), m, d in sides:
        first[axis] = stride * np.arange(count) - before
        offsets[axis] = [d * k for k in range(m)]
    return first, list(itertools.product(*offsets))


def _handed(
    shares: np.ndarray, first: Sequence[np.ndarray], cells: Cells, shape: Sequence[int], given: Any = None
) -> np.ndarray:
    """What the cells of the windows hand to the input, added up; with `given`, assigned, one cell after the other."""
    dx = np.zeros(shape)
    for number, cell in enumerate(cells):
        place, windows = _inside(first, cell, shape)
        share = shares[number][windows]
        dx[place] = dx[place] + share if given is None else np.where(given[number][windows], share, dx[place])
    return dx


def _assigned(
    shares: np.ndarray, given: np.ndarray, first: Sequence[np.ndarray], cells: Cells, shape: Sequence[int]
) -> Slips:
    sentence = "assigned where windows overlap: a cell adds up what its windows hand it, here it has one window's alone"
    # The later window has the place as an earlier cell; a loop over cells ends with the last cell.
    yield "dx", sentence, _handed(shares[::-1], first, cells[::-1], shape, given[::-1])
    yield "dx", sentence, _handed(shares, first, cells, shape, given)


def _read(x: np.ndarray, first: Sequence[np.ndarray], cells: Cells, outside: float = 0.0) -> np.ndarray:
    """The cells of each window, (cells, *windows); `outside` for those in the padding."""
    out = np.full((len(cells), *map(len, first)), outside)
    for number, cell in enumerate(cells):
        place, windows = _inside(first, cell, x.shape)
        out[number][windows] = x[place]
    return out


def _inside(first: Sequence[np.ndarray], cell: Sequence[int], shape: Sequence[int]) -> tuple[Any, Any]:
    """Where this cell of each window is in the input, and in which windows it is no padding."""
    index = [f + k for f, k in zip(first, cell, strict=True)]
    inside = [np.flatnonzero((i >= 0) & (i < size)) for i, size in zip(index, shape, strict=True)]
    return np.ix_(*(i[kept] for i, kept in zip(index, inside, strict=True))), np.ix_(*inside)
