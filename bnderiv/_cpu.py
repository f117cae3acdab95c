"""What only a CPU's program has.

Values that XLA would recompute are computed once (`quotient`, `once`, `integers_once`), sums with γ are matrix products
(`weighted_sum`), and few channels are put in rows (`platform_layout`).
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv._numbers import accumulator
from bnderiv._rule import CustomJvp
from bnderiv._target import by_target


def quotient(a: jax.Array, by: int | jax.Array | None = None) -> jax.Array:
    """a / by, or a itself, with its producers computed once.

    XLA:CPU recomputes a value's producers at every use, back to the nearest operation it considers expensive. A
    division is one if XLA does not know the divisor: hence `one`, which is 1, or 0 at a NaN. The rule keeps it out of
    the derivative, which would be 1/0 there. `by` has no derivative.
    """
    return _quotient(a, by)


@CustomJvp
def _quotient(a, by):
    one = (a == a).astype(a.dtype)
    return a / (one if by is None else one * jnp.asarray(by, a.dtype))


@_quotient.defjvp
def _(primals, tangents):
    _, by = primals
    tangent = tangents[0]
    return _quotient(*primals), tangent if by is None else tangent / jnp.asarray(by, tangent.dtype)


def once(a: jax.Array) -> jax.Array:
    """`a`, computed once in a CPU's program.

    XLA:CPU otherwise recomputes a channel's number for each of its elements: 4 % of a batch norm of 128×1024. Or it
    fuses a row's sum into the loop that uses it, and materializes what that loop broadcasts. A layer norm's gradient
    then has two more arrays of the size of x, and takes 1.2 to 3 times the time.
    """
    return by_target(a, cpu=quotient, default=lambda a: a)


FLOAT32_INTEGERS = 2**24  # a float32 holds those up to this


def integers_once(a: jax.Array, most: int) -> jax.Array:
    """`once` for integers up to `most`, which go through float32 if it holds them; otherwise they stay as they are."""
    if most > FLOAT32_INTEGERS:
        return a
    return by_target(a, cpu=lambda a: quotient(a.astype(jnp.float32)).astype(a.dtype), default=lambda a: a)


def weighted_sum(groups: Any, gamma: jax.Array, r: jax.Array | None, a: jax.Array) -> jax.Array:
    """Σ γ r a over the elements that share statistics: `groups.to_statistics`, with factors.

    `a` are inner sums. r is equal for these elements; None stands for 1.

    If the elements are innermost, a CPU multiplies a matrix by a vector: a layer norm of 8×512×768 takes 0.7 of the
    time. XLA's library for such sums takes factors of one shape only, so a sum would materialize γ in that of `a`.
    """

    def total(gamma: jax.Array, r: Any, a: jax.Array) -> jax.Array:
        return groups.to_statistics((gamma if r is None else gamma * r) * a)

    def product(gamma: jax.Array, r: Any, a: jax.Array) -> jax.Array:
        dimensions = ((axes, tuple(range(len(axes)))), ((), ()))
        vector = jax.lax.squeeze(gamma, tuple(range(rest)))
        sums = jax.lax.expand_dims(jax.lax.dot_general(a, vector, dimensions, precision="highest"), axes)
        return sums if r is None else r * sums

    if groups.each != 1:
        return total(gamma, r, a)
    axes, rest = groups.statistics, a.ndim - len(groups.statistics)
    innermost = axes and axes == tuple(range(rest, a.ndim)) and gamma.shape == (1,) * rest + a.shape[rest:]
    # For one element, the product must be (γ r) a, as in dx: the two cancel exactly.
    if not innermost or gamma.size == 1:
        return total(gamma, r, a)
    return by_target(gamma, r, a, cpu=product, default=total)


# Fewer channels than this, on the last axis, are computed in rows: XLA:CPU vectorizes along the last axis, and six
# numbers do not fill a register. A batch norm of 32×28×28×6 takes twice as long otherwise.
FEW_CHANNELS = 16
# Numbers in such a row at most: the vectors for it should stay in the first-level cache.
ROW = 1024


def platform_layout(body: Callable[..., Any]) -> Callable[..., Any]:
    """`body(groups, *static, x, *arrays)`; if channels are few, a CPU runs it in rows.

    In rows the body gets (N, H, W·C) for (N, H, W, C), and what a channel shares is repeated for each of the W columns.
    The body sums by `groups` alone, and otherwise broadcasts, so it need not know which of the two it gets.
    """

    @wraps(body)
    def call(groups: Any, *arguments: Any) -> Any:
        static = tuple(a for a in arguments if isinstance(a, bool))
        arrays = arguments[len(static) :]
        if not _few_channels(groups, arrays):
            return body(groups, *arguments)

        def in_rows(*arrays: Any) -> Any:
            columns, channels = jax.tree.leaves(arrays)[0].shape[-2:]
            rows = _Rows(groups.both[:-1], groups.over_devices, columns, channels)
            return jax.tree.map(rows.back, body(rows, *static, *jax.tree.map(rows.view, arrays)))

        return by_target(*arrays, cpu=in_rows, default=partial(body, groups, *static))

    return call


def _few_channels(groups: Any, arrays: Any) -> bool:
    x, *others = jax.tree.leaves(arrays)
    last = x.ndim - 1
    # Masks are not put in rows.
    if any(a.dtype == bool for a in others) or last < 2 or groups.both != tuple(range(last)):
        return False
    if groups.statistics or groups.parameters or groups.each != 1:
        return False
    *rows, columns, channels = x.shape
    known = isinstance(columns, int) and isinstance(channels, int)
    return known and channels < FEW_CHANNELS and 1 < columns <= ROW // channels and any(n != 1 for n in rows)


class _Rows(NamedTuple):
    """`Groups` for rows: a sum over a channel runs over its columns too, and its result is repeated in each."""

    both: tuple[int, ...]
    over_devices: bool
    columns: int
    channels: int

    def view(self, a: jax.Array) -> jax.Array:
        """`a` in rows; numbers stay as they are."""
        if a.ndim < 2:
            return a
        return a.reshape(*a.shape[:-2], -1) if a.shape[-2] != 1 else jnp.tile(a[..., 0, :], self.columns)

    def back(self, a: jax.Array) -> jax.Array:
        """The inverse of `view`: the first column of what is repeated."""
        if a.ndim < 2:
            return a
        shared = all(n == 1 for n in a.shape[:-1])
        # Without `quotient`, XLA:CPU would recompute a channel's value for each element that uses it.
        return (
            quotient(a[..., None, : self.channels]) if shared else a.reshape(*a.shape[:-1], self.columns, self.channels)
        )

    def inner(self, a: jax.Array) -> jax.Array:
        return self._reduce(jax.lax.reduce_sum, a)

    def _reduce(self, operation: Callable[..., jax.Array], a: jax.Array) -> jax.Array:
        columns = operation(a, self.both).reshape(-1, self.channels)
        return jnp.tile(operation(columns, (0,)), self.columns).reshape((1,) * len(self.both) + (-1,))

    total = inner

    def ends(self, a: jax.Array, where: None) -> tuple[jax.Array, jax.Array]:
        return self._reduce(jax.lax.reduce_min, a), self._reduce(jax.lax.reduce_max, a)

    def to_statistics(self, a: jax.Array) -> jax.Array:
        return a

    to_parameters = repeated = to_statistics

    def over_all(self, shared: jax.Array) -> jax.Array:
        return shared[..., : self.channels].sum()

    @property
    def reduced(self) -> tuple[int, ...]:
        return self.both

    @property
    def statistics(self) -> tuple[int, ...]:
        return ()

    @property
    def each(self) -> int:
        return self.columns

    def count(self, x: jax.Array, where: None) -> Any:
        number, dtype = x.size // self.channels, accumulator(x.dtype)
        return np.asarray(number, dtype) if isinstance(number, int) else jnp.asarray(number, dtype)
