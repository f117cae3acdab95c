"""What each cell is handed by the windows that it won (derivation.md, P10–P11).

For each cell, the windows that may cover it are gone through: all of them at once if they are few (P10), otherwise one
axis after the other (P11). One CPU takes a scatter instead of the latter.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv import _checks, _target
from bnderiv._cpu import integers_once
from bnderiv._target import by_target
from bnderiv.pooling._moves import upsample, with_margins
from bnderiv.pooling._windows import TOGETHER, UNROLLED, Windows


def hand_to_winners(sides, winner, share):
    """Hands δ of each window to the cell that won it (P10)."""
    if math.prod(len(w.cells_of) for w in sides) <= TOGETHER:
        return _hand_at_once(sides, winner, share)
    forms = {"cpu": functools.partial(_scattered, sides)} if _can_scatter(sides, share) else {}
    along_axes = functools.partial(_hand_along_axes, sides)
    return by_target(winner, share, default=along_axes, **forms) if forms else along_axes(winner, share)


def _can_scatter(sides, share):
    """Whether XLA shards nothing, every winner is a cell of x, and an int32 holds the place of each."""
    sizes = [*share.shape, *(w.size for w in sides)]
    known = all(isinstance(size, int) for size in sizes)
    undilated = all(w.dilation == 1 for w in sides)
    return _target.in_one_part() and undilated and known and math.prod(sizes) < 2**31


def _scattered(sides, winner, share):
    """Each δ is added to its winner's place in x, counted in elements.

    At 8×28×28×64 on a CPU, 18×20/1 takes 0.2 ms, one axis after the other 26, and compiles in a fifth of the time.
    """
    shape = _shape_of_x(sides, share)
    first: list[Any] = [np.arange(size) for size in share.shape]  # along each axis
    for w in sides:
        first[w.axis] = np.arange(w.count) * w.stride - w.before
    # Primitives, here and below: the operators of arrays take longer to trace, and // asks for the signs.
    cell, places = winner.astype(np.int32), []
    for w in reversed(sides):
        window = lax.full_like(cell, w.window)
        places.append((w.axis, lax.rem(cell, window)))
        cell = lax.div(cell, window)
    step = [math.prod(shape[axis + 1 :]) for axis in range(share.ndim)]
    terms = [_along(n * step[axis], axis, share.shape) for axis, n in enumerate(first)]
    terms += [lax.mul(n, lax.full_like(n, step[axis])) for axis, n in places]
    place = functools.reduce(lax.add, terms)
    zeros = jnp.zeros(math.prod(shape), share.dtype)
    dimensions = lax.ScatterDimensionNumbers((), (0,), (0,))
    zeros, place, share = _checks.same_varying(zeros, place.reshape(-1, 1), share.reshape(-1))
    return lax.scatter_add(zeros, place, share, dimensions, mode="drop").reshape(shape)


def _hand_along_axes(sides, winner, share):
    """One axis after the other (P11)."""
    total = math.prod(w.window for w in sides)
    # If a program has the forward too, XLA:CPU would find the winners again for each use: 23×4/1 at 8×28×28×64 takes
    # 170 ms then, otherwise 2.
    winner = integers_once(winner, total)
    # To the row that won, and there to the column. A row wins all its windows over the same columns with the same cell
    # (P11).
    for i, w in enumerate(sides[:-1]):
        cells, none = math.prod(later.window for later in sides[i + 1 :]), None
        if cells < total:
            row, cell = winner // cells, winner % cells
            # A row that won no window has no cell: a further axis that reads its number must not find one.
            none = cells if i < len(sides) - 2 else None
        else:
            row, cell = jnp.zeros_like(winner), winner  # the dtype of a number may not hold `cells`
        winner = _hand_along(w, row, cell, functools.partial(_replaced, none=none))
        share = _hand_along(w, row, share, _added)
    return _hand_along(sides[-1], winner, share, _added)


def _hand_at_once(sides, winner, share):
    winner, share = (_with_all_margins(a, sides) for a in (winner, share))
    total_cells, shape = math.prod(w.window for w in sides), _shape_of_x(sides, share)

    def add(total, winner, share, numbers, axis):
        """Adds what these windows hand to x's cells; `numbers`, one for each axis so far, sum to that of the cell."""
        if axis == len(sides):
            wins = lax.eq(winner.astype(np.int32), functools.reduce(lax.add, numbers))
            return _added(total, wins, share)
        w, step = sides[axis], math.prod(later.window for later in sides[axis + 1 :])
        for back, cells in enumerate(w.cells_of):
            # Where a window does not cover a cell the sum is negative, and so no winner's number.
            number = _along(np.where(cells < 0, -total_cells, cells * step), w.axis, shape)
            total = add(total, upsample(winner, w, back), upsample(share, w, back), [*numbers, number], axis + 1)
        return total

    return add(None, winner, share, [], 0)


def _along(numbers, axis, shape):
    return lax.broadcast_in_dim(jnp.asarray(numbers, np.int32), shape, (axis,))


def _shape_of_x(sides, share):
    shape = list(share.shape)
    for w in sides:
        shape[w.axis] = w.size
    return tuple(shape)


def _with_all_margins(a, sides):
    # With an axis of length 1, XLA:CPU compiles a fusion that knows the zero; to a pad by itself it is an argument.
    # 2×2/(2, 1) at 8×28×28×64 compiles in 0.7 of the time.
    axes = [w._replace(axis=w.axis + 1) for w in sides]
    return lax.squeeze(with_margins(lax.expand_dims(a, (0,)), *axes), (0,))


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
