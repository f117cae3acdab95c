"""Average pooling with its gradient in closed form (derivation.md, P1–P6).

On a CPU, small overlapping windows are summed cell by cell, others along one axis after the other (P2). Backward
likewise: (P4), or (P5) and (P6) along each axis. Elsewhere both are XLA's operations on windows (`_xla.py`).
"""

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv import _checks, _target
from bnderiv._cpu import quotient
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._target import apart, by_target
from bnderiv._types import Padding, PerAxis
from bnderiv.pooling import _xla
from bnderiv.pooling._moves import collect, dilate, pad, place, take, upsample, with_margins
from bnderiv.pooling._windows import Sides, Windows, windows

# Measured on a CPU at 8×28×28×64, if nothing else is said. m×n/s: windows of m×n cells, s apart; m/s along one axis.

# XLA's sum along one axis is one kernel. It compiles in half the time of two sums of half the length, and runs as fast
# up to 40 cells; of 64 cells it takes twice the time, of 100 cells 30 times.
SUMMED = 32
# Slices added up in one kernel with the division: 3×4/1 0.3 ms, by XLA's sums along both axes 0.4.
SLICED = 8
# With a stride, cells of a window up to which (P5) is one sum of XLA: 5/2 compiles in 35 ms, by (P6) in 120. This sum
# also runs over the zeros between the shares: 18/5 takes 5.9 ms, by (P6) 0.2. Along the innermost axis it is slow even
# for 3/2: 3×3/2 at 16×64×56×56, channels first, takes 13 ms, with (P6) there 5.
SUMMED_OVER_ZEROS = 8
# Terms of (P6) in one kernel: 13×1/13 0.06 ms, by (P5) 3.8.
UPSAMPLED = 8
# Cells up to which each is taken by itself: 3×3/2 forward 0.04 ms, by sums along the axes 0.13.
CELL_BY_CELL = 9


def avg_pool(
    x: jax.Array,
    window: PerAxis,
    *,
    strides: PerAxis | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    ceil_mode: bool = False,
    divisor_override: int | None = None,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> jax.Array:
    """Mean over each window of each channel: z_ij = 1/(mn) Σ_xy a_{s·i+x, s·j+y}.

    Any number of spatial axes: one, two as in the formula, three or more. The gradient gives every cell its share of
    each window that covers it, ∂J/∂a_pq = 1/(mn) Σ δ_ij (derivation.md, P4). Half precision is accumulated in float32.
    Nothing is saved for the backward.

    Args:
      x: floating dtype, rank of the spatial axes and two: (N, L, C), (N, H, W, C), (N, D, H, W, C), or as
        `channel_axis` and `batch_axis` say.
      window: the cells of a window along each spatial axis, or one integer for all.
      strides: steps between windows, one integer or one for each spatial axis; None means the window.
      padding: "VALID" (none), "SAME" (⌈size/stride⌉ windows, the odd cell at the end), an integer, or a pair
        (low, high) for each spatial axis; on each side smaller than the window.
      count_include_pad: True divides by mn, the padding counting as zeros; False by the number of real cells.
      ceil_mode: True adds a last window where the strides leave a rest of the padded input, if it starts in the input
        or in the padding before it. Its cells past the padding never count. As in PyTorch.
      divisor_override: a positive integer to divide by in place of all that, as in PyTorch.
      channel_axis: the axis of the channels.
      batch_axis: the axis of the examples; the axes left are the spatial ones, in order.

    Returns:
      Array of x's dtype, its spatial axes replaced by the windows' ones.

    Raises:
      TypeError: `x` has no floating dtype, `count_include_pad` or `ceil_mode` is no boolean, or another argument no
        integers.
      ValueError: `x` without a spatial axis or empty, `channel_axis` equal to `batch_axis`, an argument out of range,
        or a window larger than the padded input (with `ceil_mode` by a stride or more).

    >>> x = jnp.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]).reshape(1, 2, 4, 1)
    >>> avg_pool(x, 2).ravel()
    Array([3.5, 5.5], dtype=float32)
    """
    x = _checks.float_array("x", x)
    _checks.boolean("count_include_pad", count_include_pad)
    if divisor_override is not None:
        divisor_override = _checks.integer("divisor_override", divisor_override, at_least=1)
    sides = windows(x, window, strides, padding, 1, ceil_mode, channel_axis, batch_axis)
    return _avg_pool(sides, count_include_pad, divisor_override, x)


@closed_form(static=3, result=lambda sides, count_include_pad, divisor_override, x: x)
def _avg_pool(sides, count_include_pad, divisor_override, x):
    total = by_target(
        x.astype(accumulator(x.dtype)),
        cpu=functools.partial(_sums, sides),
        default=functools.partial(_xla.sums, sides),
    )
    return (total / _divisor(sides, count_include_pad, divisor_override, total)).astype(x.dtype)  # (P1)


def _sums(sides, x):
    if any(w.stride < w.window for w in sides):
        x = apart(x)  # XLA:CPU would recompute x for each cell: 1×3/1 of a tanh takes 5.5 ms then, otherwise 0.4
    if cells := _few_overlapping(sides):
        return _sum([collect(x, sides, cell) for cell in cells])
    for w in sides:  # over one axis, then over the next (P2)
        x = _sums_along(x, w, last=w is sides[-1])
    return x


def _avg_pool_fwd(sides, count_include_pad, divisor_override, x):
    return _avg_pool.body(sides, count_include_pad, divisor_override, x), None


def _avg_pool_bwd(sides, count_include_pad, divisor_override, _, delta):
    wide = delta.astype(accumulator(delta.dtype))
    n = _divisor(sides, count_include_pad, divisor_override, wide)
    dx = by_target(
        wide,
        cpu=lambda delta: _hand_to_cells(sides, n, delta),
        default=lambda delta: _xla.hand_to_cells(sides, delta / n),
    )
    return (dx.astype(delta.dtype),)


def _hand_to_cells(sides, n, delta):
    if cells := _few_overlapping(sides):  # (P4): the sum over the windows that cover a cell
        return _placed(sides, n, delta, cells)
    share = delta / n
    for w in sides:  # the same, one axis at a time
        terms = len(w.cells_of)
        most = SUMMED if w.stride == 1 else SUMMED_OVER_ZEROS if w.axis < share.ndim - 1 else 0
        if terms > 1 and w.window <= most:  # (P5)
            share = _xla.hand_to_cells((w,), share)
        elif terms == 1 or (w.stride > 1 and terms <= UPSAMPLED):  # (P6)
            share = with_margins(share, w)
            share = _sum([_where_covered(cell, upsample(share, w, back), w) for back, cell in enumerate(w.cells_of)])
        else:  # (P5) with the zeros in memory: XLA would make them a part of its sum
            dense = Windows(w.axis, w.size + w.reach - 1, w.window, 1, 1, 0, 0)
            share = _sums_along(apart(dilate(share, w)), dense)
    return share


def _placed(sides, n, delta, cells):
    """The sum of what the windows hand to each of these cells."""
    moving = [i for i, w in enumerate(sides) if (w.window, w.stride) != (1, 1)]
    w = sides[moving[0]]
    if len(moving) > 1 or w.stride > 1 or not _target.in_one_part():  # a sharded axis must not be flattened
        share = quotient(delta, n)
        return _sum([place(share, sides, cell) for cell in cells])
    # The axis and those within it are one line: 1×3/1 at 8×28×28×64 on a CPU 0.07 ms, otherwise 0.29.
    share = apart(delta) / n
    inside = math.prod(share.shape[w.axis + 1 :])
    line = w._replace(
        size=w.size * inside, dilation=w.dilation * inside, before=w.before * inside, after=w.after * inside
    )
    lines = lax.collapse(share, w.axis)
    dx = _sum([place(lines, (line,), (cell[moving[0]],)) for cell in cells])
    return dx.reshape(*share.shape[: w.axis], w.size, *share.shape[w.axis + 1 :])


def _few_overlapping(sides: Sides) -> list[tuple[int, ...]]:
    """The cells of a window, if a CPU is fastest taking each by itself (`collect`, `place`); otherwise none.

    It is fastest for small overlapping windows, unless the innermost axis is strided: then neighbors in memory are no
    neighbors in the windows. Cells that every window has in the padding are left out.
    """
    innermost = max(sides, key=lambda w: w.axis)
    overlap = math.prod(len(w.cells_of) for w in sides) > 1
    strided = innermost.axis == len(sides) + 1 and innermost.stride > 1  # the last of spatial axes, batch and channels
    if math.prod(w.window for w in sides) > CELL_BY_CELL or not overlap or strided:
        return []
    cells = itertools.product(*(range(w.window) for w in sides))
    return [cell for cell in cells if all(k in w.cells_of for k, w in zip(cell, sides, strict=True))]


def _sum(terms):
    return functools.reduce(operator.add, terms)


def _where_covered(cell, share, w):
    covered = cell >= 0
    return share if covered.all() else jnp.where(_checks.along(jnp.asarray(covered), w.axis, share.ndim), share, 0)


_avg_pool.defvjp(_avg_pool_fwd, _avg_pool_bwd)


def _sums_along(x, w: Windows, last=False):
    """The sums of the windows along one axis, the `last` or another."""
    if w.window == w.stride == 1:
        return x
    if w.window <= SLICED and w.padded == w.size and (last or w.stride > 1):
        return _sum([take(x, w, k, w.stride, w.count) for k in range(w.window)])
    if w.window <= SUMMED:
        return _xla.sums((w,), x)
    x, w = pad(x, (w,), 0), w._replace(size=w.padded, before=0, after=0)
    # A long window is two of half the length: log(cells) additions, and as few roundings.
    half = w.window // 2
    step = half if w.count == 1 else math.gcd(half, w.stride)
    halves = _sums_along(x, w._replace(window=half, stride=step))
    first, second = (take(halves, w, k, max(w.stride // step, 1), w.count) for k in (0, half // step))
    rest = [take(x, w, w.window - 1, w.stride, w.count)] if w.window % 2 else []
    return _sum([first, second, *rest])


def _divisor(sides, count_include_pad, divisor_override, like):
    """mn, or the number of cells that count in each window (P3)."""
    if divisor_override is not None:
        return divisor_override
    if count_include_pad and not any(w.beyond for w in sides):
        return math.prod(w.window for w in sides)
    counts = [_checks.along(jnp.asarray(w.counted(count_include_pad), like.dtype), w.axis, like.ndim) for w in sides]
    return functools.reduce(operator.mul, counts)
