"""What only a GPU's program has: kernels that keep a row in registers, and sums of columns in parts.

Rows. XLA for NVIDIA GPUs fuses several sums along the last axis, with the elementwise operations between them, into one
kernel, which reads a row once. It does so only if each sum is combined with its own terms, as in x − Σx, before the
next sum is taken.

Columns. XLA takes sums along other axes in one block for 32 or 64 columns. With fewer blocks than a GPU has
multiprocessors, it computes the terms in another kernel first, and stores them. So few sums are taken in parts.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._target import by_target, in_one_part

# Fewer sums of columns than this are taken in parts, so that there are up to twice as many. For an H100, a batch norm
# with ReLU of 4096×1024 in bfloat16 then moves 8 times its input, otherwise 22.
FEW = 16384
COLUMNS = 32  # fewer columns than these fill a block by themselves
TERMS = 512  # of fewer, the arrays are small: more kernels take longer
SHORTEST = 16  # terms of a part: storing the sums of shorter ones takes longer than it saves
XLA_SPLITS = 4096  # longer sums XLA takes in parts itself, about the square root of their terms
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


def sum_along(a: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Σ along `axes`, in order, which are kept. A GPU takes few sums of columns in two steps: of parts, then of all."""
    shape, within, over = _in_parts(a.shape, axes)

    def in_two_steps(a: jax.Array) -> jax.Array:
        parts = lax.optimization_barrier(a.reshape(shape).sum(within, keepdims=True))
        return parts.sum(over, keepdims=True).reshape([1 if i in axes else n for i, n in enumerate(a.shape)])

    def in_one(a: jax.Array) -> jax.Array:
        return a.sum(axes, keepdims=True)

    return by_target(a, cuda=in_two_steps, default=in_one) if within else in_one(a)


def _in_parts(shape: Sequence[Any], axes: Sequence[int]) -> tuple[tuple[int, ...], list[int], list[int]]:
    """The shape with an axis cut into parts, the axes within parts, and those over parts. None within: in one step."""
    in_one: Any = (), [], []
    if not axes or len(shape) - 1 in axes or not all(isinstance(n, int) for n in shape):
        return in_one
    terms = math.prod(shape[i] for i in axes)
    sums = math.prod(shape) // terms
    if sums < COLUMNS or terms < TERMS or sums * (math.isqrt(terms) if terms > XLA_SPLITS else 1) >= FEW:
        return in_one
    most, parts = min(2 * FEW / sums, terms / SHORTEST), 1
    for axis in axes:
        size = shape[axis]
        # The first axis may be sharded, and is not to be cut then.
        cuts = [size] if axis == 0 and not in_one_part() else range(1, size + 1)
        cut = max((n for n in cuts if size % n == 0 and parts * n <= most), default=1)
        parts *= cut
        if cut < size:
            break
    if parts == 1:
        return in_one
    new = (*shape[:axis], cut, shape[axis] // cut, *shape[axis + 1 :])
    return new, [axis + 1, *(i + 1 for i in axes if i > axis)], [i for i in axes if i <= axis]
