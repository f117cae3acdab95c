"""Where an array keeps its channels: laying a vector of channels along it, and summing it for each channel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._checks import along, longer
from bnderiv._cpu import quotient
from bnderiv._numbers import power_of_two


class Channels(NamedTuple):
    """The view that arrays of one shape are computed in: another shape, of the same elements in the same order.

    The channels lie along its `axis`, the same ones `repeats` times in a row. `block` has the axes along which
    `sum_closely` adds first. Where `size` is not 0, that is one, of so many elements, which the view has split off.
    """

    axis: int
    repeats: int = 1
    block: tuple[int, ...] = ()
    size: int = 0

    @staticmethod
    def of(axis: int, shape: tuple[int, ...], masked: bool) -> "Channels":
        """For arrays of this shape; if `masked`, for what broadcasts to it as well.

        Few channels on the last axis are viewed as whole rows of them: six do not fill a vector register, a row of
        28·6 does. And they are summed closely; among many, one that cancels by chance hardly counts, and all cost more.
        A sample (the batch is the first axis, or the last if the channels are first) then comes in blocks, of 14
        elements or some more of its longest axis; one that is less than 14 long and wide is a block itself. (A length
        that a program is exported without, symbolic, is neither few nor long.)
        """
        few, repeats = not longer(shape[axis], 15), 1
        row = axis == len(shape) - 1 > 1 and few and not masked and not longer(shape[-2], 1024 // shape[-1])
        if row and shape[-2] > 1:
            axis, repeats, shape = axis - 1, shape[-2], (*shape[:-2], shape[-2] * shape[-1])
        sample = _sample(axis, len(shape)) if few else ()
        longest = max((i for i in sample if isinstance(shape[i], int)), key=lambda i: shape[i], default=None)
        if longest is None or shape[longest] < 14:
            return Channels(axis, repeats, sample)
        size = next(n for n in range(14, shape[longest] + 1) if shape[longest] % n == 0)
        if size == shape[longest]:
            return Channels(axis, repeats, (longest,))
        return Channels(axis + (longest < axis), repeats, (longest + 1,), size)

    def view(self, a: jax.Array) -> jax.Array:
        """`a` in the shape that the other methods are for. An axis of length 1, in masks, stays one."""
        shape = (*a.shape[:-2], a.shape[-2] * a.shape[-1]) if self.repeats > 1 else a.shape
        if self.size:
            i = self.block[0] - 1
            split = (shape[i] // self.size, self.size) if shape[i] > 1 else (1, 1)
            shape = (*shape[:i], *split, *shape[i + 1 :])
        return a.reshape(shape)

    def mask(self, where: jax.Array | None) -> jax.Array | None:
        """`where` in that shape."""
        return None if where is None else self.view(where)

    def number(self, a: jax.Array) -> int:
        """C."""
        return a.shape[self.axis] // self.repeats

    def along(self, vector: jax.Array, a: jax.Array) -> jax.Array:
        """(C,) laid along the channels of `a`, to broadcast against it explicitly."""
        if self.repeats > 1:
            vector = jnp.tile(vector, self.repeats)
        # Batch norm of a large array takes a third longer without. Of a small one the price, another kernel, is higher
        # than the gain; the more so where neighbours are of one channel, who share what leads to it.
        neighbours_differ = self.axis == a.ndim - 1 or self.repeats > 1
        if longer(a.size, 2**11 if neighbours_differ else 2**20):
            vector = quotient(vector)
        return along(vector, self.axis, a.ndim)

    def sum(self, a: jax.Array) -> jax.Array:
        """Σ over all but the channels, shape (C,)."""
        total = a.sum(tuple(i for i in range(a.ndim) if i != self.axis))
        return total.reshape(self.repeats, -1).sum(0) if self.repeats > 1 else total

    def sum_closely(self, a: jax.Array) -> jax.Array:
        """The same where terms of either sign cancel: hardly a rounding beyond those within the blocks.

        The sums of the blocks are cut in two. Their ten leading bits are multiples of a unit, nearly the same one all
        over a channel, so that float32 adds them exactly; of the rest the roundings are a thousand times smaller.
        (After Rump, Ogita and Oishi, "Accurate floating-point summation", 2008. Only the blocks' sums cost a sweep.)
        """
        if not self.block:
            return self.sum(a)
        sums = a.sum(self.block, keepdims=True)
        largest = jnp.abs(lax.stop_gradient(sums)).max(_sample(self.axis, a.ndim), keepdims=True)
        unit = jnp.maximum(power_of_two(largest) * 2.0**-9, jnp.finfo(a.dtype).tiny)
        leading = lax.stop_gradient(jnp.round(sums / unit) * unit)
        leading = jnp.where(jnp.isfinite(leading), leading, 0)
        return self.sum(leading) + self.sum(sums - leading)


def _sample(axis: int, ndim: int) -> tuple[int, ...]:
    """The axes of one sample and one channel."""
    batch = 0 if axis else ndim - 1
    return tuple(i for i in range(ndim) if i not in (axis, batch))
