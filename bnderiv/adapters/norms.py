"""What the layer, group, instance and RMS norms of the adapters share: the core of `bnderiv.layer_norm` over any axes.

A framework chooses the reduced axes and those of its scale and bias apart from each other, and an output dtype unlike
its input's. The library's functions fix both sets of axes; their core does not. Names, shapes and dtypes of parameters
are up to each adapter.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import layer
from bnderiv.adapters.batch_norm import feature_axes, promote
from bnderiv.normalization.across_devices import merge, refusals
from bnderiv.normalization.arguments import epsilon, mapped_axes
from bnderiv.normalization.batch_norm import moments_of, varying_like
from bnderiv.normalization.groups import Affine, ChannelGroups, Groups
from bnderiv.normalization.normalize import normalize as normalize_by
from bnderiv.normalization.rms_norm import by_root_mean_square, mean_square
from bnderiv.normalization.units import Epsilon, Moments, Unit

ChannelGroup = tuple[int, int]  # an axis, and how many neighboring channels along it share statistics


def group_axes(reduction_axes: Any, ndim: int) -> tuple[int, ...]:
    """The reduced axes of Flax's GroupNorm: by default all but the first.

    Raises:
      ValueError: an axis out of range, or the last, which has the channels, is left out.
    """
    if reduction_axes is None:
        return tuple(range(min(1, ndim - 1), ndim))
    axes = feature_axes(reduction_axes, ndim, "reduction_axes")
    if ndim - 1 not in axes:
        raise ValueError(f"reduction_axes must include the last axis, which has the channels, got {reduction_axes}")
    return axes


def instance_axes(axes: Any, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The reduced axes and the feature axes of Flax's InstanceNorm.

    Raises:
      ValueError: an axis out of range, or the first is a feature axis.
    """
    features = feature_axes(axes, ndim, "feature_axes")
    if 0 in features:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the batch axis. "
            f"feature_axes: {axes}"
        )
    return tuple(i for i in range(1, ndim) if i not in features), features


def channel_group(axis: int, channels: int, groups: Any, size: Any) -> ChannelGroup:
    """The channels of a group, of which either the number or the size is given.

    Raises:
      TypeError: it is not an integer.
      ValueError: both are given or neither, or it is no divisor of `channels`.
    """
    if (groups is None) == (size is None):
        raise ValueError(f"either num_groups or group_size must be given, got {groups} and {size}")
    name, given = ("num_groups", groups) if size is None else ("group_size", size)
    divisor = _checks.integer(name, given, at_least=1)
    if channels % divisor:
        raise ValueError(f"{name} must divide the {channels} channels, got {divisor}")
    return axis, channels // divisor if size is None else divisor


def along(name: str, parameter: jax.Array | None, x: jax.Array, axes: tuple[int, ...]) -> jax.Array | None:
    """A parameter with an element for each place along these axes of `x`, reshaped to broadcast against it.

    Raises:
      ValueError: it has another number of elements.
    """
    if parameter is None:
        return None
    shape = tuple(n if i in axes else 1 for i, n in enumerate(x.shape))
    try:
        return parameter.reshape(shape)
    except TypeError as error:
        lengths = tuple(x.shape[i] for i in axes)
        raise ValueError(f"{name} must fit the features of x, of shape {lengths}, got {parameter.shape}") from error


def normalize(
    x: jax.Array,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    reduced: tuple[int, ...],
    *,
    eps: Any,
    dtype: Any,
    mask: Any = None,
    group: ChannelGroup | None = None,
    centered: bool = True,
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> jax.Array:
    """Normalizes x by its own statistics over the axes `reduced`.

    Args:
      scale, bias: broadcast to x. None stands for 1 and 0.
      reduced: axes in order, counted from the front. Without any, each element has its own statistics, masked or not.
      eps: ε, added to the variance or the mean square.
      dtype: that of y.
      mask: broadcasts to x; elements where it is False do not count, but are normalized.
      group: the channels that share statistics; its axis is one of `reduced`. By default all.
      centered: whether by mean and variance, or by the mean square alone.
      axis_name: name, or names, of mapped axes to take the statistics over too, by true counts.
      axis_index_groups: groups of indices along `axis_name` that share statistics.

    Returns:
      y, in the shape of `x`.

    Raises:
      TypeError: `axis_index_groups` that are no sequences of indices.
      ValueError: `scale`, `bias` or `mask` does not broadcast to `x`; groups without `axis_name`, or where JAX does not
        take them.
    """
    shape = x.shape
    affine = [_of_rank(name, a, shape) for name, a in (("scale", scale), ("bias", bias))]
    where = None if mask is None else _checks.mask("mask", jnp.asarray(mask, bool), shape)  # Flax allows 0 and 1, too
    if not x.size:
        return x.astype(dtype)
    x = x.astype(promote(x.dtype, dtype))
    value, root = epsilon(eps, x)
    if group is not None:
        axis, size = group
        if size == 1:
            reduced = tuple(i for i in reduced if i != axis)
        if size in (1, x.shape[axis]):
            group = None
    if not reduced:  # the core needs an axis
        x, *affine = jax.tree.map(lambda a: a[..., None], (x, *affine))
        where = None
        reduced = (x.ndim - 1,)
    devices = mapped_axes(axis_name, axis_index_groups)
    groups = _groups(x.ndim, reduced, group, affine, devices[0] is not None)
    gamma, beta = (_broadcast(groups, x, a, neutral) for a, neutral in zip(affine, (1, 0), strict=True))
    with refusals(devices[1]):
        y = _by_groups(centered, devices, groups, x, where, gamma, beta, value, root)
    return y.reshape(shape).astype(dtype)


def _of_rank(name: str, a: Any, shape: tuple[int, ...]) -> jax.Array | None:
    if a is None:
        return None
    a = jnp.asarray(a)
    padded = (1,) * (len(shape) - a.ndim) + a.shape
    if len(padded) != len(shape) or any(n not in (1, m) for n, m in zip(padded, shape, strict=True)):
        raise ValueError(f"{name} must broadcast to the shape of the input, {shape}, got shape {a.shape}")
    return a.reshape(padded)


def _groups(
    rank: int, reduced: tuple[int, ...], group: ChannelGroup | None, affine: list[Any], over_devices: bool
) -> Groups:
    """Who shares statistics, and who shares scale and bias: along the axes where both of these have length 1.

    Without both it does not matter who would share them; so rows stay rows.
    """
    given = [a.shape for a in affine if a is not None]
    own = [i for i in range(rank) if i not in reduced or (group is not None and i == group[0])]
    features = [i for i in range(rank) if any(shape[i] != 1 for shape in given)]
    if not given:
        features = [rank - 1] if reduced == (rank - 1,) else own
    both = tuple(i for i in range(rank) if i not in features and i not in own)
    statistics = tuple(i for i in range(rank) if i in features and i not in own)
    parameters = tuple(i for i in own if i not in features)
    if group is None:
        return Groups(both, statistics, parameters, over_devices=over_devices)
    return ChannelGroups(both, statistics, parameters, *group, over_devices=over_devices)


def _broadcast(groups: Groups, x: jax.Array, a: jax.Array | None, neutral: float) -> jax.Array:
    """Scale or bias in the one shape of both."""
    shared = groups.both + groups.parameters
    shape, dtype = tuple(1 if i in shared else n for i, n in enumerate(x.shape)), accumulator(x.dtype)
    return jnp.full(shape, neutral, dtype) if a is None else jnp.broadcast_to(a.astype(dtype), shape)


@layer(static=3, result=lambda centered, devices, groups, x, *_: x)
def _by_groups(centered, devices, groups, x, where, gamma, beta, eps, root):
    affine, eps = Affine(gamma, beta), Epsilon(eps, root)
    if centered:
        _, moments = moments_of(groups, x, where, eps, None, *devices)
        return normalize_by(groups, False, x, where, affine, eps, varying_like(x, moments))
    n = groups.count(x, where)
    least_one = n if where is None else jnp.maximum(n, 1)
    if devices[0] is None:
        return by_root_mean_square(groups, x, where, least_one, gamma, beta, eps)
    (scale, _), square = mean_square(groups, x, where, least_one, eps)
    zero = jnp.zeros_like(square)
    _, moments = merge(n, Moments(Unit(scale, zero), zero, square), *devices)  # the same map, with a mean of 0
    return normalize_by(groups, False, x, where, affine, eps, varying_like(x, moments))
