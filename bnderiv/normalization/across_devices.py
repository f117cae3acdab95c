"""A batch sharded over devices: their moments are merged by true counts, in one collective (derivation.md, N26)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv._checks import same_varying
from bnderiv._types import AxisName
from bnderiv.normalization.units import Epsilon, Moments, Unit, above_noise, moved, scale_for

IndexGroups = Sequence[Sequence[int]]


@contextmanager
def refusals(index_groups: IndexGroups | None) -> Iterator[None]:
    """Raises ValueError where JAX's collectives take no groups, as under `vmap`."""
    try:
        yield
    except NotImplementedError as error:
        if index_groups is None:
            raise
        raise ValueError(
            f"axis_index_groups must be None here: JAX's collectives do not take groups in this transform ({error})"
        ) from error


def merge(
    n: jax.Array, moments: Moments, axis_name: AxisName, axis_index_groups: IndexGroups | None
) -> tuple[jax.Array, Moments]:
    """The moments of all devices' elements together, the same on every device. One collective; JAX transposes it.

    Raises:
      ValueError: `axis_index_groups` that are no partition of the devices.
    """
    (scale, origin), mean, var = moments
    n = jnp.broadcast_to(n, mean.shape)
    packed = jnp.stack(same_varying(*(jnp.ravel(a) for a in (n, scale, origin, mean, var))))
    count, scale, origin, mean, var = _gather(packed, axis_name, axis_index_groups)  # (devices, C) each
    count, scale, origin = (lax.stop_gradient(a) for a in (count, scale, origin))
    there = count > 0  # groups of unequal size leave places empty, all 0
    scale = jnp.where(there, scale, 1)
    shift = origin / scale  # K_i
    total = count.sum(0, keepdims=True)
    weight = count / jnp.maximum(total, 1)

    def average(values: jax.Array) -> jax.Array:
        return (weight * values).sum(0, keepdims=True)

    # One unit for all: about the mean of all, in which the largest deviation squared neither over- nor underflows.
    center = lax.stop_gradient(average(shift + mean / scale))
    distance = jnp.abs(lax.stop_gradient(shift - center + mean / scale))
    largest = jnp.where(there, jnp.maximum(distance, jnp.sqrt(lax.stop_gradient(var)) / scale), 0).max(0, keepdims=True)
    finest = jnp.where(there, scale, 0).max(0, keepdims=True)  # at this scale ε s² is a normal number
    finest = jnp.where(finest > 0, finest, 1)
    common = jnp.minimum(scale_for(largest, center, over_devices=True), finest)
    # Each device's mean in it: (K_i − K) first, as these are near each other, and so exact. Ratios are powers of two.
    ratio = common / scale
    mean = jnp.where(there, (origin * ratio - center * common) + mean * ratio, 0)
    merged = average(mean)
    var = average(var * ratio * ratio + (mean - merged) ** 2)  # (N26)
    var = above_noise(var, merged**2)
    floor = Epsilon(None, 1 / finest)  # the merged unit is no finer than the finest of the devices
    better = moved(Moments(Unit(common, center * common), merged, var), floor)
    _, (unit, *values) = lax.stop_gradient(better)
    # With the derivatives of a mean and a variance.
    times = unit.scale / common
    changes = (a - lax.stop_gradient(a) for a in (merged * times, var * times * times))
    moments = Moments(unit, *(value + change for value, change in zip(values, changes, strict=True)))
    return jax.tree.map(lambda a: a.reshape(n.shape), (total, moments))


def _gather(packed: jax.Array, axis_name: AxisName, index_groups: IndexGroups | None) -> jax.Array:
    """(5, C) of every device as (5, devices, C), known to be equal on all (which `all_gather` would not be)."""
    index, size = lax.axis_index(axis_name), lax.psum(1, axis_name)
    if index_groups is not None:
        if sorted(i for group in index_groups for i in group) != list(range(size)):
            raise ValueError(f"axis_index_groups must have each index from 0 to {size - 1} once, got {index_groups}")
        position = np.zeros(size, np.int32)
        for group in index_groups:
            position[list(group)] = np.arange(len(group))
        size = max(len(group) for group in index_groups)
        index = jnp.asarray(position)[index].astype(index.dtype)
    mine = jnp.arange(size, dtype=index.dtype) == index
    slots = jnp.where(mine[:, None], packed[:, None], 0)
    return lax.psum(slots, axis_name, axis_index_groups=index_groups)
