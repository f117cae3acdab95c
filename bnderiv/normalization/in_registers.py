"""Norms of rows on a GPU, where one kernel keeps a row in registers (`_gpu.py`)."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax

from bnderiv._cpu import once
from bnderiv._gpu import in_one_array, rows_fit, with_a_sum
from bnderiv._target import apart, by_target
from bnderiv.normalization.groups import Groups
from bnderiv.normalization.units import Unit


def in_registers(measured: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates `body(groups, x, where, n, eps, ...)`: a GPU has `measured(groups, x, n, eps)` for rows.

    That reads x once for any number of sums, so nothing need be assumed and tested. Without a gradient y is computed in
    the same kernel. With a gradient the statistics are saved, as one array.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        def form(result: Callable[[Any], Any]) -> Callable[..., Any]:
            @wraps(body)
            def call(groups: Groups, x: jax.Array, where: jax.Array | None, n: Any, eps: Any, *others: Any) -> Any:
                # A unit of the range is too coarse to be merged with that of another device (`scale_for`).
                if groups.over_devices or not are_rows(groups, x, where):
                    return body(groups, x, where, n, eps, *others)

                def in_one_kernel(x: jax.Array, where: None, n: Any, eps: Any, *_: Any) -> Any:
                    return result(measured(groups, x, n, eps))

                return by_target(x, where, n, eps, *others, cuda=in_one_kernel, default=partial(body, groups))

            return call

        with_gradient: Any = form(in_one_array)
        with_gradient.alone = form(lambda statistics: statistics)
        return with_gradient

    return decorate


def are_rows(groups: Groups, x: jax.Array, where: jax.Array | None) -> bool:
    """Whether a GPU's kernel can keep in registers what shares statistics. With a mask XLA fuses no row."""
    return where is None and not groups.both and rows_fit(x.shape, groups.statistics)


def in_dx(groups: Groups, x: jax.Array, where: jax.Array | None, unit: Unit) -> jax.Array:
    """u for the gradient of x and the sums in it, which are one kernel for rows on a GPU."""
    if not are_rows(groups, x, where):
        return unit.of(x)
    return by_target(x, cuda=lambda x: with_a_sum(unit.of(x), groups.statistics), default=unit.of)


def sums_in_both(
    groups: Groups, x: jax.Array, where: jax.Array | None, unit: Unit, inner: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """`inner(u)` for the gradients of the parameters, and for that of x.

    Per channel it is one number for both. In layer norm it is as large as x: computed once on a CPU, and twice on a
    GPU, where the two are different kernels.
    """
    u = apart(unit).of(x)
    if not groups.statistics:
        shared = inner(u)
        return shared, shared

    def computed_once(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        shared = once(inner(u))
        return shared, shared

    def computed_twice(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return inner(u), inner(with_a_sum(unit.of(x), groups.statistics))

    if not are_rows(groups, x, where):
        return computed_once(x)
    return by_target(x, cuda=computed_twice, default=computed_once)
