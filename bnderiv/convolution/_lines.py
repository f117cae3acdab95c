"""Lines of an array along one axis."""

import math

import jax
from jax import lax

from bnderiv import _cpu


def lines(x: jax.Array, axis: int, start: int, limit: int, stride: int) -> jax.Array:
    """`lax.slice_in_dim`, as one slice of the memory where the lines are neighbours.

    Of a padded array XLA takes a slice that meets no padding from the array before it was padded; and if that is a
    transpose, which is then never written, it reads across the memory, one element at a time. A slice of the memory
    it takes as it is. But axes that are spread over devices must stay axes.
    """
    if stride > 1 or not _cpu.on_one_device():
        return lax.slice_in_dim(x, start, limit, stride, axis)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    size = math.prod(after)
    memory = lax.slice_in_dim(x.reshape(*before, -1), start * size, limit * size, axis=axis)
    return memory.reshape(*before, limit - start, *after)
