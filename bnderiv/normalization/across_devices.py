"""A batch sharded over devices: their moments are merged by true counts, in one collective (derivation.md, N26)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv._checks import same_varying
from bnderiv._types import AxisName
from bnderiv.normalization.units import Moments, Unit, finite, scale_for

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
    """What each device has: (devices, C) each. A group that is smaller than others has places of weight 0."""

    weight: jax.Array  # n_i / n
    scale: jax.Array  # s_i
    shift: jax.Array  # K_i
    mean: jax.Array  # m_i
    var: jax.Array  # v_i

    def average(self, values: jax.Array) -> jax.Array:
        """Over the elements of all devices; (1, C)."""
        return (self.weight * values).sum(0, keepdims=True)


def merge(
    n: jax.Array, moments: Moments, axis_name: AxisName, axis_index_groups: IndexGroups | None
) -> tuple[jax.Array, Moments]:
    """The moments of all devices' elements together, the same on every device. One collective; JAX transposes it.

    Raises:
      ValueError: `axis_index_groups` that are no partition of the devices.
    """
    shape = moments.mean.shape
    total, devices = _of_all(n, moments, axis_name, axis_index_groups)
    unit = _common_unit(lax.stop_gradient(devices))
    ratio = unit.scale / devices.scale
    # (K_i − K) first: the two are near each other, so their difference is exact.
    means = (devices.shift * unit.scale - unit.origin) + devices.mean * ratio
    means = jnp.where(devices.weight > 0, means, 0)
    mean = devices.average(means)
    var = devices.average(devices.var * ratio * ratio + (means - mean) ** 2)  # (N26)
    return jax.tree.map(lambda a: a.reshape(shape), (total, Moments(unit, mean, var)))


def _common_unit(devices: Devices) -> Unit:
    """K is the merged mean, and s the unit of the largest deviation from it.

    But s is no finer than the finest s_i, as ε s² is to be a normal number.
    """
    shift, scale = devices.shift, devices.scale
    center = devices.average(shift)
    center = center + finite(devices.average(shift - center))  # rounded once: where all K_i are equal, K is K_i
    size = jnp.maximum(jnp.abs(shift - center), jnp.sqrt(devices.var) / scale)
    largest = size.max(0, keepdims=True, where=devices.weight > 0, initial=0)
    common = jnp.minimum(scale_for(largest, center), scale.max(0, keepdims=True))
    return Unit(common, center * common)


def _of_all(
    n: jax.Array, moments: Moments, axis_name: AxisName, axis_index_groups: IndexGroups | None
) -> tuple[jax.Array, Devices]:
    """How many elements all have, and every device's moments, on every device. Counts and units have no derivatives."""
    (scale, origin), mean, var = moments
    mine = jnp.broadcast_to(n, mean.shape), scale, origin, mean, var
    packed = jnp.stack(same_varying(*(jnp.ravel(a) for a in mine)))
    n, scale, origin, mean, var = _gather(packed, axis_name, axis_index_groups)
    n, scale, origin = (lax.stop_gradient(a) for a in (n, scale, origin))
    total = n.sum(0, keepdims=True)
    scale = jnp.where(scale > 0, scale, 1)  # a place without a device has 0
    return total, Devices(n / jnp.maximum(total, 1), scale, origin / scale, mean, var)


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
