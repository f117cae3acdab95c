"""What each cell is handed by the windows that it won (derivation.md, P10–P11).

For each cell, the windows that may cover it are gone through: all of them at once if they are few (P10), otherwise one
axis after the other (P11).
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv import _checks
from bnderiv._cpu import integers_once
from bnderiv.pooling._moves import upsample, with_margins
from bnderiv.pooling._windows import TOGETHER, UNROLLED, Windows


def hand_to_winners(sides, winner, share):
    """Hands δ of each window to the cell that won it (P10)."""
    if math.prod(len(w.cells_of) for w in sides) <= TOGETHER:
        return _hand_at_once(sides, winner, share)
    total = math.prod(w.window for w in sides)
    # If a program has the forward too, XLA:CPU would find the winners again for each use: 23×4/1 at 8×28×28×64 takes
    # 170 ms then, otherwise 2.
    winner = integers_once(winner, total)
    # To the row that won, and there to the column. In all the windows over the same columns that a row won, it won with
    # the same cell (P11).
    for i, w in enumerate(sides[:-1]):
        cells, none = math.prod(later.window for later in sides[i + 1 :]), None
        if cells < total:
            row, cell = winner // cells, winner % cells
            # Where a row won no window it has no cell. If a further axis reads the number, it must not take it for one.
            none = cells if i < len(sides) - 2 else None
        else:
            row, cell = jnp.zeros_like(winner), winner  # the dtype of a number may not hold `cells`
        winner = _hand_along(w, row, cell, functools.partial(_replaced, none=none))
        share = _hand_along(w, row, share, _added)
    return _hand_along(sides[-1], winner, share, _added)


def _hand_at_once(sides, winner, share):
    for w in sides:
        winner, share = with_margins(winner, w), with_margins(share, w)
    total_cells = math.prod(w.window for w in sides)

    def add(total, winner, share, number, axis):
        """Adds what these windows hand to x's cells; `number` is that of the cell, as far as the axes before say."""
        if axis == len(sides):
            return _added(total, winner.astype(number.dtype) == number, share)
        w, step = sides[axis], math.prod(later.window for later in sides[axis + 1 :])
        for back, cells in enumerate(w.cells_of):
            # Where a window does not cover a cell the sum is negative, and so no winner's number.
            along_axis = np.where(cells < 0, -total_cells, cells * step).astype(np.int32)
            so_far = number + _checks.along(jnp.asarray(along_axis), w.axis, share.ndim)
            total = add(total, upsample(winner, w, back), upsample(share, w, back), so_far, axis + 1)
        return total

    return add(None, winner, share, 0, 0)


def _hand_along(w: Windows, winner, value, combined):
    """What the windows hand along one axis, each to its winner, combined where a cell won several."""
    winner, value = with_margins(winner, w), with_margins(value, w)

    def term(before, back, cells):
        cells = _checks.along(jnp.asarray(cells), w.axis, value.ndim)
        return combined(before, upsample(winner, w, back).astype(cells.dtype) == cells, upsample(value, w, back))

    cells = w.cells_of.astype(np.int32)
    total = term(None, 0, cells[0])
    if len(cells) <= UNROLLED:
        for back in range(1, len(cells)):
            total = term(total, back, cells[back])
        return total
    rest = jnp.arange(1, len(cells)), cells[1:]
    return lax.scan(lambda total, each: (term(total, *each), None), total, rest)[0]


def _added(total, wins, share):
    share = lax.select(wins, share, lax.full_like(share, 0))
    return share if total is None else total + share


def _replaced(number, wins, other, none):
    if number is None and none is None:
        return other
    return jnp.where(wins, other, jnp.asarray(none, other.dtype) if number is None else number)
