"""Norms of rows on accelerators: statistics of the features of one example.

A GPU keeps a row in registers (`_gpu.py`). A TPU takes the sums of a row in the kernel that makes it.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._cpu import once
from bnderiv._gpu import in_one_array, rows_fit, start_of_row, with_a_sum
from bnderiv._target import apart, by_target
from bnderiv.normalization.groups import Groups
from bnderiv.normalization.row_unit import RowUnit
from bnderiv.normalization.units import Unit

# XLA for JAX 0.10 does not fuse y with the sums of a layer norm.
FUSES_Y = jax.__version_info__ >= (0, 12)


def rows(*, on_gpu: Callable[..., Any], on_tpu: Any = None) -> Callable[..., Any]:
    """Decorates `body(groups, x, where, n, eps, ...)`, for rows.

    A GPU calls `on_gpu(groups, x, n, eps, alone)` instead. It reads x once, however many sums it takes. So it assumes
    no mean and tests none. If `alone`, without a gradient, y is computed in the same kernel. With one the statistics
    are saved, as one array. A TPU calls `on_tpu(groups, x, where, n, eps, again)`, where `again()` is that of the body.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        def form(alone: bool) -> Callable[..., Any]:
            @wraps(body)
            def call(groups: Groups, x: jax.Array, where: jax.Array | None, n: Any, eps: Any, *others: Any) -> Any:
                def in_one_kernel(x: jax.Array, where: None, n: Any, eps: Any, *_: Any) -> Any:
                    statistics = on_gpu(groups, x, n, eps, alone)
                    return statistics if alone else in_one_array(statistics)

                forms: dict[str, Callable[..., Any]] = {}
                # The statistics of several devices are merged in powers of two.
                if not groups.over_devices and are_rows(groups, x, where):
                    forms["cuda"] = in_one_kernel
                default = partial(body, groups)
                if on_tpu and not groups.both:
                    forms["tpu"] = lambda *arguments: on_tpu(groups, *arguments[:4], partial(default, *arguments))
                arguments = (x, where, n, eps, *others)
                if not forms:
                    return _with_r(default)(*arguments)
                forms = {name: _with_r(form) for name, form in forms.items()}
                return by_target(*arguments, default=_with_r(default), **forms)

            return call

        with_gradient: Any = form(alone=False)
        with_gradient.alone = form(alone=True) if FUSES_Y else with_gradient
        return with_gradient

    return decorate


def _with_r(measure: Callable[..., Any]) -> Callable[..., Any]:
    """`measure`, with r an array in each `RowUnit`: from the branch of a `cond` XLA would not see that it is 1."""

    def with_r(unit: Any) -> Any:
        if not isinstance(unit, RowUnit) or unit.r is not None:
            return unit
        one = jnp.ones_like(unit.quadruple)
        return unit._replace(r=lax.select(one == unit.quadruple, one, one))  # under `vmap` it has the mapped axis

    @wraps(measure)
    def call(*arguments: Any) -> Any:
        return jax.tree.map(with_r, measure(*arguments), is_leaf=lambda a: isinstance(a, RowUnit))

    return call


def are_rows(groups: Groups, x: jax.Array, where: jax.Array | None) -> bool:
    """Whether what shares statistics is a row that a GPU keeps in registers. XLA does not fuse sums of masked rows."""
    return where is None and not groups.both and rows_fit(x.shape, groups.statistics)


def in_dx(groups: Groups, x: jax.Array, where: jax.Array | None, unit: Unit | RowUnit) -> jax.Array:
    """u, as the gradient of x uses it. For rows on a GPU, that gradient and its sums are one kernel."""
    u = unit.of(x)
    return start_of_row(u, groups.statistics) if are_rows(groups, x, where) else u


def for_parameters_and_x(
    groups: Groups,
    x: jax.Array,
    where: jax.Array | None,
    unit: Unit | RowUnit,
    inner: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """`inner(u)` for the gradients of the parameters, and for that of x.

    In batch norm it is one number per channel, for both. In layer norm it is as large as x. A CPU computes it once. A
    GPU computes it twice for rows, as two kernels need it.
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
