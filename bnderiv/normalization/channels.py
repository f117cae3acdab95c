"""Where an array keeps its channels: laying a vector of channels along it, and summing it for each channel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bnderiv._arguments import along


class Channels(NamedTuple):
    """The channels lie along `axis` of `view`, the same ones `repeats` times in a row."""

    axis: int
    repeats: int = 1

    @staticmethod
    def of(axis: int, shape: tuple[int, ...]) -> "Channels":
        """For arrays of this shape; few channels on the last axis are viewed as whole rows of them.

        Six channels do not fill a vector register, a row of 28·6 does.
        """
        if axis == len(shape) - 1 and axis > 1 and shape[-1] < 16 and shape[-2] * shape[-1] <= 1024:
            return Channels(axis - 1, shape[-2])
        return Channels(axis)

    def view(self, a: jax.Array) -> jax.Array:
        """The same elements, in the shape that the other methods are for."""
        return a.reshape(*a.shape[:-2], -1) if self.repeats > 1 else a

    def number(self, a: jax.Array) -> int:
        """C."""
        return a.shape[self.axis] // self.repeats

    def along(self, vector: jax.Array, a: jax.Array) -> jax.Array:
        """(C,) laid along the channels of `a`, to broadcast against it explicitly."""
        return along(jnp.tile(vector, self.repeats) if self.repeats > 1 else vector, self.axis, a.ndim)

    def sum(self, a: jax.Array) -> jax.Array:
        """Σ over all but the channels, shape (C,)."""
        total = a.sum(tuple(i for i in range(a.ndim) if i != self.axis))
        return total.reshape(self.repeats, -1).sum(0) if self.repeats > 1 else total
