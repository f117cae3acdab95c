"""Layer, group and RMS norm for Equinox: `bnderiv.equinox` has them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv.adapters.batch_norm import promote, real_array
from bnderiv.adapters.norms import normalize

_NO_STATE: Any = object()


class LayerNorm(eqx.nn.LayerNorm):
    """`equinox.nn.LayerNorm` computed as `bnderiv.layer_norm`: its arguments, defaults and fields.

    Fields have Equinox's shapes and dtypes, so leaves saved from either load into the other. Differences from Equinox:

    * Statistics and gradient are right at any mean and scale. The gradient is the closed form and saves only x and the
      statistics. Forward-mode differentiation must be asked for, by `bnderiv.forward_mode.enabled()`.
    * Complex input raises.

    Args:
      others: as in `equinox.nn.LayerNorm`.

    Example:
      >>> import bnderiv.equinox, jax, jax.numpy as jnp
      >>> layer = bnderiv.equinox.LayerNorm(2)
      >>> jax.vmap(layer)(jnp.array([[10000.0, 10002.0], [1.0, 3.0]])).round(2).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]
    """

    __init__ = eqx.nn.LayerNorm.__init__  # otherwise type checkers would make one of the fields

    def __call__(self, x: ArrayLike, state: Any = _NO_STATE, *, key: jax.Array | None = None) -> Any:
        """Normalizes one example by its own statistics.

        Args:
          x: one example, of the shape given to the constructor, real.
          state: returned as it is.
          key: ignored.

        Returns:
          Array of the shape and dtype of `x`, and the state if one was given.

        Raises:
          TypeError: `x` is complex, or has a dtype that JAX does not have.
          ValueError: `x` has another shape.
        """
        x = _of_shape(x, self.shape)
        with jax.named_scope("bnderiv.equinox.LayerNorm"):
            return _result(_normalize(x, *_affine(self), range(x.ndim), self.eps), state)


class GroupNorm(eqx.nn.GroupNorm):
    """`equinox.nn.GroupNorm` computed as `bnderiv.group_norm`: its arguments, defaults and fields.

    Differences from Equinox are those of `bnderiv.equinox.LayerNorm`. Also, other channels than the layer was made for
    raise, and groups that do not divide them.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> layer = bnderiv.equinox.GroupNorm(2, 4)
      >>> layer(jnp.array([1.0, 3.0, 10000.0, 10002.0])).round(2).tolist()
      [-1.0, 1.0, -1.0, 1.0]
    """

    __init__ = eqx.nn.GroupNorm.__init__  # otherwise type checkers would make one of the fields

    def __call__(self, x: ArrayLike, state: Any = _NO_STATE, *, key: jax.Array | None = None) -> Any:
        """Normalizes one example by the statistics of groups of its channels.

        Args:
          x: one example, shape (channels, ...), real.
          state: returned as it is.
          key: ignored.

        Returns:
          Array of the shape and dtype of `x`, and the state if one was given.

        Raises:
          TypeError: `x` is complex, or has a dtype that JAX does not have.
          ValueError: `x` has no axis, or its channels do not fit.
        """
        x = real_array("x", x)
        channels = self.channels if self.channelwise_affine else None
        if not x.ndim or x.shape[0] % self.groups or channels not in (None, x.shape[0]):
            wanted = f"a multiple of {self.groups}" if channels is None else str(channels)
            raise ValueError(f"x must have {wanted} channels first, got shape {x.shape}")
        affine = (self.weight, self.bias) if self.channelwise_affine else (None, None)
        weight, bias = (None if a is None else a.reshape(-1, *(1,) * (x.ndim - 1)) for a in affine)
        with jax.named_scope("bnderiv.equinox.GroupNorm"):
            group = (0, x.shape[0] // self.groups)
            return _result(_normalize(x, weight, bias, range(x.ndim), self.eps, group=group), state)


class RMSNorm(eqx.nn.RMSNorm):
    """`equinox.nn.RMSNorm` computed as `bnderiv.rms_norm`: its arguments, defaults and fields.

    Differences from Equinox are those of `bnderiv.equinox.LayerNorm`.

    Example:
      >>> import bnderiv.equinox, jax, jax.numpy as jnp
      >>> layer = bnderiv.equinox.RMSNorm(2)
      >>> jax.vmap(layer)(jnp.array([[2e30, -2e30], [4.0, 4.0]])).round(2).tolist()
      [[1.0, -1.0], [1.0, 1.0]]
    """

    __init__ = eqx.nn.RMSNorm.__init__  # otherwise type checkers would make one of the fields

    def __call__(self, x: ArrayLike, state: Any = _NO_STATE, *, key: jax.Array | None = None) -> Any:
        """Divides one example by its root mean square. Arguments, result and errors: `LayerNorm.__call__`."""
        x = _of_shape(x, self.shape)
        with jax.named_scope("bnderiv.equinox.RMSNorm"):
            return _result(_normalize(x, *_affine(self), range(x.ndim), self.eps, centered=False), state)


def _of_shape(x: Any, shape: tuple[int, ...]) -> jax.Array:
    x = real_array("x", x)
    if x.shape != shape:
        raise ValueError(
            f"x must have the shape of the layer, {shape}, got {x.shape}: call it on a batch by jax.vmap(layer)(x)"
        )
    return x


def _affine(layer: Any) -> tuple[Any, Any]:
    return layer.weight if layer.use_weight else None, layer.bias if layer.use_bias else None


def _normalize(x: jax.Array, weight: Any, bias: Any, axes: range, eps: float, **how: Any) -> jax.Array:
    """In the dtype of x, whatever that of the parameters."""
    computed = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else promote(x.dtype, jnp.float32)
    return normalize(x, weight, bias, tuple(axes), eps=eps, dtype=computed, **how).astype(x.dtype)


def _result(y: jax.Array, state: Any) -> Any:
    return y if state is _NO_STATE else (y, state)
