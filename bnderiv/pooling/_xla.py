"""The pools by XLA's own operations on windows.

Accelerators are fastest with these. On a TPU slices and broadcasts do not fuse: a 3×3 max pool made of them took 39
times the cycles (v5e, 256×112×112×64, bfloat16). On a GPU a sum over windows is one kernel. On a CPU these operations
are loops over the cells of each window, several times slower than the forms in `avg_pool.py` and `max_pool.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from bnderiv import _checks, _target
from bnderiv._numbers import accumulator
from bnderiv.pooling._windows import Sides, Windows

# Cells of a window up to which XLA:CPU unrolls the loop over them. For pairs of a value and a place, a longer window is
# two that overlap: 25 cells, stride 1, with padding at 8×28×28×64 take 14 ms in a loop, otherwise 1.
XLA_UNROLLS, XLA_UNROLLS_IN_PADDING = 32, 16
# But if all windows together have at most this many times the cells of the axis, a loop has less work than two halves.
FEW_TIMES = 3


def can_take(sides: Sides, dtype: Any) -> bool:
    """Whether `maxima` and `hand_to_first_maxima` can compute it: XLA selects without dilation, and not in float64."""
    return all(w.dilation == 1 for w in sides) and jnp.dtype(dtype).itemsize < 8


def maxima(sides: Sides, x: jax.Array) -> jax.Array:
    """The maximum of each window; a NaN is larger than any number."""
    wide = x if x.dtype.itemsize > 1 else x.astype(jnp.float32)  # some of 8 bits have no infinity
    lowest = np.asarray(-np.inf, wide.dtype)
    return lax.reduce_window(wide, lowest, lax.max, **_geometry(sides, x.ndim)).astype(x.dtype)


def reduced(of_two: Any, arrays: Any, start: Any, w: Windows) -> Any:
    """The cells of each window along one axis, combined two by two and in order; a cell may be taken twice."""
    unrolled = XLA_UNROLLS if w.padded == w.size else XLA_UNROLLS_IN_PADDING
    if w.window > unrolled and w.count * w.window > FEW_TIMES * w.size:
        half = -(-w.window // 2)
        arrays = reduced(of_two, arrays, start, w._replace(window=half, stride=1))
        w = Windows(w.axis, arrays[0].shape[w.axis], 2, w.stride, w.window - half, 0, 0)
    geometry = _geometry((w,), arrays[0].ndim)
    dilation = [w.dilation if axis == w.axis else 1 for axis in range(arrays[0].ndim)]
    return lax.reduce_window(arrays, start, of_two, **geometry, window_dilation=dilation)


def hand_to_first_maxima(sides: Sides, x: jax.Array, delta: jax.Array) -> jax.Array:
    """Hands δ of each window to its first maximum in row-major order. NaN is the largest, padding takes none (P10)."""
    wide = accumulator(delta.dtype)  # of x too: the conversions fuse
    x, delta, zero = _checks.same_varying(x.astype(wide), delta.astype(wide), jnp.zeros((), wide))
    if _target.in_one_part():
        return _select_and_scatter(_is_first_maximum, sides, x, delta, zero)
    # XLA's partitioner shards what selects by one comparison; for anything else it gathers the whole batch. So NaN is
    # made infinite, and infinity the largest number. That costs another array, so it is done only where it has to be.
    x = jnp.where(x != x, jnp.inf, jnp.minimum(x, jnp.finfo(wide).max))
    return _select_and_scatter(lax.ge, sides, x, delta, zero)


def sums(sides: Sides, x: jax.Array) -> jax.Array:
    """The sum of each window."""
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, **_geometry(sides, x.ndim))


def hand_to_cells(sides: Sides, share: jax.Array) -> jax.Array:
    """The transpose of `sums` (P5): sums over windows of stride 1, of the shares a stride apart."""
    window, dilation, padding = [1] * share.ndim, [1] * share.ndim, [(0, 0)] * share.ndim
    for w in sides:
        window[w.axis], dilation[w.axis], padding[w.axis] = w.window, w.stride, w.margin
    zero = np.zeros((), share.dtype)
    return lax.reduce_window(share, zero, lax.add, window, [1] * share.ndim, padding, base_dilation=dilation)


def _geometry(sides: Sides, ndim: int) -> dict[str, Any]:
    window, strides, padding = [1] * ndim, [1] * ndim, [(0, 0)] * ndim
    for w in sides:
        window[w.axis], strides[w.axis], padding[w.axis] = w.window, w.stride, (w.before, w.after)
    return {"window_dimensions": window, "window_strides": strides, "padding": padding}


def _select_and_scatter(stays: Any, sides: Sides, x: jax.Array, delta: jax.Array, zero: jax.Array) -> jax.Array:
    # Not `jax.vjp` of `lax.reduce_window`, which selects by a ≥ b alone and loses NaNs. This has no rule for vmap.
    @custom_vmap
    def scatter(x: jax.Array, delta: jax.Array, zero: jax.Array) -> jax.Array:
        geometry = {name: tuple(value) for name, value in _geometry(sides, x.ndim).items()}
        select, add = (jax.make_jaxpr(f)(zero, zero) for f in (stays, lax.add))
        return lax.select_and_scatter_p.bind(
            x,
            delta,
            zero,
            select_jaxpr=select.jaxpr,
            select_consts=tuple(select.consts),
            scatter_jaxpr=add.jaxpr,
            scatter_consts=tuple(add.consts),
            **geometry,
        )

    @scatter.def_vmap
    def _(size: int, batched: list[bool], x: jax.Array, delta: jax.Array, zero: jax.Array) -> tuple[jax.Array, bool]:
        x, delta = (
            a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
            for a, is_batched in zip((x, delta), batched, strict=False)
        )
        zero = zero[0] if batched[2] else zero
        sides_after = tuple(w._replace(axis=w.axis + 1) for w in sides)
        return _select_and_scatter(stays, sides_after, x, delta, zero), True

    return scatter(x, delta, zero)


def _is_first_maximum(a: jax.Array, b: jax.Array) -> jax.Array:
    """Whether a stays, of which b comes later (P7)."""
    return (a >= b) | (a != a)
