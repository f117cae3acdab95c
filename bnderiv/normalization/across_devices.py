"""A batch sharded over devices: their moments are merged by true counts, in one collective (derivation.md, N26)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv._checks import same_varying
from bnderiv._types import AxisName
from bnderiv.normalization.units import Epsilon, Moments, Unit, above_noise, recentered, scale_for

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


class Devices(NamedTuple):
    """What each device has: (devices, C) each. A group that is smaller than others has places with n = 0."""

    n: jax.Array
    counted: jax.Array  # n > 0
    unit: Unit
    mean: jax.Array
    var: jax.Array


def merge(
    n: jax.Array, moments: Moments, axis_name: AxisName, axis_index_groups: IndexGroups | None
) -> tuple[jax.Array, Moments]:
    """The moments of all devices' elements together, the same on every device. One collective; JAX transposes it.

    Raises:
      ValueError: `axis_index_groups` that are no partition of the devices.
    """
    shape = moments.mean.shape
    devices = _of_all(n, moments, axis_name, axis_index_groups)
    total = devices.n.sum(0, keepdims=True)
    weight = devices.n / jnp.maximum(total, 1)

    def average(values: jax.Array) -> jax.Array:
        return (weight * values).sum(0, keepdims=True)

    unit, finest = _common_unit(devices, average)
    mean, var = _in_unit(unit, devices)
    merged = average(mean)
    var = above_noise(average(var + (mean - merged) ** 2), merged**2)  # (N26)
    moments = _about_the_mean(Moments(unit, merged, var), finest)
    return jax.tree.map(lambda a: a.reshape(shape), (total, moments))


def _common_unit(devices: Devices, average: Callable[[jax.Array], jax.Array]) -> tuple[Unit, jax.Array]:
    """A unit about the merged mean in which the square of the largest deviation neither over- nor underflows.

    And the finest scale of the devices: the unit is no finer, as ε s² is to be a normal number.
    """
    counted, scale = devices.counted, devices.unit.scale
    shift = devices.unit.origin / scale  # K_i
    center = lax.stop_gradient(average(shift + devices.mean / scale))
    distance = jnp.abs(lax.stop_gradient(shift - center + devices.mean / scale))
    deviation = jnp.sqrt(lax.stop_gradient(devices.var)) / scale
    largest = jnp.where(counted, jnp.maximum(distance, deviation), 0).max(0, keepdims=True)
    finest = jnp.where(counted, scale, 0).max(0, keepdims=True)
    finest = jnp.where(finest > 0, finest, 1)
    common = jnp.minimum(scale_for(largest, center, over_devices=True), finest)
    return Unit(common, center * common), finest


def _in_unit(unit: Unit, devices: Devices) -> tuple[jax.Array, jax.Array]:
    """Each device's mean and variance in the common unit. Ratios of scales are powers of two, so exact."""
    ratio = unit.scale / devices.unit.scale
    # (K_i − K) first: the two are near each other, so their difference is exact.
    mean = (devices.unit.origin * ratio - unit.origin) + devices.mean * ratio
    return jnp.where(devices.counted, mean, 0), devices.var * ratio * ratio


def _about_the_mean(moments: Moments, finest: jax.Array) -> Moments:
    """In the unit of deviations, but no finer than `finest`.

    For derivatives, mean and variance are only rescaled: K' and s' have none.
    """
    unit, *values = lax.stop_gradient(recentered(moments, Epsilon(None, 1 / finest)))
    ratio = unit.scale / moments.unit.scale
    zeros = (a - lax.stop_gradient(a) for a in (moments.mean * ratio, moments.var * ratio * ratio))  # in value
    return Moments(unit, *(value + zero for value, zero in zip(values, zeros, strict=True)))


def _of_all(n: jax.Array, moments: Moments, axis_name: AxisName, axis_index_groups: IndexGroups | None) -> Devices:
    """Every device's moments, on every device. Counts and units have no derivatives."""
    (scale, origin), mean, var = moments
    mine = jnp.broadcast_to(n, mean.shape), scale, origin, mean, var
    packed = jnp.stack(same_varying(*(jnp.ravel(a) for a in mine)))
    n, scale, origin, mean, var = _gather(packed, axis_name, axis_index_groups)
    n, scale, origin = (lax.stop_gradient(a) for a in (n, scale, origin))
    counted = n > 0
    return Devices(n, counted, Unit(jnp.where(counted, scale, 1), origin), mean, var)


def _gather(packed: jax.Array, axis_name: AxisName, index_groups: IndexGroups | None) -> jax.Array:
    """(5, C) of every device as (5, devices, C). JAX knows it to be equal on all, as no result of `all_gather` is."""
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
