"""Max pooling with its gradient in closed form (derivation.md, P7–P11).

Forward, `first_maxima` compares the cells of a window in order: all of them at once if they are few (P7), otherwise one
axis after the other (P8). Backward, `hand_to_winners` goes through the windows that cover a cell: at once (P10), or one
axis after the other (P11). On a TPU both are XLA's operations on windows (`_xla.py`).
"""

import functools
import itertools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._target import by_target
from bnderiv._types import Padding, PerAxis
from bnderiv.pooling import _xla
from bnderiv.pooling._windows import Block, Windows, pad, take, upsample, windows, with_margins

# Cells of a window that are written out. A loop over 500 compiles in 0.15 s, and 500 written out in 5.5; but on a GPU
# every step of a loop is three kernels.
UNROLLED = 64
# Cells, or windows over a cell, for which all axes are one kernel. Above, it computes the first axis again for each
# step of the second: 5×4/1 forward at 8×28×28×64 on a CPU 1.3 ms, one axis after the other 0.5.
TOGETHER = 9
# Blocks of windows at the edges of a padded input: 3×3/2, padding 1, at 64×56×56×64 on two CPU cores 16 ms, from a
# padded copy 52. The program grows with their number.
BLOCKS = 9
# Cells from which doubling pays, where it is less work. Below, it moves more: on a GPU 20 times x for a 5×5/1 window,
# in place of 10.
DOUBLED = 16


def max_pool(
    x: jax.Array,
    window: PerAxis,
    *,
    strides: PerAxis | None = None,
    padding: Padding = "VALID",
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> jax.Array:
    """Maximum of each window of each channel: z_ij = max a_{si+dx, sj+dy}.

    Any number of spatial axes: one, two as in the formula, three or more. The gradient of a window goes to the cell
    that won it, δ_pq = Σ δ_ij over the windows (p, q) won (derivation.md, P10): among equals the first in row-major
    order, as in PyTorch and XLA; a NaN is larger than any number and the first NaN wins; padding never wins, not even a
    tie among −inf. Saved for the backward: the winner's number within its window, one byte for windows of up to 256
    cells; on a TPU `x`. (A traced program holds both until it is compiled for its target.)

    Args:
      x: floating dtype, rank of the spatial axes and two: (N, L, C), (N, H, W, C), (N, D, H, W, C), or as
        `channel_axis` and `batch_axis` say.
      window: the cells of a window along each spatial axis, or one integer for all.
      strides: steps between windows, one integer or one for each spatial axis; None means the window.
      padding: "VALID" (none), "SAME" (⌈size/stride⌉ windows, the odd cell at the end), an integer, or a pair
        (low, high) for each spatial axis; on each side smaller than the dilated window.
      dilation: steps between the cells of a window, one integer or one for each spatial axis.
      ceil_mode: True adds a last window where the strides leave a rest of the padded input, if it starts in the input
        or in the padding before it. As in PyTorch.
      channel_axis: the axis of the channels.
      batch_axis: the axis of the examples; the axes left are the spatial ones, in order.

    Returns:
      Array of x's dtype, its spatial axes replaced by the windows' ones. Where all cells of a dilated window fall on
      padding it is −inf.

    Raises:
      TypeError: `x` has no floating dtype, `ceil_mode` is no boolean, or another argument no integers.
      ValueError: `x` without a spatial axis or empty, `channel_axis` equal to `batch_axis`, an argument out of range,
        or a dilated window larger than the padded input (with `ceil_mode` by a stride or more).

    >>> x = jnp.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]).reshape(1, 2, 4, 1)
    >>> max_pool(x, 2).ravel()
    Array([6., 8.], dtype=float32)
    """
    x = _checks.float_array("x", x)
    sides = windows(x, window, strides, padding, dilation, ceil_mode, channel_axis, batch_axis)
    return _max_pool(sides, x)


@closed_form(static=1, result=lambda sides, x: x)
def _max_pool(sides, x):
    return _maxima_and_winners(sides, x)[0]


def _max_pool_fwd(sides, x):
    z, winner = _maxima_and_winners(sides, x)
    # Which of the two the backward reads is the target's choice; a compiled step drops the other.
    return z, (winner, x if _xla.can_take(sides, x.dtype) else None)


def _max_pool_bwd(sides, residuals, delta):
    share = delta.astype(accumulator(delta.dtype))
    return (_handed(sides, *residuals, share).astype(delta.dtype),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


# Which form computes it is the target's choice; the derivative is that of one form, wherever it runs.


def _maxima_and_winners(sides, x):
    """The maxima z and the winners κ. On a TPU κ is 0: the backward there does not read it."""

    def on_tpu(x):
        z = _xla.maxima(sides, x)
        return _checks.same_varying(z, jnp.zeros(z.shape, _number_dtype(sides)))

    forms = {"tpu": on_tpu} if _xla.can_take(sides, x.dtype) else {}
    z, winner = first_maxima(sides, lax.stop_gradient(x), **forms)
    return _as_selected(sides, x, z), winner


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _as_selected(sides, x, z):
    """z, which differentiates like the selection from x that it is."""
    return z


@_as_selected.defjvp
def _(sides, primals, tangents):
    x, z = primals
    winner = first_maxima(sides, lax.stop_gradient(x))[1]
    (tangent,) = jax.linear_transpose(functools.partial(hand_to_winners, sides, winner), z)(tangents[0])
    return _as_selected(sides, x, z), tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _handed(sides, winner, x, share):
    """What each of x's cells is handed by the windows it won."""
    if x is None:
        return hand_to_winners(sides, winner, share)
    return by_target(
        winner,
        x,
        share,
        tpu=lambda winner, x, share: _xla.hand_to_first_maxima(sides, x, share),
        default=lambda winner, x, share: hand_to_winners(sides, winner, share),
    )


@_handed.defjvp
def _(sides, primals, tangents):
    winner, x, _ = primals
    if x is not None:
        winner = by_target(
            winner,
            lax.stop_gradient(x),
            tpu=lambda winner, x: first_maxima(sides, x)[1],
            default=lambda winner, x: winner,
        )
    return _handed(sides, *primals), hand_to_winners(sides, winner, tangents[2])


def first_maxima(sides, x, **forms):
    """The maxima, and where each was found: the number of the cell within its window, in row-major order."""
    blocks = [b for w in sides for b in w.blocks]
    number = math.prod(len(w.blocks) for w in sides)
    if 1 < number <= BLOCKS and min(b.cells for b in blocks) > 0:
        forms["cpu"] = functools.partial(_first_maxima_in_blocks, sides)
    padded = functools.partial(_first_maxima_of_padded, sides)
    return by_target(x, default=padded, **forms) if forms else padded(x)


def _first_maxima_in_blocks(sides, x):
    """Only cells of the input are compared (P9), and nothing is padded: on a CPU a padded copy is new memory."""
    found = [_first_maxima_of(x, blocks) for blocks in itertools.product(*(w.blocks for w in sides))]
    for w in reversed(sides):  # the blocks along the last axis are next to each other
        number = len(w.blocks)
        rows = [found[i : i + number] for i in range(0, len(found), number)]
        found = [tuple(lax.concatenate(parts, w.axis) for parts in zip(*row, strict=True)) for row in rows]
    return found[0]


def _first_maxima_of_padded(sides, x):
    lowest = np.asarray(-np.inf).astype(x.dtype)
    x = pad(x, sides, -np.inf if np.isinf(lowest) else float(jnp.finfo(x.dtype).min))  # some of 8 bits have no infinity
    best, winner = _first_maxima_of(x, [Block(w, 0, 0, w.window, w.count) for w in sides])
    # Where all is −inf, the first cell that is no padding wins. No cell of the input has a smaller number (P9).
    real = [_checks.along(jnp.asarray(w.first_real, winner.dtype), w.axis, x.ndim) for w in sides]
    return best, jnp.maximum(winner, _number(sides, real))


def _number(sides, cell):
    """The number of a cell within its window, in row-major order."""
    number = cell[0]
    for w, k in zip(sides[1:], cell[1:], strict=True):
        number = number * w.window + k
    return number


def _first_maxima_of(x, blocks: Sequence[Block]):
    """The first maximum of each row of a window, then the first of those (P8)."""
    if math.prod(b.cells for b in blocks) <= TOGETHER:
        return _first_cell_by_cell(x, blocks)
    found, step = (x, jnp.zeros(x.shape, _number_dtype([b.of for b in blocks]))), 1
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
        return _checks.same_varying(x, jnp.full(x.shape, _number(sides, cell), _number_dtype(sides)))
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
    wins = (best == best) & ~(value <= best)
    return lax.max(best, value), jnp.where(wins, number, winner)  # faster than a select by `wins`, and NaN stays


def _doubling(block: Block, size):
    return block.cells > DOUBLED and block.count * block.cells > size * block.cells.bit_length()


def _number_dtype(sides):
    return np.min_scalar_type(math.prod(w.window for w in sides) - 1)


def hand_to_winners(sides, winner, share):
    """The δ of each window to the cell that won it (P10)."""
    if math.prod(len(w.cells_of) for w in sides) <= TOGETHER:
        return _hand_at_once(sides, winner, share)
    # To the row that won, and there to the column. In all the windows over the same columns that a row won, it won with
    # the same cell (P11).
    total = math.prod(w.window for w in sides)
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

    def add(total, winner, share, cell):
        """Adds what these windows hand to x's cells; `cell`: which of their cells these are, along the first axes."""
        if len(cell) < len(sides):
            w = sides[len(cell)]
            for back, k in enumerate(w.cells_of):
                total = add(total, upsample(winner, w, back), upsample(share, w, back), (*cell, k))
            return total
        cell = [_checks.along(jnp.asarray(k), w.axis, share.ndim) for k, w in zip(cell, sides, strict=True)]
        nowhere = functools.reduce(operator.or_, (k < 0 for k in cell))
        number = jnp.where(nowhere, -1, _number(sides, cell))
        return _added(total, winner.astype(number.dtype) == number, share)

    return add(None, winner, share, ())


def _hand_along(w: Windows, winner, value, combined):
    """What the windows hand along one axis, each to its winner, combined where a cell won several."""
    winner, value = with_margins(winner, w), with_margins(value, w)

    def term(before, back, cells):
        cells = _checks.along(cells, w.axis, value.ndim)
        return combined(before, upsample(winner, w, back).astype(cells.dtype) == cells, upsample(value, w, back))

    cells = jnp.asarray(w.cells_of)
    total = term(None, 0, cells[0])
    if len(cells) <= UNROLLED:
        for back in range(1, len(cells)):
            total = term(total, back, cells[back])
        return total
    rest = jnp.arange(1, len(cells)), cells[1:]
    return lax.scan(lambda total, each: (term(total, *each), None), total, rest)[0]


def _added(total, wins, share):
    share = jnp.where(wins, share, 0)
    return share if total is None else total + share


def _replaced(number, wins, other, none):
    if number is None and none is None:
        return other
    return jnp.where(wins, other, jnp.asarray(none, other.dtype) if number is None else number)
