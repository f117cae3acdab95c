"""Layer, RMS, group and instance norm for Flax linen: `bnderiv.linen` has them."""

from typing import Any

import flax.linen as nn
import jax
from flax.linen.dtypes import canonicalize_dtype
from jax.typing import ArrayLike

from bnderiv.adapters.batch_norm import feature_axes, real_array
from bnderiv.adapters.norms import along, channel_group, group_axes, instance_axes, normalize


class LayerNorm(nn.LayerNorm):
    """`flax.linen.LayerNorm` computed as `bnderiv.layer_norm`: its arguments, defaults, parameters, shapes and dtypes.

    The reduced axes and those of the parameters may differ, in any way. Checkpoints of either load into the other.
    Differences from Flax:

    * Statistics and gradient are right at any mean and scale. The gradient is the closed form and saves only x and the
      statistics. Forward-mode differentiation must be asked for, by `bnderiv.forward_mode.enabled()`.
    * Half precision is always computed in float32. Where a mask leaves nothing, y is finite.
    * With a mask and `axis_name`, means are weighted by true counts; Flax averages the devices' averages.
    * Complex input raises.

    Attributes:
      use_fast_variance: accepted without effect; the naive variance is never used.
      force_float32_reductions: accepted without effect.
      others: as in `flax.linen.LayerNorm`.

    Example:
      >>> import bnderiv.linen, jax, jax.numpy as jnp
      >>> model = bnderiv.linen.LayerNorm()
      >>> x = jnp.array([[10000.0, 10002.0], [1.0, 3.0]], jnp.float32)
      >>> model.apply(model.init(jax.random.key(0), x), x).round(2).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]
    """

    @nn.compact
    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes each example of `x` by its own statistics.

        Args:
          x: real input of any rank that has the axes.
          mask: broadcasts to `x`; elements where it is False do not count, but are normalized.

        Returns:
          Array of the shape of `x`; its dtype is `dtype`, by default the common one of `x` and the parameters.

        Raises:
          TypeError: `x` is complex, or has a dtype that JAX does not have.
          ValueError: an axis out of range, or a mask that does not broadcast.
          NameError: no map around the call has `axis_name`.
        """
        x = real_array("x", x)
        reduced = feature_axes(self.reduction_axes, x.ndim, "reduction_axes")
        features = feature_axes(self.feature_axes, x.ndim, "feature_axes")
        return _normalize(self, x, reduced, features, mask=mask)


class RMSNorm(nn.RMSNorm):
    """`flax.linen.RMSNorm` computed as `bnderiv.rms_norm`: its arguments, defaults, parameters, shapes and dtypes.

    Differences from Flax are those of `bnderiv.linen.LayerNorm`.

    Example:
      >>> import bnderiv.linen, jax, jax.numpy as jnp
      >>> model = bnderiv.linen.RMSNorm()
      >>> x = jnp.array([[2e30, -2e30], [4.0, 4.0]], jnp.float32)
      >>> model.apply(model.init(jax.random.key(0), x), x).round(2).tolist()
      [[1.0, -1.0], [1.0, 1.0]]
    """

    @nn.compact
    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Divides each example of `x` by its root mean square. Arguments, result and errors: `LayerNorm.__call__`."""
        x = real_array("x", x)
        reduced = feature_axes(self.reduction_axes, x.ndim, "reduction_axes")
        features = feature_axes(self.feature_axes, x.ndim, "feature_axes")
        return _normalize(self, x, reduced, features, mask=mask, centered=False)


class GroupNorm(nn.GroupNorm):
    """`flax.linen.GroupNorm` computed as `bnderiv.group_norm`: its arguments, defaults, parameters, shapes and dtypes.

    Differences from Flax are those of `bnderiv.linen.LayerNorm`. A mask need not have the length of the channels.

    Example:
      >>> import bnderiv.linen, jax, jax.numpy as jnp
      >>> model = bnderiv.linen.GroupNorm(num_groups=2)
      >>> x = jnp.array([[1.0, 3.0, 10000.0, 10002.0]], jnp.float32)
      >>> model.apply(model.init(jax.random.key(0), x), x).round(2).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]
    """

    @nn.compact
    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes each example of `x` by the statistics of groups of its channels, which are the last axis.

        Args:
          x: real input with channels on the last axis.
          mask: broadcasts to `x`; elements where it is False do not count, but are normalized.

        Returns:
          Array of the shape of `x`; its dtype is `dtype`, by default the common one of `x` and the parameters.

        Raises:
          TypeError: `x` is complex, or has a dtype that JAX does not have.
          ValueError: `reduction_axes` without the last, not exactly one of `num_groups` and `group_size`, one that does
            not divide the channels, or a mask that does not broadcast.
          NameError: no map around the call has `axis_name`.
        """
        x = real_array("x", x)
        reduced = group_axes(self.reduction_axes, x.ndim)
        group = channel_group(x.ndim - 1, x.shape[-1], self.num_groups, self.group_size)
        return _normalize(self, x, reduced, (x.ndim - 1,), mask=mask, group=group)


class InstanceNorm(nn.InstanceNorm):
    """`flax.linen.InstanceNorm` computed as `bnderiv.instance_norm`: its arguments, parameters, shapes and dtypes.

    Differences from Flax are those of `bnderiv.linen.LayerNorm`.

    Example:
      >>> import bnderiv.linen, jax, jax.numpy as jnp
      >>> model = bnderiv.linen.InstanceNorm()
      >>> x = jnp.array([[[1.0, 10000.0], [3.0, 10002.0]]], jnp.float32)
      >>> model.apply(model.init(jax.random.key(0), x), x).round(2).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]
    """

    @nn.compact
    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes each feature of each example by its own statistics. The rest is as in `LayerNorm.__call__`.

        Raises:
          ValueError: as there, or the features include the first axis, which is the batch.
        """
        x = real_array("x", x)
        reduced, features = instance_axes(self.feature_axes, x.ndim)
        return _normalize(self, x, reduced, features, mask=mask)


def _normalize(module: Any, x: jax.Array, reduced: Any, features: tuple[int, ...], **how: Any) -> jax.Array:
    """Creates the parameters of a module within its call, and normalizes by them."""
    shape = [x.shape[a] for a in features]

    def parameter(name: str, used: bool) -> jax.Array | None:
        return module.param(name, getattr(module, f"{name}_init"), shape, module.param_dtype) if used else None

    scale, bias = parameter("scale", module.use_scale), parameter("bias", getattr(module, "use_bias", False))
    dtype = canonicalize_dtype(x, scale, bias, dtype=module.dtype)
    scale, bias = along("scale", scale, x, features), along("bias", bias, x, features)
    if not module.is_initializing():  # there may be no map yet that has axis_name
        how |= {"axis_name": module.axis_name, "axis_index_groups": module.axis_index_groups}
    return normalize(x, scale, bias, reduced, eps=module.epsilon, dtype=dtype, **how)
