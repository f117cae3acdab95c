"""What only a GPU's program has: kernels that keep a row in registers, and take all of its sums.

XLA for NVIDIA makes one kernel of several sums along the last axis and what is elementwise with them, so that it reads
a row once. It does so if each sum is combined with what it is a sum of, before the next one is taken.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._target import by_target

LONGEST = 16384  # elements: for longer rows XLA for an H100 takes a kernel, and a read, for each sum


def rows_fit(shape: Sequence[Any], axes: Sequence[int]) -> bool:
    """Whether a GPU's kernel can keep in registers what is summed along `axes`: the last axis alone, not too long.

    From compute capability 8.0 (Ampere) on, that is. Without a GPU here, the program is compiled for another machine;
    that is taken for a newer one.
    """
    if tuple(axes) != (len(shape) - 1,) or not isinstance(shape[-1], int):  # an export may have a symbolic length
        return False
    found = [getattr(device, "compute_capability", "") for device in jax.devices()]
    return shape[-1] <= LONGEST and all(int(each.partition(".")[0]) >= 8 for each in found if each[:1].isdigit())


def start_of_row(a: jax.Array, axes: Sequence[int]) -> jax.Array:
    """`a`; on a GPU, the kernel of a sum along `axes` can go on with further ones."""
    if not rows_fit(a.shape, axes):
        return a
    return by_target(a, cuda=partial(with_a_sum, axes=axes), default=lambda a: a)


def with_a_sum(a: jax.Array, axes: Sequence[int]) -> jax.Array:
    """`a`, combined with a sum of it that is 0, which XLA does not know."""
    return a - jnp.minimum(jnp.abs(lax.stop_gradient(a)), 0).sum(axes, keepdims=True)


def in_one_array(tree: Any) -> Any:
    """The leaves of a tree, one number for each row, from one array in memory. Otherwise each would be a kernel."""
    leaves, structure = jax.tree.flatten(tree)
    shape = (*leaves[0].shape[:-1], len(leaves))
    place = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    array = leaves[0]
    for i, leaf in enumerate(leaves[1:], 1):  # XLA cannot fuse a concatenation with sums of rows
        array = jnp.where(place < i, array, leaf)
    array = lax.optimization_barrier(array)
    return jax.tree.unflatten(structure, [array[..., i : i + 1] for i in range(len(leaves))])
