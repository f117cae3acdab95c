"""Cases and slips of the pooling room."""

import jax.numpy as jnp
import numpy as np

from bnderiv.pooling import avg_pool, max_pool
from tests.case import Case, spread
from tests.slip import Slip, scaled


def _images(*shape):
    return lambda rng: (spread(rng, shape),)


def _constant(value, *shape):
    return lambda rng: (np.full(shape, value),)


CASES = (
    AVG := Case("avg_pool", "tiles", _images(2, 4, 6, 2), {"window": 2}),
    AVG_OVERLAP := Case("avg_pool", "overlap", _images(2, 4, 5, 2), {"window": 3, "strides": 1}),
    AVG_PADDED := Case("avg_pool", "overlap-padded", _images(1, 5, 6, 2), {"window": 3, "strides": 2, "padding": 1}),
    AVG_REAL := Case(
        "avg_pool",
        "real-cells-alone",
        _images(1, 5, 4, 2),
        {"window": (3, 2), "strides": (2, 1), "padding": ((1, 2), (0, 1)), "count_include_pad": False},
    ),
    Case("avg_pool", "tiles-padded-remainder", _images(1, 6, 6, 2), {"window": (2, 3), "padding": ((1, 0), (2, 0))}),
    Case("avg_pool", "gaps", _images(1, 6, 7, 1), {"window": 2, "strides": (3, 4)}),
    Case(
        "avg_pool",
        "same-channels-first",
        _images(1, 2, 5, 4),
        {"window": (2, 3), "strides": 2, "padding": "SAME", "count_include_pad": False, "channel_axis": 1},
    ),
    Case(
        "avg_pool",
        "batch-last",
        _images(4, 2, 5, 3),
        {"window": (2, 3), "strides": (2, 1), "channel_axis": 1, "batch_axis": -1},
    ),
    Case(
        "avg_pool",
        "long-window",
        _images(1, 13, 6, 1),
        {"window": (11, 2), "strides": (2, 1), "padding": ((3, 2), (1, 0))},
    ),
    MAX := Case("max_pool", "tiles", _images(2, 4, 6, 2), {"window": 2}),
    MAX_OVERLAP := Case("max_pool", "overlap", _images(2, 4, 5, 2), {"window": (3, 2), "strides": 1}),
    MAX_PADDED := Case("max_pool", "overlap-padded", _images(1, 5, 6, 2), {"window": 3, "strides": 2, "padding": 1}),
    Case(
        "max_pool",
        "dilated",
        _images(1, 6, 7, 2),
        {"window": (2, 3), "strides": (1, 2), "padding": ((1, 2), (0, 3)), "dilation": (3, 2)},
    ),
    MAX_WIDE := Case(
        "max_pool", "tiles-padded-remainder", _images(1, 6, 6, 2), {"window": (2, 3), "padding": ((1, 0), (2, 0))}
    ),
    Case("max_pool", "gaps", _images(1, 6, 7, 1), {"window": 2, "strides": (3, 4)}),
    Case(
        "max_pool",
        "same-channels-first",
        _images(1, 2, 5, 4),
        {"window": (2, 3), "strides": 2, "padding": "SAME", "channel_axis": 1},
    ),
    Case(
        "max_pool",
        "batch-last",
        _images(4, 2, 5, 3),
        {"window": (2, 3), "strides": (2, 1), "channel_axis": 1, "batch_axis": -1},
    ),
    Case("max_pool", "many-cells", _images(1, 10, 8, 1), {"window": (9, 8), "strides": 1, "padding": ((2, 0), (0, 1))}),
)

# Ties have no derivative by finite differences: rows for the slips and for tests of their own, not for the contract.
MAX_TIES = Case("max_pool", "ties", _constant(1.0, 1, 4, 5, 2), {"window": (2, 3), "strides": 1})
MAX_NOTHING = Case(
    "max_pool", "nothing-but-minus-infinity", _constant(-np.inf, 1, 3, 3, 1), {"window": 2, "padding": 1}
)


def _assigned(bwd):
    """Each window writes its share over what the windows before it left: = where it must be +=."""

    def broken(both, count_include_pad, _, delta):
        rows, columns = both
        dx = jnp.zeros((delta.shape[0], rows.size, columns.size, delta.shape[3]), delta.dtype)
        for i in range(rows.count):
            for j in range(columns.count):
                window = np.s_[
                    :,
                    i * rows.stride : i * rows.stride + rows.window,
                    j * columns.stride : j * columns.stride + columns.window,
                ]
                dx = dx.at[window].set(delta[:, i : i + 1, j : j + 1] / (rows.window * columns.window))
        return (dx,)

    return broken


def _other_count(bwd):
    """The real cells counted where the padding must be too, or the other way round."""
    return lambda both, count_include_pad, _, delta: bwd(both, not count_include_pad, _, delta)


def _padding_forgotten(bwd):
    """The windows put as if the input had all its padding at the end: the gradient comes out shifted."""

    def broken(both, *rest):
        return bwd(tuple(w._replace(before=0, after=w.before + w.after) for w in both), *rest)

    return broken


def _with_winner(bwd, other):
    """Another winner for the one that was found."""
    return lambda both, residuals, delta: bwd(both, (other(both, residuals[0]), *residuals[1:]), delta)


def _last_tie(bwd):
    """The last of equals for the first; where all are equal, the last cell for the first."""
    return _with_winner(bwd, lambda both, winner: both[0].window * both[1].window - 1 - winner)


def _every_tie(bwd):
    """The gradient to each of the equals; where all are equal, to every cell."""

    def broken(both, residuals, delta):
        cells = range(both[0].window * both[1].window)
        return (sum(_with_winner(bwd, lambda _, w, k=k: w * 0 + k)(both, residuals, delta)[0] for k in cells),)

    return broken


def _padding_wins(bwd):
    """Padding of −inf among cells of −inf takes the tie, as it comes first, and the gradient is lost."""
    return _with_winner(bwd, lambda both, winner: winner * 0)


def _column_major(bwd):
    """The winner's number read column by column."""

    return _with_winner(bwd, lambda both, winner: winner % both[0].window * both[1].window + winner // both[0].window)


SLIPS = (
    Slip("assigns-on-overlap", AVG_OVERLAP, avg_pool._avg_pool, _assigned),
    Slip("not-divided-by-the-window", AVG, avg_pool._avg_pool, scaled(4)),
    Slip("real-cells-counted", AVG_PADDED, avg_pool._avg_pool, _other_count),
    Slip("padding-counted", AVG_REAL, avg_pool._avg_pool, _other_count),
    Slip("padding-forgotten", AVG_PADDED, avg_pool._avg_pool, _padding_forgotten),
    Slip("last-tie", MAX_TIES, max_pool._max_pool, _last_tie),
    Slip("every-tie", MAX_TIES, max_pool._max_pool, _every_tie),
    Slip("padding-wins", MAX_NOTHING, max_pool._max_pool, _padding_wins),
    Slip("padding-forgotten", MAX_PADDED, max_pool._max_pool, _padding_forgotten),
    Slip("column-major", MAX_WIDE, max_pool._max_pool, _column_major),
)
