"""One batch spread over several devices: their moments merged by true counts in one message (derivation.md, N26)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv import _checks
from bnderiv.normalization.moments import Moments, recentre

AxisName = Any  # a hashable name, or a tuple of them
Groups = Sequence[Sequence[int]]


def merge(moments: Moments, axis_name: AxisName, axis_index_groups: Groups | None) -> Moments:
    """The moments of all devices' elements together, the same on every device. One collective; JAX transposes it.

    Raises:
      ValueError: `axis_index_groups` that do not share out the devices, or where JAX's collectives do not take them.
    """
    message = jnp.stack(_checks.same_varying(*moments))
    n, shift, scale, mean, var = _gather(message, axis_name, axis_index_groups)  # (devices, C) each
    n, shift, scale = (lax.stop_gradient(a) for a in (n, shift, scale))
    scale = jnp.where(n > 0, scale, 1)  # groups of unequal size leave places empty, all 0
    total = n.sum(0, keepdims=True)
    weight = n / jnp.maximum(total, 1)

    def average(values: jax.Array) -> jax.Array:
        return (weight * values).sum(0, keepdims=True)

    # The smallest scale of a device that has anything serves all; powers of two, so the ratios are exact and ≤ 1.
    common = jnp.where(n > 0, scale, jnp.inf).min(0, keepdims=True)
    common = jnp.where(jnp.isfinite(common), common, 1)
    ratio = jnp.where(n > 0, common / scale, 0)
    # Every device's mean about the merged one, rounded: (K_i − K) first, as these are near each other and so exact.
    center = lax.stop_gradient(average(shift + mean / scale))
    mean = (shift - center) * common + mean * ratio
    merged = average(mean)
    var = average(var * ratio**2 + (mean - merged) ** 2)  # (N26)
    return recentre(Moments(*(a[0] for a in (total, center, common, merged, var))))


def _gather(message: jax.Array, axis_name: AxisName, groups: Groups | None) -> jax.Array:
    """(5, C) of every device as (5, devices, C), known to be equal on all (which `all_gather` would not be)."""
    index, size = lax.axis_index(axis_name), lax.psum(1, axis_name)
    if groups is not None:
        if sorted(i for group in groups for i in group) != list(range(size)):
            raise ValueError(f"axis_index_groups must have each index from 0 to {size - 1} once, got {groups}")
        position = np.zeros(size, np.int32)
        for group in groups:
            position[list(group)] = np.arange(len(group))
        size = max(len(group) for group in groups)
        index = jnp.asarray(position)[index].astype(index.dtype)
    mine = jnp.arange(size, dtype=index.dtype) == index
    slots = jnp.where(mine[:, None], message[:, None], 0)
    try:
        return lax.psum(slots, axis_name, axis_index_groups=groups)
    except NotImplementedError as error:
        raise ValueError(
            f"axis_index_groups must be None here: JAX's collectives do not take groups in this transform ({error})"
        ) from error
