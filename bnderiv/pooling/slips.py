"""What people get wrong in the pools: an assignment where windows overlap, the divisor, who wins a tie.

Window and stride are not among the steps; where the windows lie is read off the spread arrays (derivation.md, P5).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Slips = Iterator[tuple[str, str, np.ndarray]]
Cells = list[tuple[int, ...]]


def of_avg_pool(steps: Any) -> Slips:
    """(step, sentence, what the slip would have given)."""
    s = {name: np.asarray(value, np.float64) for name, value in steps._asdict().items()}
    shape, windows = s["dx"].shape, s["z"].shape
    reach, first = _layout(s["share_spread"] != 0, shape)
    if tuple(map(len, first)) != windows:
        return  # all of a row of windows hand on 0: where they lie is not to be seen
    cells = list(np.ndindex(*reach))
    everyone = np.ones((len(cells), *windows))
    yield from _assigned(everyone * s["share"], everyone > 0, first, cells, shape)

    size = len(cells)
    wrong = {
        f"the wrong divisor: all {size} cells of the window, where only those that are no padding count": size,
        "the wrong divisor: the cells that are no padding, where all of the window count": _real(first, reach, shape),
        "a missing divisor: a window is divided by the number of its cells": 1,
        **{f"the wrong divisor: one side of the window, {m}, must be both, {size}": m for m in reach if 1 < m < size},
    }
    for sentence, count in wrong.items():
        count = np.broadcast_to(np.asarray(count, np.float64), windows)
        share = s["share"] * s["count"] / count
        yield "count", sentence, count
        yield "z", sentence, s["total"] / count
        yield "share", sentence, share
        yield "dx", sentence, _handed(everyone * share, first, cells, shape)


def of_max_pool(steps: Any) -> Slips:
    """(step, sentence, what the slip would have given)."""
    s = {name: np.asarray(value, np.float64) for name, value in steps._asdict().items()}
    shape, windows, z, x_padded = s["dx"].shape, s["z"].shape, s["z"], s["x_padded"]
    reach, first = _layout(s["winner_spread"] >= 0, shape)
    if tuple(map(len, first)) != windows:
        return
    delta = s["delta_spread"][np.ix_(*(f + r - 1 for f, r in zip(first, reach, strict=True)))]
    for dilation in itertools.product(*([d for d in range(1, max(r, 2)) if (r - 1) % d == 0] for r in reach)):
        cells = list(itertools.product(*(range(0, r, d) for r, d in zip(reach, dilation, strict=True))))
        values = np.stack([x_padded[np.ix_(*(f - f[0] + k for f, k in zip(first, c, strict=True)))] for c in cells])
        ties = (values == z) | (np.isnan(values) & np.isnan(z))
        won = np.arange(len(cells)).reshape(-1, *[1] * z.ndim) == s["winner"]
        if np.array_equal(values.max(0), z, equal_nan=True) and not (won & ~ties).any():
            break
    else:
        return  # the steps do not say how the windows lie
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


def _layout(here: np.ndarray, shape: Sequence[int]) -> tuple[list[int], list[np.ndarray]]:
    """m_d of every axis (1 on those of the batch and the channels), and where each window begins, s i − t.

    `here` is where the spread array has a window: it is longer than the input by m_d − 1, and holds window i at
    s i − t + m_d − 1.
    """
    reach = [long - size + 1 for long, size in zip(here.shape, shape, strict=True)]
    along = [np.flatnonzero(here.any(tuple(b for b in range(here.ndim) if b != a))) for a in range(here.ndim)]
    return reach, [places - (r - 1) for places, r in zip(along, reach, strict=True)]


def _handed(
    shares: np.ndarray, first: Sequence[np.ndarray], cells: Cells, shape: Sequence[int], given: Any = None
) -> np.ndarray:
    """What the cells of the windows hand to the input, added up; with `given`, assigned, one cell after the other."""
    dx = np.zeros(shape)
    for number, cell in enumerate(cells):
        index = [f + k for f, k in zip(first, cell, strict=True)]
        inside = [np.flatnonzero((i >= 0) & (i < size)) for i, size in zip(index, shape, strict=True)]
        place, windows = np.ix_(*(i[kept] for i, kept in zip(index, inside, strict=True))), np.ix_(*inside)
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


def _real(first: Sequence[np.ndarray], reach: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """How many cells of each window are no padding (P3)."""
    sides = [np.minimum(f + r, size) - np.maximum(f, 0) for f, r, size in zip(first, reach, shape, strict=True)]
    return math.prod(np.ix_(*sides), start=np.ones(()))
