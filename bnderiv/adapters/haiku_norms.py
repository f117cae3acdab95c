"""Layer, instance, group and RMS norm for Haiku: `bnderiv.haiku` has them."""

import sys
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv.adapters.batch_norm import feature_axes, promote, real_array
from bnderiv.adapters.haiku_policy import Follower
from bnderiv.adapters.norms import normalize


class LayerNorm(Follower, hk.LayerNorm):
    """`haiku.LayerNorm` computed as `bnderiv.layer_norm`: its arguments, defaults, parameters, shapes and names.

    The parameters `scale` and `offset` have Haiku's paths, shapes and dtypes, so the trees of either fit the other. The
    reduced axes and those of the parameters may differ, in any way. Differences from Haiku:

    * Statistics and gradient are right at any mean and scale. The gradient is the closed form and saves only the input
      and the statistics. Forward-mode differentiation must be asked for, by `bnderiv.forward_mode.enabled()`.
    * Half precision is computed in float32. `use_fast_variance` has no effect.
    * Complex input raises, and so does an axis out of range.
    * A policy that `haiku.mixed_precision` has for Haiku's class when the layer is made applies to ours too, unless
      ours has one already.

    Args:
      others: as in `haiku.LayerNorm`.

    Example:
      >>> import bnderiv.haiku, haiku, jax, jax.numpy as jnp
      >>> model = haiku.without_apply_rng(haiku.transform(lambda x: bnderiv.haiku.LayerNorm(-1, True, True)(x)))
      >>> x = jnp.array([[10000.0, 10002.0], [1.0, 3.0]])
      >>> model.apply(model.init(jax.random.key(0), x), x).round(2).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]
    """

    _theirs = hk.LayerNorm

    def __call__(self, inputs: ArrayLike, scale: ArrayLike | None = None, offset: ArrayLike | None = None) -> jax.Array:
        """Normalizes each example of `inputs` by its own statistics.

        Args:
          inputs: real, of any rank that has the axes.
          scale, offset: arrays that broadcast to the shape of `inputs`, if the module creates none itself.

        Returns:
          Array of the shape of `inputs`.

        Raises:
          TypeError: `inputs` is complex, or has a dtype that JAX does not have.
          ValueError: `scale` or `offset` is given though the module creates it or does not broadcast, or an axis is out
            of range.
        """
        _check_at_most_once(self, scale, offset)
        inputs = real_array("inputs", inputs)
        reduced = _axes("axis", self.axis, inputs.ndim)
        implicit = (self.create_scale or self.create_offset) and not self._param_axis_passed_explicitly
        if implicit and reduced != (inputs.ndim - 1,) and _must_be_explicit():
            raise ValueError(f"where axis is not the last one, pass `param_axis` in the ctor too, got axis={self.axis}")
        shape = _parameter_shape(self.param_axis, inputs)
        if self.create_scale:
            scale = hk.get_parameter("scale", shape, inputs.dtype, self.scale_init)
        if self.create_offset:
            offset = hk.get_parameter("offset", shape, inputs.dtype, self.offset_init)
        return normalize(inputs, scale, offset, reduced, eps=self.eps, dtype=_dtype(inputs, scale, offset))


class InstanceNorm(LayerNorm, hk.InstanceNorm):
    """`haiku.InstanceNorm` computed as `bnderiv.instance_norm`: its arguments, defaults, parameters, shapes and names.

    Differences from Haiku are those of `bnderiv.haiku.LayerNorm`.

    Example:
      >>> import bnderiv.haiku, haiku, jax, jax.numpy as jnp
      >>> model = haiku.without_apply_rng(haiku.transform(lambda x: bnderiv.haiku.InstanceNorm(True, True)(x)))
      >>> x = jnp.array([[[1.0, 10000.0], [3.0, 10002.0]]])
      >>> model.apply(model.init(jax.random.key(0), x), x).round(2).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]
    """

    _theirs = hk.InstanceNorm


class GroupNorm(Follower, hk.GroupNorm):
    """`haiku.GroupNorm` computed as `bnderiv.group_norm`: its arguments, defaults, parameters, shapes and names.

    Differences from Haiku are those of `bnderiv.haiku.LayerNorm`. Also, a negative `axis` counts from the end of the
    input, where Haiku counts from the end of one whose channels are split into groups.

    Example:
      >>> import bnderiv.haiku, haiku, jax, jax.numpy as jnp
      >>> model = haiku.without_apply_rng(haiku.transform(lambda x: bnderiv.haiku.GroupNorm(2)(x)))
      >>> x = jnp.array([[1.0, 3.0, 10000.0, 10002.0]])
      >>> model.apply(model.init(jax.random.key(0), x), x).round(2).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]
    """

    _theirs = hk.GroupNorm

    def __call__(self, x: ArrayLike, scale: ArrayLike | None = None, offset: ArrayLike | None = None) -> jax.Array:
        """Normalizes each example of `x` by the statistics of groups of its channels.

        Args:
          x: real, in the layout of `data_format`.
          scale, offset: arrays that broadcast to the shape of `x`, if the module creates none itself.

        Returns:
          Array of the shape of `x`.

        Raises:
          TypeError: `x` is complex, or has a dtype that JAX does not have.
          ValueError: `scale` or `offset` is given though the module creates it or does not broadcast, the number of
            groups does not divide the channels, an axis is out of range, or the rank is not that of an earlier call.
        """
        x = real_array("x", x)
        if self.rank is not None and x.ndim != self.rank:
            raise ValueError(
                f"The rank of the inputs cannot change between calls, the original was {self.rank}, got {x.ndim}"
            )
        _check_at_most_once(self, scale, offset)
        channel_axis = _checks.axis("the channel axis of data_format", self.channel_index, x.ndim)
        size, rest = divmod(x.shape[channel_axis], _checks.integer("groups", self.groups, at_least=1))
        if rest:
            raise ValueError(
                "The number of channels must be divisible by the number of groups, "
                f"got {x.shape[channel_axis]} channels and {self.groups} groups"
            )
        self.rank = x.ndim
        reduced = _axes("axis", self.axis, x.ndim)
        shape = (x.shape[channel_axis],) + (1,) * (x.ndim - 1 - channel_axis)
        if self.create_scale:
            scale = hk.get_parameter("scale", shape, x.dtype, self.scale_init)
        if self.create_offset:
            offset = hk.get_parameter("offset", shape, x.dtype, self.offset_init)
        group = (channel_axis, size) if channel_axis in reduced else None
        return normalize(x, scale, offset, reduced, eps=self.eps, dtype=_dtype(x, scale, offset), group=group)


class RMSNorm(Follower, hk.RMSNorm):
    """`haiku.RMSNorm` computed as `bnderiv.rms_norm`: its arguments, defaults, parameters, shapes and names.

    Differences from Haiku are those of `bnderiv.haiku.LayerNorm`.

    Example:
      >>> import bnderiv.haiku, haiku, jax, jax.numpy as jnp
      >>> model = haiku.without_apply_rng(haiku.transform(lambda x: bnderiv.haiku.RMSNorm(-1)(x)))
      >>> x = jnp.array([[2e30, -2e30], [4.0, 4.0]])
      >>> model.apply(model.init(jax.random.key(0), x), x).round(2).tolist()
      [[1.0, -1.0], [1.0, 1.0]]
    """

    _theirs = hk.RMSNorm

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Divides each example of `inputs` by its root mean square.

        Args:
          inputs: real, of any rank that has the axes.

        Returns:
          Array of the shape of `inputs`.

        Raises:
          TypeError: `inputs` is complex, or has a dtype that JAX does not have.
          ValueError: an axis is out of range.
        """
        inputs = real_array("inputs", inputs)
        reduced, scale = _axes("axis", self.axis, inputs.ndim), None
        if self.create_scale:
            shape = _parameter_shape(self.param_axis, inputs)
            scale = hk.get_parameter("scale", shape, inputs.dtype, self.scale_init)
        return normalize(inputs, scale, None, reduced, eps=self.eps, dtype=_dtype(inputs, scale), centered=False)


def _check_at_most_once(module: Any, scale: Any, offset: Any) -> None:
    for name, value in (("scale", scale), ("offset", offset)):
        if value is not None and getattr(module, f"create_{name}"):
            raise ValueError(f"Cannot pass `{name}` at call time if `create_{name}=True`.")


def _must_be_explicit() -> bool:
    """Whether Haiku's own layer refuses the default of `param_axis`, which is to change."""
    return getattr(sys.modules[LayerNorm._theirs.__module__], "ERROR_IF_PARAM_AXIS_NOT_EXPLICIT", False)


def _axes(name: str, axis: Any, rank: int) -> tuple[int, ...]:
    return tuple(range(rank)[axis]) if isinstance(axis, slice) else feature_axes(tuple(axis), rank, name)


def _parameter_shape(param_axis: Any, inputs: jax.Array) -> tuple[int, ...]:
    axes = _axes("param_axis", param_axis, inputs.ndim)
    if axes == (inputs.ndim - 1,):
        return inputs.shape[-1:]
    return tuple(n if a in axes else 1 for a, n in enumerate(inputs.shape))


def _dtype(x: jax.Array, *parameters: Any) -> Any:
    """The dtype of y: the common one of the arguments, by JAX's current promotion rules."""
    floating = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else promote(x.dtype, jnp.float32)
    return jnp.result_type(floating, *(a for a in parameters if a is not None))
