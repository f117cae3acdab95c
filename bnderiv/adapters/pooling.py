"""Pooling some of the axes of an array of any rank, for the frameworks' own signatures."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from bnderiv._rule import layer

Ints = tuple[int, ...]


def pool_axes(
    pool: Callable[..., jax.Array], x: jax.Array, first: int, window: Ints, strides: Ints, padding: Any
) -> jax.Array:
    """`pool` of the axes from `first` on, one for each entry of `window`; the axes before and after are kept.

    `padding` is "VALID", "SAME", "SAME_LOWER" or a pair for each of these axes. `pool` is a function that is made once,
    so that eager calls find their compiled program.
    """
    if not window:
        return x
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[first : first + len(window)], window, strides, padding)
    return _pool_axes(pool, first, window, strides, tuple(map(tuple, padding)), x)


@layer(static=5, result=lambda pool, first, window, strides, pads, x: x)
def _pool_axes(
    pool: Callable[..., jax.Array], first: int, window: Ints, strides: Ints, pads: Any, x: jax.Array
) -> jax.Array:
    last = first + len(window)
    before, spatial, after = x.shape[:first], x.shape[first:last], x.shape[last:]
    options: Any = {"strides": strides, "padding": pads}
    if after:
        y = pool(x.reshape(math.prod(before), *spatial, math.prod(after)), window, **options)
        return y.reshape(*before, *y.shape[1:-1], *after)
    # Where no axis is left for the channels, those before are taken for them: a last axis of size 1 would be slow.
    y = pool(x.reshape(1, math.prod(before), *spatial), window, channel_axis=1, **options)
    return y.reshape(*before, *y.shape[2:])
