"""Lines of an array along one axis."""

import math

import jax
from jax import lax

from bnderiv import _target


def lines(x: jax.Array, axis: int, start: int, limit: int, stride: int) -> jax.Array:
    """`lax.slice_in_dim`; where the lines are contiguous and not sharded, as one slice of the flattened axes.

    XLA takes a slice of a padded array from the array before padding where it can. If that is a transpose, it is then
    never materialized, and the slice reads memory one element at a time. A slice of flattened axes it leaves alone.
    Axes that may be sharded must not be flattened.
    """
    if stride > 1 or not _target.in_one_part():
        return lax.slice_in_dim(x, start, limit, stride, axis)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    size = math.prod(after)
    flat = lax.slice_in_dim(x.reshape(*before, -1), start * size, limit * size, axis=axis)
    return flat.reshape(*before, limit - start, *after)
