"""One batch spread over several devices: their moments merged by true counts in one message (derivation.md, N26)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv.normalization.moments import Moments, recentre

AxisName = Any  # a hashable name, or a tuple of them
Groups = Sequence[Sequence[int]]


def merge(moments: Moments, axis_name: AxisName, axis_index_groups: Groups | None) -> Moments:
    """The moments of all devices' elements together, the same on every device. One collective; JAX transposes it.

    Raises:
      ValueError: `axis_index_groups` where JAX's collectives do not take them.
    """
    # n, K and s carry no gradient; m and v do.
    n, shift, scale, mean, var = _gather(jnp.stack(moments), axis_name, axis_index_groups)
    n, shift, scale = (lax.stop_gradient(a) for a in (n, shift, scale))
    total = jnp.maximum(n.sum(0), 1)
    weight = n / total  # (devices, C)

    common_scale = jnp.where(n > 0, scale, jnp.inf).min(0)
    common_scale = jnp.where(jnp.isfinite(common_scale), common_scale, 1)
    units = jnp.where(n > 0, common_scale / scale, 0)  # ≤ 1, a power of two: a device's own units in common ones
    # The merged mean, rounded; then every device's mean about it, (K_i − K) first: near, so exact.
    center = lax.stop_gradient((weight * (shift + mean / scale)).sum(0))
    mean = (shift - center) * common_scale + mean * units
    merged = (weight * mean).sum(0)
    var = (weight * (var * units**2 + (mean - merged) ** 2)).sum(0)
    return recentre(Moments(n.sum(0), center, common_scale, merged, var))


def _gather(message: jax.Array, axis_name: AxisName, groups: Groups | None) -> jax.Array:
    """(5, C) of every device as (5, devices, C), known to be equal on all (which `all_gather` would not be)."""
    index = lax.axis_index(axis_name)
    if groups is None:
        size = lax.psum(1, axis_name)
    else:
        size = max(len(group) for group in groups)
        position = np.zeros(sum(len(group) for group in groups), np.int32)
        for group in groups:
            position[list(group)] = np.arange(len(group))
        index = jnp.asarray(position)[index]
    mine = jnp.arange(size) == index
    slots = jnp.where(mine[:, None], message[:, None], 0)
    try:
        return lax.psum(slots, axis_name, axis_index_groups=groups)
    except NotImplementedError as error:
        raise ValueError(
            f"axis_index_groups must be None here: JAX's collectives do not take groups in this transform ({error})"
        ) from error
