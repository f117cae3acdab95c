"""The value that a mean is assumed to be near, where none is given: the mean of a small sample."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv.normalization.groups import Groups
from bnderiv.normalization.units import masked

# Of n elements, the sample has at least SAMPLE and at least TIMES_ROOT √n. Its mean is then off by about σ/4, and up to
# σ is near enough. One huge element x makes σ at least |x|/√n, and so moves the sample's mean by σ/2 at most.
SAMPLE, TIMES_ROOT = 16, 2
SMALL = 32  # If an example has fewer elements, one place of every example would be a large part of x.
TILE = 128  # elements of the innermost axis that a TPU reads at once


def by_default_about_a_sample(body: Callable[..., Any]) -> Callable[..., Any]:
    """`body(groups, x, where, n, eps, assumed_mean)`; an assumed mean of None becomes that of a sample."""

    @wraps(body)
    def call(groups: Any, x: Any, where: Any, n: Any, eps: Any, assumed_mean: Any) -> Any:
        shift = sample_mean(groups, x, where) if assumed_mean is None else assumed_mean
        return body(groups, x, where, n, eps, shift)

    return call


def sample_mean(groups: Groups, x: jax.Array, where: jax.Array | None) -> jax.Array:
    """The mean of a small sample.

    In batch norm it has a few places of every example, so that a sharded batch stays sharded. (If examples have fewer
    than `SMALL` elements, it has only some examples.) If each example has its own statistics, it has a few indices of
    their first axis and all of the axes within, which are contiguous.
    """
    sizes = {i: x.shape[i] for i in groups.reduced if isinstance(x.shape[i], int)}
    over_batch = 0 in sizes
    within = math.prod(sizes.values())
    wanted = max(1, max(SAMPLE, TIMES_ROOT * math.isqrt(within * groups.each)) // groups.each)
    places, taken = [slice(None)] * x.ndim, 1
    for i, size in sizes.items():
        within //= size  # elements at one index of this axis
        if i == 0:
            indices = max(wanted, size * within // SMALL)
        else:
            indices = math.ceil(wanted / (taken if over_batch else taken * within))
        places[i] = _places(size, indices, innermost=i == x.ndim - 1)
        taken *= len(range(size)[places[i]])
    x = _taken(x, places)  # one slice: between two, XLA materializes the first
    where = None if where is None else _taken(where, places)
    n = groups.count(x, where)
    mean = groups.total(masked(where, x.astype(n.dtype))) / (n if where is None else jnp.maximum(n, 1))
    # Without the clamp XLA may fuse the division into several kernels, not all of which round it.
    most = np.asarray(jnp.finfo(mean.dtype).max)
    return lax.clamp(-most, mean, most)


def _places(size: int, number: int, innermost: bool) -> slice:
    """About `number` indices, evenly spaced; in the innermost axis neighbors, as a TPU reads whole tiles."""
    stride = max(1, size // number)
    if stride == 1:
        return slice(None)
    if innermost:
        start = (size - number) // 2
        if start // TILE != (start + number - 1) // TILE:  # to the nearest tile
            start = (start + TILE // 2) // TILE * TILE
        return slice(start, start + number)
    return slice(stride // 2, None, stride)


def _taken(a: jax.Array, places: list[slice]) -> jax.Array:
    """These places of x, or of a mask that broadcasts to x: its axes of length 1 stay."""
    bounds = [(0, n, 1) if n == 1 or p == slice(None) else p.indices(n) for n, p in zip(a.shape, places, strict=True)]
    return lax.slice(a, *zip(*bounds, strict=True))
