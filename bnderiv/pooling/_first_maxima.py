"""The maximum of each window, and which of its cells is the first to have it (derivation.md, P7–P9).

The cells of a window are compared in order, each with the best before it (`_first_of`): all of them at once if they are
few (P7), otherwise one axis after the other (P8).
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv import _checks
from bnderiv._target import by_target
from bnderiv.pooling import _xla
from bnderiv.pooling._moves import pad, take
from bnderiv.pooling._windows import TOGETHER, UNROLLED, Block

# Blocks of windows at the edges of a padded input: 3×3/2, padding 1, at 64×56×56×64 on two CPU cores 16 ms, from a
# padded copy 52. The program grows with their number.
BLOCKS = 9
# Cells from which doubling pays, where it is less work. Below, it moves more: on a GPU 20 times x for a 5×5/1 window,
# in place of 10.
DOUBLED = 16


def first_maxima(sides, x, **forms):
    """The maxima, and where each was found: the number of the cell within its window, in row-major order."""
    blocks = [b for w in sides for b in w.blocks]
    number = math.prod(len(w.blocks) for w in sides)
    if math.prod(w.window for w in sides) > TOGETHER and all(w.dilation == 1 for w in sides):
        forms["cpu"] = functools.partial(_first_maxima_by_xla, sides)
    elif 1 < number <= BLOCKS and min(b.cells for b in blocks) > 0:
        forms["cpu"] = functools.partial(_first_maxima_in_blocks, sides)
    padded = functools.partial(_first_maxima_of_padded, sides)
    return by_target(x, default=padded, **forms) if forms else padded(x)


def _first_maxima_by_xla(sides, x):
    """One axis after the other (P8). A cell goes with its place in x, counted in cells of a window.

    On a CPU this is a kernel for each axis, with its padding: 18×15/1 "SAME" compiles in a third of the time.
    """
    dtype, lowest = number_dtype(sides), _lowest(x.dtype)

    def along_axes(places):
        return [_checks.along(jnp.asarray(p.astype(dtype)), w.axis, x.ndim) for w, p in zip(sides, places, strict=True)]

    # A place may exceed the dtype. Its distance to the window's first cell does not, and integers wrap.
    place = number_in_window(sides, along_axes([np.arange(w.size) for w in sides]))
    start = number_in_window(sides, along_axes([np.arange(w.count) * w.stride - w.before for w in sides]))
    found = _checks.same_varying(x, jnp.broadcast_to(place, x.shape))
    for w in reversed(sides):
        found = _xla.reduced(_first_of, found, (lowest, np.zeros((), dtype)), w)
    best, place = found
    # Where all is −inf, nothing wins over the padding: the first cell that is none (P9).
    real = number_in_window(sides, along_axes([w.first_real for w in sides]))
    return best, jnp.where(best == lowest, real, place - start)


def _first_maxima_in_blocks(sides, x):
    """Only cells of the input are compared (P9), and nothing is padded: on a CPU a padded copy is new memory."""
    found = [_first_maxima_of(x, blocks) for blocks in itertools.product(*(w.blocks for w in sides))]
    for w in reversed(sides):  # the blocks along the last axis are next to each other
        number = len(w.blocks)
        rows = [found[i : i + number] for i in range(0, len(found), number)]
        found = [tuple(lax.concatenate(parts, w.axis) for parts in zip(*row, strict=True)) for row in rows]
    return found[0]


def _first_maxima_of_padded(sides, x):
    x = pad(x, sides, float(_lowest(x.dtype)))
    best, winner = _first_maxima_of(x, [Block(w, 0, 0, w.window, w.count) for w in sides])
    # Where all is −inf, the first cell that is no padding wins. No cell of the input has a smaller number (P9).
    real = [_checks.along(jnp.asarray(w.first_real, winner.dtype), w.axis, x.ndim) for w in sides]
    return best, jnp.maximum(winner, number_in_window(sides, real))


def number_in_window(sides, cell):
    """The number of a cell within its window, in row-major order."""
    number = cell[0]
    for w, k in zip(sides[1:], cell[1:], strict=True):
        number = number * w.window + k
    return number


def _first_maxima_of(x, blocks: Sequence[Block]):
    """The first maximum of each row of a window, then the first of those (P8)."""
    if math.prod(b.cells for b in blocks) <= TOGETHER:
        return _first_cell_by_cell(x, blocks)
    found, step = (x, jnp.zeros(x.shape, number_dtype([b.of for b in blocks]))), 1
    for i, block in enumerate(reversed(blocks)):
        if i > 0:
            found = lax.optimization_barrier(found)
        found = _first_along(found, block, step)
        step *= block.of.window
    return found


def _first_cell_by_cell(x, blocks: Sequence[Block], cell=()):
    """The same for few cells, each taken from x: a GPU would materialize the rows' maxima, which windows share."""
    if len(cell) == len(blocks):
        sides = [b.of for b in blocks]
        return _checks.same_varying(x, jnp.full(x.shape, number_in_window(sides, cell), number_dtype(sides)))
    block = blocks[len(cell)]
    start, *places = block.place
    found = [
        _first_cell_by_cell(take(x, block.of, start + k * block.of.dilation, *places), blocks, (*cell, block.first + k))
        for k in range(block.cells)
    ]
    return functools.reduce(_first_of, found)


def _first_along(found, block: Block, step):
    """The first maximum of each window along one axis; its number grows by `step` with each cell."""
    w = block.of

    def cell(k, found, start, stride, count, first):
        value, number = (take(a, w, start + k * w.dilation, stride, count) for a in found)
        number_of = (first + k) * step
        return value, number + (number_of if isinstance(k, int) else number_of.astype(number.dtype))

    size, length = found[0].shape[w.axis], 1
    if _doubling(block, size):
        # A run of 2l cells is two runs of l, and a window is two runs that may overlap: log(cells) steps.
        while 2 * length <= block.cells:
            size -= length * w.dilation
            found = _first_of(*(cell(k, found, 0, 1, size, 0) for k in (0, length)))
            length *= 2
        return _first_of(*(cell(k, found, *block.place, block.first) for k in (0, block.cells - length)))

    def later(k, best):
        return _first_of(best, cell(k, found, *block.place, block.first))

    best = cell(0, found, *block.place, block.first)
    if block.cells <= UNROLLED:
        return functools.reduce(lambda best, k: later(k, best), range(1, block.cells), best)
    return lax.fori_loop(1, block.cells, later, _checks.same_varying(*best))


def _first_of(found, candidate):
    """The larger of two and its number: the first of equals, NaN above all (P7)."""
    (best, winner), (value, number) = found, candidate
    # Primitives, as a large window has many of them: JAX takes longer to trace the operators of arrays.
    wins = lax.bitwise_and(lax.eq(best, best), lax.bitwise_not(lax.le(value, best)))
    return lax.max(best, value), lax.select(wins, number, winner)  # faster than a select by `wins`, and NaN stays


def _doubling(block: Block, size):
    return block.cells > DOUBLED and block.count * block.cells > size * block.cells.bit_length()


def _lowest(dtype):
    lowest = np.asarray(-np.inf).astype(dtype)
    return lowest if np.isinf(lowest) else np.asarray(jnp.finfo(dtype).min, dtype)  # some of 8 bits have no infinity


def number_dtype(sides):
    return np.min_scalar_type(math.prod(w.window for w in sides) - 1)
