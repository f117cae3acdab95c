"""Cases and slips of the pooling room."""

import jax.numpy as jnp
import numpy as np

import bnderiv
from tests.case import Case, spread
from tests.slip import Slip, gradients, scaled


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
    AVG_CEIL := Case(
        "avg_pool",
        "one-axis-ceil",
        _images(2, 7, 2),
        {"window": 3, "strides": 2, "padding": ((1, 0),), "ceil_mode": True},
    ),
    Case(
        "avg_pool",
        "three-axes",
        _images(1, 4, 3, 3, 2),
        {"window": (2, 2, 3), "strides": (2, 1, 1), "padding": ((1, 0), (0, 0), (1, 1)), "count_include_pad": False},
    ),
    AVG_DIVISOR := Case(
        "avg_pool", "divisor", _images(1, 3, 4, 2), {"window": 2, "ceil_mode": True, "divisor_override": 3}
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
    Case(
        "max_pool",
        "one-axis-ceil",
        _images(2, 7, 2),
        {"window": 3, "strides": 2, "padding": ((1, 0),), "ceil_mode": True},
    ),
    Case(
        "max_pool",
        "three-axes",
        _images(1, 4, 3, 4, 2),
        {"window": (2, 2, 3), "strides": (2, 1, 1), "padding": ((1, 0), (0, 0), (1, 1))},
    ),
)

# More than nine windows over a cell: a CPU scatters their gradient if there is one device, and not the suite's eight.
MAX_LARGE = Case("max_pool", "large", _images(1, 5, 6, 1), {"window": (4, 3), "strides": 1, "padding": 1})

# Ties have no derivative by finite differences: rows for the slips and for tests of their own, not for the contract.
MAX_TIES = Case("max_pool", "ties", _constant(1.0, 1, 4, 5, 2), {"window": (2, 3), "strides": 1})
MAX_NOTHING = Case(
    "max_pool", "nothing-but-minus-infinity", _constant(-np.inf, 1, 3, 3, 1), {"window": 2, "padding": 1}
)


def _assigned(right, arguments, delta):
    """Each window writes its share over what the windows before it left: = where it must be +=."""
    dx = jnp.zeros_like(arguments[0])
    for i, j in np.ndindex(delta.shape[1:3]):
        dx = dx.at[:, i : i + 3, j : j + 3].set(delta[:, i : i + 1, j : j + 1] / 9)  # windows of 3, stride 1
    return (dx,)


def _with_options(case, **others):
    """The gradient of the same layer with other options."""
    layer, options = getattr(bnderiv, case.layer), case.options | others
    return lambda right, arguments, delta: gradients(layer, arguments, delta, **options)


def _past_the_padding_counted(right, arguments, delta):
    """The last window, with two cells of three in the padded input, divided by three."""
    return gradients(bnderiv.avg_pool, arguments, delta.at[:, -1].multiply(2 / 3), **AVG_CEIL.options)


def _padding_forgotten(right, arguments, delta):
    """Every window handed back from s i, not from s i − t, with t = 1: the gradient comes out shifted."""
    return (jnp.pad(right[0], [(0, 0), (1, 0), (1, 0), (0, 0)])[:, :-1, :-1],)


def _last_tie(right, arguments, delta):
    """The last of equals for the first: in an image turned by 180° it is the first."""
    (x,) = arguments
    (turned,) = gradients(bnderiv.max_pool, (x[:, ::-1, ::-1],), delta[:, ::-1, ::-1], **MAX_TIES.options)
    return (turned[:, ::-1, ::-1],)


def _every_tie(right, arguments, delta):
    """The gradient to each of the equals; where all are equal, to every cell of the window's six."""
    return gradients(bnderiv.avg_pool, arguments, 6 * delta, **MAX_TIES.options)


def _padding_wins(right, arguments, delta):
    """Padding of −inf among cells of −inf takes the tie, as it comes first, and the gradient is lost."""
    return gradients(lambda x: jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])[:, :-1:2, :-1:2], arguments, delta)


def _column_major(right, arguments, delta):
    """The winner's number read column by column."""
    s = bnderiv.steps.max_pool(*arguments, dy=delta, **MAX_WIDE.options)
    (m, n), ((top, _), (left, _)) = s.window, s.padding
    # The windows tile the padded input, from its first cell on.
    wrong, delta = (a.repeat(m, 1).repeat(n, 2) for a in (s.winner % m * n + s.winner // m, delta))
    _, rows, columns, _ = wrong.shape
    number = np.arange(rows)[:, None] % m * n + np.arange(columns) % n
    dx = jnp.where(wrong == number[None, :, :, None], delta, 0)[:, top:, left:]
    return (jnp.pad(dx, [(0, size - reached) for size, reached in zip(s.x.shape, dx.shape, strict=True)]),)


SLIPS = (
    Slip("assigns-on-overlap", AVG_OVERLAP, _assigned),
    Slip("not-divided-by-the-window", AVG, scaled(4)),
    Slip("real-cells-counted", AVG_PADDED, _with_options(AVG_PADDED, count_include_pad=False)),
    Slip("padding-counted", AVG_REAL, _with_options(AVG_REAL, count_include_pad=True)),
    Slip("cells-past-the-padding-counted", AVG_CEIL, _past_the_padding_counted),
    Slip("divisor-ignored", AVG_DIVISOR, _with_options(AVG_DIVISOR, divisor_override=None)),
    Slip("padding-forgotten", AVG_PADDED, _with_options(AVG_PADDED, padding=((0, 2), (0, 2)))),
    Slip("last-tie", MAX_TIES, _last_tie),
    Slip("every-tie", MAX_TIES, _every_tie),
    Slip("padding-wins", MAX_NOTHING, _padding_wins),
    Slip("padding-forgotten", MAX_PADDED, _padding_forgotten),
    Slip("column-major", MAX_WIDE, _column_major),
)
