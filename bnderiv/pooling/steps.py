"""The pools, step by step (derivation.md, P1–P10), one cell of the window after the other.

Forward, cell (x, y) of all windows is one strided slice of the padded input. Backward, it is one slice of δ, dilated by
the stride and padded (P5).
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv import _checks
from bnderiv._checks import Padding, Pair
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather

# The arguments of both pools.
Input = Annotated[jax.Array, "a", "(B, M, N, C)", INPUT, "activations of the layer before"]
FromAbove = Annotated[jax.Array, "δ = ∂J/∂z", "as z", INPUT, "gradient from above"]
Window = Annotated[Pair, "rows and columns of a window"]
Strides = Annotated[Pair, "from window to window, rows and columns"]
Padded = Annotated[Padding, "cells added at the top and bottom, left and right"]
ChannelAxis = Annotated[int, "where the channels are"]
BatchAxis = Annotated[int, "where the examples are"]


@derivation
class AvgPool(NamedTuple):
    """The steps of `avg_pool`."""

    x: Input
    dy: FromAbove
    window: Window
    strides: Strides
    padding: Padded
    count_include_pad: Annotated[bool, "whether the divisor counts padding"]
    channel_axis: ChannelAxis
    batch_axis: BatchAxis
    x_padded: Annotated[jax.Array, "a with t, t' zeros", "as x, larger", "(P1)", "padded input"]
    count: Annotated[jax.Array, "c_ij", "as z", "(P3)", "divisor of each window"]
    total: Annotated[jax.Array, "Σ_xy a_(si+x−t, sj+y−t)", "as z", "(P1)", "sum of each window"]
    z: Annotated[jax.Array, "z_ij", "(B, M', N', C)", "(P1)", "output"]
    share: Annotated[jax.Array, "δ_ij / c_ij", "as z", "(P4)", "gradient that each window gives each of its cells"]
    share_dilated: Annotated[
        jax.Array, "D", "as x, larger", "(P5)", "shares dilated by the stride, with a margin of zeros"
    ]
    dx: Annotated[jax.Array, "δ_pq = Σ D", "as x", "(P4), (P5)", "every cell adds up its shares"]


@derivation
class MaxPool(NamedTuple):
    """The steps of `max_pool`."""

    x: Input
    dy: FromAbove
    window: Window
    strides: Strides
    padding: Padded
    dilation: Annotated[Pair, "from cell to cell of a window"]
    channel_axis: ChannelAxis
    batch_axis: BatchAxis
    x_padded: Annotated[jax.Array, "a with −∞ around", "as x, larger", "(P9)", "padded input"]
    winner: Annotated[jax.Array, "κ_ij", "as z, integers", "(P7)", "number of the cell that won; −1 if all are padding"]
    z: Annotated[jax.Array, "z_ij", "(B, M', N', C)", "(P7)", "output, value of the winner"]
    winner_dilated: Annotated[
        jax.Array, "κ, dilated", "as x, larger", "(P5)", "winners dilated by the stride, −1 between them"
    ]
    delta_dilated: Annotated[jax.Array, "D", "as x, larger", "(P5)", "δ dilated by the stride, with a margin of zeros"]
    dx: Annotated[jax.Array, "δ_pq", "as x", "(P10)", "every cell adds up the δ of the windows it won"]


def avg_pool(
    x: Any,
    window: Any,
    dy: Any,
    *,
    strides: Any = None,
    padding: Any = "VALID",
    count_include_pad: bool = True,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> AvgPool:
    """The mean of each window and its gradient.

    Args:
      x: a, rank 4, floating dtype (half precision is computed in float32); (B, M, N, C) unless the axes say otherwise.
      window: (m, n), or one integer for both.
      dy: δ = ∂J/∂z, shape of the output.
      strides, padding, count_include_pad, channel_axis, batch_axis: as in `bnderiv.avg_pool`.

    Returns:
      `AvgPool`.

    Raises:
      TypeError: an argument without floating dtype, or an option that is no integer.
      ValueError: shapes or options that do not fit.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.avg_pool(jnp.ones((1, 1, 4, 1)), (1, 2), jnp.array([2.0, 4.0]).reshape(1, 1, 2, 1))
      >>> s.share.ravel().tolist(), s.dx.ravel().tolist()
      ([1.0, 2.0], [1.0, 1.0, 2.0, 2.0])
    """
    x, dy = arrays(x=x, dy=dy)
    w = windows_of(x, window, strides, padding, 1, channel_axis, batch_axis)
    window, strides, padding = w.window, w.strides, w.padding
    x_padded = w.pad(x, 0)
    total = _sum(w.cells(x_padded))
    real = _sum(w.cells(w.pad(jnp.ones_like(x), 0)))  # (P3)
    count = jnp.full_like(total, math.prod(window)) if count_include_pad else real
    z = total / count  # (P1)

    dy = cotangent(dy, z)
    share = dy / count
    share_dilated = w.dilated(share, 0)
    dx = _sum(w.covering(share_dilated))  # (P4), (P5)
    return gather(AvgPool, locals())


def max_pool(
    x: Any,
    window: Any,
    dy: Any,
    *,
    strides: Any = None,
    padding: Any = "VALID",
    dilation: Any = 1,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> MaxPool:
    """The maximum of each window and its gradient.

    Of equal cells the first wins, in row-major order. NaN is larger than any number. Arguments and errors as in
    `avg_pool` and `bnderiv.max_pool`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x = jnp.array([1.0, 3.0, 2.0, 0.0]).reshape(1, 1, 4, 1)
      >>> s = bnderiv.steps.max_pool(x, (1, 2), jnp.array([5.0, 7.0]).reshape(1, 1, 2, 1))
      >>> s.winner.ravel().tolist(), s.dx.ravel().tolist()
      ([1, 0], [0.0, 5.0, 7.0, 0.0])
    """
    x, dy = arrays(x=x, dy=dy)
    w = windows_of(x, window, strides, padding, dilation, channel_axis, batch_axis)
    window, strides, padding, dilation = w.window, w.strides, w.padding, w.dilation
    x_padded = w.pad(x, -jnp.inf)
    winner, z = w.first_largest(x_padded, w.pad(jnp.ones_like(x, jnp.bool_), False))  # (P7)

    dy = cotangent(dy, z)
    winner_dilated = w.dilated(winner, -1)
    delta_dilated = w.dilated(dy, 0)
    numbers, deltas = w.covering(winner_dilated), w.covering(delta_dilated)
    won = (jnp.where(number == k, delta, 0) for k, (number, delta) in enumerate(zip(numbers, deltas, strict=True)))
    dx = _sum(won)  # (P10)
    return gather(MaxPool, locals())


class Windows(NamedTuple):
    """Where the windows lie; pairs are (rows, columns)."""

    spatial: Pair
    sizes: Pair
    window: Pair
    strides: Pair
    padding: Padding
    dilation: Pair

    @property
    def reach(self) -> list[int]:
        """m_d = (m − 1) d + 1, from the first to the last cell of a window."""
        return [(m - 1) * d + 1 for m, d in zip(self.window, self.dilation, strict=True)]

    @property
    def counts(self) -> list[int]:
        """M', N': how many windows there are."""
        sides = zip(self.sizes, self.padding, self.reach, self.strides, strict=True)
        return [(size + sum(pads) - reach) // stride + 1 for size, pads, reach, stride in sides]

    def pad(self, x: jax.Array, value: Any) -> jax.Array:
        return _checks.pad(x, dict(zip(self.spatial, self.padding, strict=True)), value)

    def cells(self, x_padded: jax.Array) -> Iterator[jax.Array]:
        """Cell (x, y) of every window; one (x, y) after the other, row-major."""
        for cell in np.ndindex(*self.window):
            first = [k * d for k, d in zip(cell, self.dilation, strict=True)]
            yield _slice(x_padded, self.spatial, first, self.counts, self.strides)

    def dilated(self, delta: jax.Array, value: Any) -> jax.Array:
        """D of (P5): δ dilated by the stride, with margins such that every cell has a D."""
        sides = zip(self.sizes, self.padding, self.reach, self.counts, self.strides, strict=True)
        pads = [
            (reach - 1 - before, size + before - 1 - (count - 1) * stride, stride - 1)
            for size, (before, _), reach, count, stride in sides
        ]
        return _checks.pad(delta, dict(zip(self.spatial, pads, strict=True)), value)

    def covering(self, delta: jax.Array) -> Iterator[jax.Array]:
        """D_(p+(m−1)d−dx, …) for all (p, q), from the window whose cell (x, y) it is; in the order of `cells`."""
        for cell in np.ndindex(*self.window):
            first = [r - 1 - k * d for r, k, d in zip(self.reach, cell, self.dilation, strict=True)]
            yield _slice(delta, self.spatial, first, self.sizes, (1, 1))

    def first_largest(self, x_padded: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """κ and the value there. A later cell wins only if it beats the best of the earlier ones (P7, P9)."""
        winner = best = None
        for k, (u, is_real) in enumerate(zip(self.cells(x_padded), self.cells(real), strict=True)):
            if winner is None or best is None:
                winner, best = jnp.where(is_real, 0, -1), u
            else:
                beats = is_real & ((winner < 0) | (u > best) | (jnp.isnan(u) & ~jnp.isnan(best)))
                winner, best = jnp.where(beats, k, winner), jnp.where(beats, u, best)
        assert winner is not None
        assert best is not None  # a window has a cell
        return winner, best


def windows_of(
    x: jax.Array, window: Any, strides: Any, padding: Any, dilation: Any, channel_axis: int, batch_axis: int
) -> Windows:
    """Where the windows lie.

    Raises:
      TypeError: an option that is no integer.
      ValueError: shapes or options that do not fit.
    """
    _checks.rank_is("x", x, 4, "batch, two spatial axes and channel")
    _, spatial, _ = _checks.image_axes(channel_axis, batch_axis)
    sizes = x.shape[spatial[0]], x.shape[spatial[1]]
    window, dilation = _checks.pair("window", window), _checks.pair("dilation", dilation)
    strides = window if strides is None else _checks.pair("strides", strides)
    w = Windows(
        spatial, sizes, window, strides, _checks.padding_pairs(padding, sizes, window, strides, dilation), dilation
    )
    for pads, reach in zip(w.padding, w.reach, strict=True):
        if max(pads) >= reach:
            raise ValueError(f"padding must be smaller than the window, which spans {reach}, got {pads}")
    return w


def _sum(terms: Any) -> jax.Array:
    total, *others = terms
    for term in others:
        total = total + term
    return total


def _slice(x: jax.Array, spatial: Pair, first: Any, count: Any, step: Any) -> jax.Array:
    for axis, start, n, by in zip(spatial, first, count, step, strict=True):
        x = lax.slice_in_dim(x, start, start + (n - 1) * by + 1, by, axis)
    return x
