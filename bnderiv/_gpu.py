"""What only a GPU's program has: kernels that keep a row in registers, and take all of its sums.

XLA for NVIDIA GPUs fuses several sums along the last axis, with the elementwise operations between them, into one
kernel, which reads a row once. It does so only if each sum is combined with its own terms, as in x − Σx, before the
next sum is taken.
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

    It needs compute capability 8.0 (Ampere) or newer. Without a GPU here, the program is compiled for another machine,
    whose GPU is assumed to be that new.
    """
    if tuple(axes) != (len(shape) - 1,) or not isinstance(shape[-1], int):  # an export may have a symbolic length
        return False
    found = [getattr(device, "compute_capability", "") for device in jax.devices()]
    return shape[-1] <= LONGEST and all(int(each.partition(".")[0]) >= 8 for each in found if each[:1].isdigit())


def start_of_row(a: jax.Array, axes: Sequence[int]) -> jax.Array:
    """`a`, as the start of a kernel on a GPU, into which XLA fuses all later sums along `axes` (`with_a_sum`)."""
    if not rows_fit(a.shape, axes):
        return a
    return by_target(a, cuda=partial(with_a_sum, axes=axes), default=lambda a: a)


def with_a_sum(a: jax.Array, axes: Sequence[int]) -> jax.Array:
    """`a` minus a sum that is 0, which XLA does not know. But a NaN makes its whole row NaN: mask it before."""
    return a - jnp.minimum(jnp.abs(lax.stop_gradient(a)), 0).sum(axes, keepdims=True)


def in_one_array(tree: Any) -> Any:
    """The same tree, of arrays with one number for each row, stored as one array: XLA has a kernel for each."""
    leaves, structure = jax.tree.flatten(tree)
    shape = (*leaves[0].shape[:-1], len(leaves))
    place = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    array = leaves[0]
    for i, leaf in enumerate(leaves[1:], 1):  # XLA cannot fuse a concatenation with sums of rows
        array = jnp.where(place < i, array, leaf)
    array = lax.optimization_barrier(array)
    return jax.tree.unflatten(structure, [array[..., i : i + 1] for i in range(len(leaves))])
