"""The measurement of rows on a GPU, where one kernel keeps a row in registers and takes all of its sums."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax

from bnderiv._target import by_target, gpus_fuse_rows
from bnderiv.normalization.groups import Groups

LONGEST = 16384  # elements: for longer rows XLA for an H100 takes a kernel, and a read of x, for each sum


def in_registers(measured: Callable[..., Any]) -> Callable[..., Any]:
    """For a rule on `body(groups, x, where, n, eps, ...)`: without a gradient, a GPU has `measured(groups, x, n, eps)`.

    It reads x once for any number of sums, so nothing need be assumed and tested. XLA makes one kernel of them and of
    the map, as long as only y is wanted. With a gradient the statistics are wanted too, and each would be a kernel.
    """

    def alone(body: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(body)
        def call(groups: Groups, x: jax.Array, where: jax.Array | None, n: Any, eps: Any, *others: Any) -> Any:
            if not (where is None and are_rows(groups, x.shape) and gpus_fuse_rows()):
                return body(groups, x, where, n, eps, *others)

            def in_one_kernel(x: jax.Array, where: None, n: Any, eps: Any, *_: Any) -> Any:
                return measured(groups, x, n, eps)

            return by_target(x, where, n, eps, *others, cuda=in_one_kernel, default=partial(body, groups))

        return call

    return alone


def are_rows(groups: Groups, shape: tuple[Any, ...]) -> bool:
    """Whether statistics are shared along the last axis alone, and it is short enough."""
    *_, length = shape
    along_the_last = not groups.both and groups.statistics == (len(shape) - 1,)
    return along_the_last and isinstance(length, int) and length <= LONGEST  # an export may have a symbolic one
