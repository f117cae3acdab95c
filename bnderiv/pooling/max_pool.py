"""Max pooling with its gradient in closed form (derivation.md, P7–P10)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv.pooling._windows import pad, spread, take, windows, with_margins


def max_pool(
    x: jax.Array,
    window: Any,
    *,
    strides: Any = None,
    padding: Any = "VALID",
    dilation: Any = 1,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> jax.Array:
    """Maximum of each window of each channel: z_ij = max a_{si+dx, sj+dy}.

    The gradient of a window goes to the cell that won it, δ_pq = Σ δ_ij over the windows (p, q) won (derivation.md,
    P10): among equals the first in row-major order, as in PyTorch and XLA; a NaN is larger than any number and the
    first NaN wins; padding never wins, not even a tie among −inf. Saved for the backward: the winner's number within
    its window, one byte for windows of up to 256 cells.

    Args:
      x: images, rank 4, floating dtype: (N, H, W, C), or as `channel_axis` and `batch_axis` say.
      window: (m, n), rows and columns of a window, or one integer for both.
      strides: steps between windows, an integer or a pair; None means the window.
      padding: "VALID" (none), "SAME" (⌈size/stride⌉ windows, the odd cell at the bottom and right), an integer, or
        ((top, bottom), (left, right)); on each side smaller than the dilated window.
      dilation: steps between the cells of a window, an integer or a pair.
      channel_axis: the axis of the channels.
      batch_axis: the axis of the examples; the two axes left are rows and columns, in order.

    Returns:
      Array of x's dtype, its rows and columns replaced by the windows' ones. Where all cells of a dilated window fall
      on padding it is −inf.

    Raises:
      TypeError: `x` has no floating dtype, or another argument no integers.
      ValueError: `x` of another rank or empty, `channel_axis` equal to `batch_axis`, an argument out of range, or a
        dilated window larger than the padded input.
    """
    x = _checks.float_array("x", x)
    both = windows(x, window, strides, padding, dilation, channel_axis, batch_axis)
    return _max_pool(both, x)


@closed_form(static=1, result=lambda both, x: x)
def _max_pool(both, x):
    return _max_pool_fwd(both, x)[0]


def _max_pool_fwd(both, x):
    """The maxima, and where each was found: row·n + column within the window of m rows and n columns."""
    rows, columns = both
    lowest = np.asarray(-np.inf).astype(x.dtype)
    x = pad(x, both, -np.inf if np.isinf(lowest) else float(jnp.finfo(x.dtype).min))  # some of 8 bits have no infinity
    winner = jnp.zeros(x.shape, np.min_scalar_type(rows.window * columns.window - 1))
    # The first maximum of each row of a window, then the first of those (P8).
    return _first_maxima(*_first_maxima(x, winner, columns, 1), rows, columns.window)


def _first_maxima(x, winners, w, step):
    """The first maximum of each window along one axis; its place grows by `step` with each cell."""

    def cell(k):
        value, its_place = (take(a, w, k * w.dilation, w.stride, w.count) for a in (x, winners))
        return value, its_place + (k * step if isinstance(k, int) else (k * step).astype(its_place.dtype))

    best, winner = cell(0)
    # Padding never wins: where all is −inf, the first cell that is not padding does (P9).
    first_real = np.maximum(0, -((np.arange(w.count) * w.stride - w.before) // w.dilation))
    first_real = np.where(first_real < w.window, first_real, 0)  # in a window of padding alone nothing is won
    if first_real.any():
        winner += _checks.along(jnp.asarray(first_real * step, winner.dtype), w.axis, x.ndim)

    def later(k, found):
        (best, winner), (candidate, its_place) = found, cell(k)
        wins = (best == best) & ~(candidate <= best)  # larger, or NaN where there was none (P7)
        return jnp.where(wins, candidate, best), jnp.where(wins, its_place, winner)

    if w.window <= 64:
        for k in range(1, w.window):
            best, winner = later(k, (best, winner))
    else:  # a loop keeps the program, and the time it takes to compile, small
        best, winner = lax.fori_loop(1, w.window, later, _checks.same_varying(best, winner))
    return best, winner


def _max_pool_bwd(both, winner, delta):
    rows, columns = both
    share = delta.astype(accumulator(delta.dtype))
    row_cells, column_cells = (jnp.asarray(w.cells_of) for w in both)
    for w in both:
        winner, share = with_margins(winner, w), with_margins(share, w)

    def won(back, row_cell):  # (P10): the terms of those windows that are the last but `back` over the rows
        by, term = (spread(a, rows, back) for a in (winner, share))
        terms = []
        for column_back, column_cell in enumerate(column_cells):
            row, column = _checks.along(row_cell, rows.axis, 4), _checks.along(column_cell, columns.axis, 4)
            cell = jnp.where((row < 0) | (column < 0), -1, row * columns.window + column)
            wins = spread(by, columns, column_back).astype(cell.dtype) == cell
            terms.append(jnp.where(wins, spread(term, columns, column_back), 0))
        return sum(terms[1:], terms[0])

    total = won(0, row_cells[0])
    if len(row_cells) * len(column_cells) <= 64:
        for back in range(1, len(row_cells)):
            total = total + won(back, row_cells[back])
    else:  # a loop keeps the program, and the time it takes to compile, small
        rest = jnp.arange(1, len(row_cells)), row_cells[1:]
        total, _ = lax.scan(lambda t, each: (t + won(*each), None), total, rest)
    return (total.astype(delta.dtype),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
