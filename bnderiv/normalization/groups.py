"""Who shares what: the axes over which a normalization shares its statistics, and its gamma and beta.

| axes of (N, H, W, C) | `both`  | `statistics` | `parameters` |
|----------------------|---------|--------------|--------------|
| batch norm           | N, H, W |              |              |
| instance norm        | H, W    |              | N            |
| layer norm           |         | C            | N, H, W      |
| group norm           | H, W    | parts of C   | N            |
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv._checks import longer
from bnderiv._cpu import once
from bnderiv._gpu import sum_along
from bnderiv._numbers import accumulator


@dataclass(frozen=True)
class Groups:
    """Axes along which elements share statistics, or gamma and beta, or both.

    What is shared is an array of the rank of x, of length 1 along these axes, so that it broadcasts against x.
    """

    both: tuple[int, ...]
    statistics: tuple[int, ...] = ()  # the statistics alone
    parameters: tuple[int, ...] = ()  # gamma and beta alone
    # Whether statistics are to be merged with those of other devices.
    over_devices: bool = field(default=False, kw_only=True)

    def inner(self, a: jax.Array) -> jax.Array:
        """Σ over the elements that share everything."""
        inner = sum_along(a, self.both)
        # XLA would merge a further sum over these with this one, and so read `a` once more.
        return lax.optimization_barrier(inner) if self.both and self.parameters else inner

    def to_statistics(self, inner: jax.Array) -> jax.Array:
        """Inner sums to sums over the elements that share statistics."""
        return once(inner.sum(self.statistics, keepdims=True)) if self.statistics else inner

    def to_parameters(self, inner: jax.Array) -> jax.Array:
        """Inner sums to sums over the elements that share gamma and beta."""
        return sum_along(inner, self.parameters) if self.parameters else inner

    def total(self, a: jax.Array) -> jax.Array:
        """Σ over the elements that share statistics."""
        return sum_along(a, self.reduced)

    def ends(self, a: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """The smallest and the largest of the elements that share statistics. If there are none, ∞ and −∞."""
        least, most = (a, a) if where is None else (jnp.where(where, a, end) for end in (jnp.inf, -jnp.inf))
        return self.reduce(lax.reduce_min, least), self.reduce(lax.reduce_max, most)

    def reduce(self, operation: Callable[..., jax.Array], a: jax.Array) -> jax.Array:
        """`operation`, such as `lax.reduce_max`, over the elements that share statistics."""
        return lax.expand_dims(operation(a, self.reduced), self.reduced)

    def repeated(self, statistics: Any) -> Any:
        """Statistics (a tree) as they broadcast against x."""
        return statistics

    def mapped(self, u: jax.Array, mean: jax.Array, g: jax.Array, beta: jax.Array) -> jax.Array:
        """(u − m) g + β; for channels u g + (β − m g).

        Channels may have a ReLU: in this form a GPU's program rebuilds its mask and stores less. In rows it can fuse
        u − m, which the variance needs too.
        """
        return (u - mean) * g + beta if self.statistics else u * g + (beta - mean * g)

    def over_all(self, shared: jax.Array) -> jax.Array:
        """Σ over the groups: `shared` has one number for each."""
        return shared.sum()

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes of `total`, in order."""
        return tuple(sorted(self.both + self.statistics))

    @property
    def each(self) -> int:
        """The elements of a group at each place along these axes."""
        return 1

    def moved(self, to: tuple[int, ...]) -> Self:
        """The same groups of an x whose axis i has become axis `to[i]`."""
        both, statistics, parameters = (
            tuple(to[i] for i in axes) for axes in (self.both, self.statistics, self.parameters)
        )
        return replace(self, both=both, statistics=statistics, parameters=parameters)

    def count(self, x: jax.Array, where: jax.Array | None) -> Any:
        """n, the elements that share statistics: a number, or with a mask the True ones of each group."""
        dtype = accumulator(x.dtype)
        most = math.prod(x.shape[i] for i in self.reduced) * self.each
        if where is None:
            return np.asarray(most, dtype) if isinstance(most, int) else jnp.asarray(most, dtype)
        # In floats if they hold every integer up to `most`: over a sharded batch, sums of one dtype are one all-reduce.
        exact = not longer(most, 2 ** (jnp.finfo(dtype).nmant + 1))
        ones = jnp.broadcast_to(where, x.shape).astype(dtype if exact else jnp.int32)
        return self.total(ones).astype(dtype)


class Affine(NamedTuple):
    """The map from x̂ to y. Gamma and beta have the rank of x and broadcast against it."""

    gamma: jax.Array
    beta: jax.Array
    residual: jax.Array | None = None  # z, of the shape of x


def per_channel(x: jax.Array, axis: int, over_devices: bool = False) -> Groups:
    """Those of a batch norm: the elements of a channel share everything."""
    return Groups(tuple(i for i in range(x.ndim) if i != axis), over_devices=over_devices)


@dataclass(frozen=True)
class ChannelGroups(Groups):
    """Groups of `size` neighboring channels along `axis`. Statistics have one element for each group there.

    x keeps its shape: in the shape (N, H, W, G, C/G), the innermost loops would be only C/G long.
    """

    axis: int = -1
    size: int = 1

    def to_statistics(self, inner: jax.Array) -> jax.Array:
        return self._in_groups(super().to_statistics(inner)).sum(self.axis + 1)

    def _in_groups(self, inner: jax.Array) -> jax.Array:
        """The channels of each group along one more axis, after that of the groups."""
        before, after = inner.shape[: self.axis], inner.shape[self.axis + 1 :]
        return inner.reshape(*before, -1, self.size, *after)

    def total(self, a: jax.Array) -> jax.Array:
        return self.to_statistics(self.inner(a))

    def reduce(self, operation: Callable[..., jax.Array], a: jax.Array) -> jax.Array:
        return operation(self._in_groups(super().reduce(operation, a)), (self.axis + 1,))

    def repeated(self, statistics: Any) -> Any:
        return jax.tree.map(lambda a: jnp.repeat(a, self.size, self.axis) if jnp.ndim(a) else a, statistics)

    def moved(self, to: tuple[int, ...]) -> Self:
        return replace(super().moved(to), axis=to[self.axis])

    @property
    def each(self) -> int:
        return self.size
