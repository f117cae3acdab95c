"""The pools, step by step (derivation.md, P1–P10), one cell of the window after the other.

Forward, cell (x, y) of all windows is one strided slice of the padded input. Backward, it is one slice of δ, dilated by
the stride and padded (P5).
"""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv._checks import Ints, Pads
from bnderiv._types import Padding, PerAxis
from bnderiv.pooling._windows import windows
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather

# The arguments of both pools.
Input = Annotated[jax.Array, "a", "(B, M, N, C)", INPUT, "activations of the layer before"]
FromAbove = Annotated[jax.Array, "δ = ∂J/∂z", "as z", INPUT, "gradient from above"]
Window = Annotated[Ints, "cells of a window along each spatial axis"]
Strides = Annotated[Ints, "from window to window"]
Padded = Annotated[Pads, "cells added before and after"]
CeilMode = Annotated[bool, "whether a last window may extend past the padding"]
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
    ceil_mode: CeilMode
    divisor_override: Annotated[int | None, "the divisor, if given"]
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
    dx: Annotated[jax.Array, "∂J/∂a = Σ D", "as x", "(P4), (P5)", "every cell adds up its shares"]


@derivation
class MaxPool(NamedTuple):
    """The steps of `max_pool`."""

    x: Input
    dy: FromAbove
    window: Window
    strides: Strides
    padding: Padded
    dilation: Annotated[Ints, "from cell to cell of a window"]
    ceil_mode: CeilMode
    channel_axis: ChannelAxis
    batch_axis: BatchAxis
    x_padded: Annotated[jax.Array, "a with −∞ around", "as x, larger", "(P9)", "padded input"]
    winner: Annotated[jax.Array, "κ_ij", "as z, integers", "(P7)", "number of the cell that won; −1 if all are padding"]
    z: Annotated[jax.Array, "z_ij", "(B, M', N', C)", "(P7)", "output, value of the winner"]
    winner_dilated: Annotated[
        jax.Array, "κ, dilated", "as x, larger", "(P5)", "winners dilated by the stride, −1 between them"
    ]
    delta_dilated: Annotated[jax.Array, "D", "as x, larger", "(P5)", "δ dilated by the stride, with a margin of zeros"]
    dx: Annotated[jax.Array, "∂J/∂a", "as x", "(P10)", "every cell adds up the δ of the windows it won"]


def avg_pool(
    x: ArrayLike,
    window: PerAxis,
    dy: ArrayLike,
    *,
    strides: PerAxis | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    ceil_mode: bool = False,
    divisor_override: int | None = None,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> AvgPool:
    """The mean of each window and its gradient.

    Args:
      x: a, floating dtype (half precision is computed in float32); with two spatial axes (B, M, N, C), unless the axes
        say otherwise.
      window: one integer for each spatial axis, (m, n), or one for all.
      dy: δ = ∂J/∂z, shape of the output.
      others: as in `bnderiv.avg_pool`.

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
    w = geometry_of(x, window, strides, padding, 1, ceil_mode, channel_axis, batch_axis)
    window, strides, padding = w.window, w.strides, w.padding
    x_padded = w.pad(x, 0)
    total = _sum(w.cells(x_padded))
    if divisor_override is None:
        ones = jnp.ones_like(x)
        counted = _checks.pad(ones, dict(zip(w.spatial, padding, strict=True)), 1 if count_include_pad else 0)
        count = _sum(w.cells(w.pad_beyond(counted, 0)))  # (P3)
    else:
        count = jnp.full_like(total, _checks.integer("divisor_override", divisor_override, at_least=1))
    z = total / count  # (P1)

    dy = cotangent(dy, z)
    share = dy / count
    share_dilated = w.dilated(share, 0)
    dx = _sum(w.covering(share_dilated))  # (P4), (P5)
    return gather(AvgPool, locals())


def max_pool(
    x: ArrayLike,
    window: PerAxis,
    dy: ArrayLike,
    *,
    strides: PerAxis | None = None,
    padding: Padding = "VALID",
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
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
    w = geometry_of(x, window, strides, padding, dilation, ceil_mode, channel_axis, batch_axis)
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


class Geometry(NamedTuple):
    """Where the windows lie: each field has an entry for each spatial axis."""

    spatial: Ints
    sizes: Ints
    window: Ints
    strides: Ints
    padding: Pads
    dilation: Ints
    beyond: Ints  # cells past the padding that ceil_mode adds

    @property
    def reach(self) -> list[int]:
        """m_d = (m − 1) d + 1, from the first to the last cell of a window."""
        return [(m - 1) * d + 1 for m, d in zip(self.window, self.dilation, strict=True)]

    @property
    def counts(self) -> list[int]:
        """M', N': how many windows there are."""
        sides = zip(self.sizes, self.padding, self.beyond, self.reach, self.strides, strict=True)
        return [(size + sum(pads) + beyond - reach) // stride + 1 for size, pads, beyond, reach, stride in sides]

    def pad(self, x: jax.Array, value: Any) -> jax.Array:
        return self.pad_beyond(_checks.pad(x, dict(zip(self.spatial, self.padding, strict=True)), value), value)

    def pad_beyond(self, x_padded: jax.Array, value: Any) -> jax.Array:
        """What `ceil_mode` adds to the padded input."""
        return _checks.pad(x_padded, {a: (0, more) for a, more in zip(self.spatial, self.beyond, strict=True)}, value)

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
            yield _slice(delta, self.spatial, first, self.sizes, (1,) * len(first))

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


def geometry_of(
    x: jax.Array,
    window: Any,
    strides: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    channel_axis: int,
    batch_axis: int,
) -> Geometry:
    """Where the windows lie.

    Raises:
      TypeError: an option that is no integer.
      ValueError: shapes or options that do not fit.
    """
    sides = windows(x, window, strides, padding, dilation, ceil_mode, channel_axis, batch_axis)
    axes, sizes, window, strides, dilation, before, after, beyond = zip(*sides, strict=True)
    padding = tuple((low, high - more) for low, high, more in zip(before, after, beyond, strict=True))
    return Geometry(axes, sizes, window, strides, padding, dilation, beyond)


def _sum(terms: Any) -> jax.Array:
    total, *others = terms
    for term in others:
        total = total + term
    return total


def _slice(x: jax.Array, spatial: Ints, first: Any, count: Any, step: Any) -> jax.Array:
    for axis, start, n, by in zip(spatial, first, count, step, strict=True):
        x = lax.slice_in_dim(x, start, start + (n - 1) * by + 1, by, axis)
    return x
