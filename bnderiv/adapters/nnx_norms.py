"""Layer, RMS, group and instance norm for Flax NNX: `bnderiv.nnx` has them."""

from typing import Any

import jax
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike

from bnderiv.adapters.batch_norm import feature_axes, real_array
from bnderiv.adapters.norms import along, group_axes, instance_axes, normalize


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm` computed as `bnderiv.layer_norm`: its arguments, defaults, variables, shapes and dtypes.

    The state of either fits the other. Differences from Flax are those of `bnderiv.linen.LayerNorm`. Also, with the
    default `promote_dtype` only x is cast: parameters keep the precision they are stored in.

    Args:
      num_features: the number of features.
      **others: as in `flax.nnx.LayerNorm`; `use_fast_variance` has no effect.

    Example:
      >>> import bnderiv.nnx, flax.nnx, jax.numpy as jnp
      >>> layer = bnderiv.nnx.LayerNorm(2, rngs=flax.nnx.Rngs(0))
      >>> layer(jnp.array([[10000.0, 10002.0], [1.0, 3.0]], jnp.float32)).round(2).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]
    """

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes each example of `x` by its own statistics.

        Args:
          x: real input of any rank that has the axes.
          mask: broadcasts to `x`; elements where it is False do not count, but are normalized.

        Returns:
          Array of the shape of `x`; its dtype is `dtype`, by default the common one of `x` and the variables.

        Raises:
          TypeError: `x` is complex, or has a dtype that JAX does not have.
          ValueError: an axis out of range, features that do not fit, or a mask that does not broadcast.
          NameError: no map around the call has `axis_name`.
        """
        x = real_array("x", x)
        reduced = feature_axes(self.reduction_axes, x.ndim, "reduction_axes")
        features = feature_axes(self.feature_axes, x.ndim, "feature_axes")
        return _normalize(self, x, (self.scale, self.bias), reduced, features, mask=mask)


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm` computed as `bnderiv.rms_norm`: its arguments, defaults, variables, shapes and dtypes.

    Differences from Flax are those of `bnderiv.nnx.LayerNorm`.

    Example:
      >>> import bnderiv.nnx, flax.nnx, jax.numpy as jnp
      >>> layer = bnderiv.nnx.RMSNorm(2, rngs=flax.nnx.Rngs(0))
      >>> layer(jnp.array([[2e30, -2e30], [4.0, 4.0]], jnp.float32)).round(2).tolist()
      [[1.0, -1.0], [1.0, 1.0]]
    """

    def __call__(self, x: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
        """Divides each example of `x` by its root mean square. Arguments, result and errors: `LayerNorm.__call__`."""
        x = real_array("x", x)
        reduced = feature_axes(self.reduction_axes, x.ndim, "reduction_axes")
        features = feature_axes(self.feature_axes, x.ndim, "feature_axes")
        return _normalize(self, x, (self.scale,), reduced, features, mask=mask, centered=False)


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm` computed as `bnderiv.group_norm`: its arguments, defaults, variables, shapes and dtypes.

    Differences from Flax are those of `bnderiv.nnx.LayerNorm`. A mask need not have the length of the channels, and any
    `reduction_axes` with the last one are computed as in linen, where Flax NNX fails for some.

    Example:
      >>> import bnderiv.nnx, flax.nnx, jax.numpy as jnp
      >>> layer = bnderiv.nnx.GroupNorm(4, num_groups=2, rngs=flax.nnx.Rngs(0))
      >>> layer(jnp.array([[1.0, 3.0, 10000.0, 10002.0]], jnp.float32)).round(2).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]
    """

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes each example of `x` by the statistics of groups of its channels, which are the last axis.

        Args:
          x: real input with the features on the last axis.
          mask: broadcasts to `x`; elements where it is False do not count, but are normalized.

        Returns:
          Array of the shape of `x`; its dtype is `dtype`, by default the common one of `x` and the variables.

        Raises:
          TypeError: `x` is complex, or has a dtype that JAX does not have.
          ValueError: `reduction_axes` without the last, channels other than the features, or a mask that does not
            broadcast.
          NameError: no map around the call has `axis_name`.
        """
        x = real_array("x", x)
        if x.shape[-1] != self.num_groups * self.group_size:
            raise ValueError(f"x must have {self.num_groups * self.group_size} channels last, got shape {x.shape}")
        reduced, group = group_axes(self.reduction_axes, x.ndim), (x.ndim - 1, self.group_size)
        return _normalize(self, x, (self.scale, self.bias), reduced, (x.ndim - 1,), mask=mask, group=group)


class InstanceNorm(nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm` computed as `bnderiv.instance_norm`: its arguments, variables, shapes and dtypes.

    Differences from Flax are those of `bnderiv.nnx.LayerNorm`.

    Example:
      >>> import bnderiv.nnx, flax.nnx, jax.numpy as jnp
      >>> layer = bnderiv.nnx.InstanceNorm(2, rngs=flax.nnx.Rngs(0))
      >>> layer(jnp.array([[[1.0, 10000.0], [3.0, 10002.0]]], jnp.float32)).round(2).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]
    """

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes each feature of each example by its own statistics. The rest is as in `LayerNorm.__call__`.

        Raises:
          ValueError: as there, or the features include the first axis, which is the batch.
        """
        x = real_array("x", x)
        reduced, features = instance_axes(self.feature_axes, x.ndim)
        return _normalize(self, x, (self.scale, self.bias), reduced, features, mask=mask)


def _normalize(module: Any, x: jax.Array, variables: Any, reduced: Any, features: Any, **how: Any) -> jax.Array:
    """Normalizes by a module's scale, and bias if it may have one."""
    stored: Any = [None if v is None else v[...] for v in variables]
    x, *promoted = module.promote_dtype((x, *stored), dtype=module.dtype)
    parameters = stored if module.promote_dtype is dtypes.promote_dtype else promoted
    dtype = dtypes.canonicalize_dtype(x, *parameters, dtype=module.dtype)
    scale, bias = (along("num_features", a, x, features) for a in (*parameters, None)[:2])
    how |= {"axis_name": module.axis_name, "axis_index_groups": module.axis_index_groups}
    return normalize(x, scale, bias, reduced, eps=module.epsilon, dtype=dtype, **how)
