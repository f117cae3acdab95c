"""The order in which a TPU has the axes of x, and a norm's measurement in that order."""

import math
from collections.abc import Callable
from functools import partial, wraps
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp

from bnderiv import _target
from bnderiv.normalization.groups import Groups

SUBLANES, LANES = 8, 128  # a TPU pads the two innermost axes to multiples of these


def tpu_layout(body: Callable[..., Any]) -> Callable[..., Any]:
    """`body(groups, x, *arrays)`; a TPU runs it on x with the axes in the order of its memory.

    A TPU's memory has (256, 112, 112, 64) with the batch innermost, since 64 channels fill only half of the lanes. XLA
    follows that everywhere but in the branch of a conditional. There it wants the last axis innermost: it reserves a
    padded copy of x, twice its size, even if the branch is never taken. With the axes moved before, it copies nothing.
    """

    @wraps(body)
    def call(groups: Any, *arrays: Any) -> Any:
        order = common_order(arrays[0].shape)
        axes = tuple(range(len(order)))
        # A CPU's rows (`_cpu.py`) are no `Groups`. A row stays where it is innermost: whether examples or places come
        # next depends on what made x.
        if order == axes or not isinstance(groups, Groups) or order[-1] in groups.statistics:
            return body(groups, *arrays)
        places = tuple(order.index(i) for i in axes)

        def moved(by: tuple[int, ...], tree: Any) -> Any:
            return jax.tree.map(lambda a: jnp.transpose(a, by) if jnp.ndim(a) == len(axes) else a, tree)

        def in_order(*arrays: Any) -> Any:
            return moved(places, body(groups.moved(places), *moved(order, arrays)))

        return _target.by_target(*arrays, tpu=in_order, default=partial(body, groups))

    return call


def common_order(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """The axes of x in the order of a TPU's memory, if it is the same for any number of devices that share the batch.

    Otherwise they stay: in a wrong order x would be copied at every step.
    """
    batch, *others = shape
    orders = {compact_order((batch // n, *others)) for n in _target.numbers_of_devices() if batch % n == 0}
    return orders.pop() if len(orders) == 1 else tuple(range(len(shape)))


def compact_order(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """The axes from the outermost to the innermost, as XLA chooses them for the least padding on a TPU.

    Of orders with equal padding it takes the one with later axes inside.
    """
    axes = tuple(range(len(shape)))
    if len(axes) < 2 or not all(isinstance(n, int) for n in shape):  # an export may have a symbolic one
        return axes

    def padded(pair: tuple[int, int]) -> float:
        second, innermost = (shape[i] for i in pair)
        return math.ceil(second / SUBLANES) / second * math.ceil(innermost / LANES) / innermost

    second, innermost = min(permutations(axes, 2), key=lambda pair: (padded(pair), -pair[1], -pair[0]))
    return (*(i for i in axes if i not in (second, innermost)), second, innermost)
