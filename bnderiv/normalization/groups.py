"""Who shares what: the axes over which a normalization shares its statistics, and its gamma and beta.

| axes of (N, H, W, C) | `both`  | `statistics` | `parameters` |
|----------------------|---------|--------------|--------------|
| batch norm           | N, H, W |              |              |
| instance norm        | H, W    |              | N            |
| layer norm           |         | C            | N, H, W      |
| group norm of (N, H, W, G, C/G) | H, W | C/G  | N            |
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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

    def over_all(self, shared: jax.Array) -> jax.Array:
        """Σ over all that have statistics of their own."""
        return shared.sum()

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes of `total`, in order."""
        return tuple(sorted(self.both + self.statistics))

    def count(self, x: jax.Array, where: jax.Array | None) -> Any:
        """n, the elements that share statistics: a number, or with a mask the True ones of each group."""
        dtype = accumulator(x.dtype)
        most: Any = math.prod(x.shape[i] for i in self.reduced)
        if where is None:
            return np.asarray(most, dtype) if isinstance(most, int) else jnp.asarray(most, dtype)
        # In floats while these hold every integer: over a sharded batch, sums of one dtype are one all-reduce.
        exact = not longer(most, 2 ** (jnp.finfo(dtype).nmant + 1))
        ones = jnp.broadcast_to(where, x.shape).astype(dtype if exact else jnp.int32)
        return self.total(ones).astype(dtype)
