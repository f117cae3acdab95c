"""Who shares what: the axes over which a normalization shares its statistics, and its gamma and beta.

| axes of (N, H, W, C) | `both`  | `statistics` | `parameters` |
|----------------------|---------|--------------|--------------|
| batch norm           | N, H, W |              |              |
| instance norm        | H, W    |              | N            |
| layer norm           |         | C            | N, H, W      |
| group norm of (N, H, W, G, C/G) | H, W | C/G  | N            |
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bnderiv._checks import longer
from bnderiv._numbers import accumulator


class Groups(NamedTuple):
    """Axes along which elements share gamma, beta and statistics; the statistics alone; gamma and beta alone.

    What is shared is an array of the rank of x, of length 1 along these axes, so that it broadcasts against x.
    """

    both: tuple[int, ...]
    statistics: tuple[int, ...] = ()
    parameters: tuple[int, ...] = ()

    def inner(self, a: jax.Array) -> jax.Array:
        """Σ over the elements that share everything."""
        return a.sum(self.both, keepdims=True)

    def to_statistics(self, inner: jax.Array) -> jax.Array:
        """Inner sums to sums over the elements that share statistics."""
        return inner.sum(self.statistics, keepdims=True) if self.statistics else inner

    def to_parameters(self, inner: jax.Array) -> jax.Array:
        """Inner sums to sums over the elements that share gamma and beta."""
        return inner.sum(self.parameters, keepdims=True) if self.parameters else inner

    def total(self, a: jax.Array) -> jax.Array:
        """Σ over the elements that share statistics."""
        return a.sum(self.reduced, keepdims=True)

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes of `total`, in order."""
        return tuple(sorted(self.both + self.statistics))

    def shared(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what such elements share, for x of this shape."""
        return tuple(1 if i in self.reduced else n for i, n in enumerate(shape))

    def count(self, x: jax.Array, where: jax.Array | None) -> jax.Array:
        """n, the elements that share statistics; only the True ones if there is a mask."""
        shape, dtype, most = self.shared(x.shape), accumulator(x.dtype), 1
        for i in self.reduced:
            most = most * x.shape[i]
        if where is None:
            return jnp.full(shape, most, dtype)
        # In floats while these hold every integer: over a sharded batch, sums of one dtype are one all-reduce.
        exact = not longer(most, 2 ** (jnp.finfo(dtype).nmant + 1))
        ones = jnp.broadcast_to(where, x.shape).astype(dtype if exact else jnp.int32)
        return self.total(ones).astype(dtype)
