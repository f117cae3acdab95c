"""Pooling under Haiku's signature: a window over all axes, or one integer."""

import warnings
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv.adapters.haiku_policy import Follower
from bnderiv.adapters.pooling import Ints, pool_axes
from bnderiv.pooling import avg_pool as _avg_pool
from bnderiv.pooling import max_pool as _max_pool


def avg_pool(
    value: ArrayLike,
    window_shape: int | Sequence[int],
    strides: int | Sequence[int],
    padding: str,
    channel_axis: int | None = -1,
) -> jax.Array:
    """The mean over each window: `haiku.avg_pool` computed by `bnderiv.avg_pool`.

    Padding does not count. Half precision is accumulated in float32. Integers and complex numbers are left to Haiku.

    Args:
      value: array of any rank.
      window_shape: the cells of a window along each axis of `value`, batch and channels included; a shorter sequence is
        of the last axes. An integer stands for all axes but the first and the channels.
      strides: steps between windows, likewise.
      padding: "VALID" or "SAME".
      channel_axis: where the channels are, for an integer; None if there are none.

    Returns:
      Array of the rank and dtype of `value`.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an unknown padding, lengths or axes that do not fit, empty `value`, or a window larger than it.

    Example:
      >>> import bnderiv.haiku, jax.numpy as jnp
      >>> bnderiv.haiku.avg_pool(jnp.array([[[1.0], [3.0], [5.0]]]), (1, 2, 1), (1, 1, 1), "SAME").ravel().tolist()
      [2.0, 4.0, 5.0]
    """
    value = jnp.asarray(value)
    if not _checks.is_float(value):
        return _theirs.avg_pool(value, window_shape, strides, padding, channel_axis)
    pool = _avg_pool.avg_pool if padding == "VALID" else _mean_without_padding
    return _pool(pool, value, window_shape, strides, padding, channel_axis)


def max_pool(
    value: ArrayLike,
    window_shape: int | Sequence[int],
    strides: int | Sequence[int],
    padding: str,
    channel_axis: int | None = -1,
) -> jax.Array:
    """The maximum of each window: `haiku.max_pool` computed by `bnderiv.max_pool`.

    The gradient goes to the first maximum in row-major order. Arguments, result and errors are those of `avg_pool`.

    Example:
      >>> import bnderiv.haiku, jax.numpy as jnp
      >>> bnderiv.haiku.max_pool(jnp.array([[[1.0], [3.0], [2.0]]]), (1, 2, 1), (1, 1, 1), "VALID").ravel().tolist()
      [3.0, 3.0]
    """
    value = jnp.asarray(value)
    if not _checks.is_float(value):
        return _theirs.max_pool(value, window_shape, strides, padding, channel_axis)
    return _pool(_max_pool.max_pool, value, window_shape, strides, padding, channel_axis)


class AvgPool(Follower, hk.AvgPool):
    """`haiku.AvgPool` computed by `bnderiv.haiku.avg_pool`.

    Example:
      >>> import bnderiv.haiku, haiku, jax.numpy as jnp
      >>> model = haiku.transform(lambda x: bnderiv.haiku.AvgPool((2, 1), (2, 1), "VALID")(x))
      >>> model.apply({}, None, jnp.array([[1.0], [3.0]])).tolist()
      [[2.0]]
    """

    _theirs = hk.AvgPool

    def __call__(self, value: ArrayLike) -> jax.Array:
        return avg_pool(value, self.window_shape, self.strides, self.padding, self.channel_axis)


class MaxPool(Follower, hk.MaxPool):
    """`haiku.MaxPool` computed by `bnderiv.haiku.max_pool`.

    Example:
      >>> import bnderiv.haiku, haiku, jax.numpy as jnp
      >>> model = haiku.transform(lambda x: bnderiv.haiku.MaxPool((2, 1), (2, 1), "VALID")(x))
      >>> model.apply({}, None, jnp.array([[1.0], [3.0]])).tolist()
      [[3.0]]
    """

    _theirs = hk.MaxPool

    def __call__(self, value: ArrayLike) -> jax.Array:
        return max_pool(value, self.window_shape, self.strides, self.padding, self.channel_axis)


# Haiku's own, also where they are replaced by these.
_theirs = SimpleNamespace(avg_pool=hk.avg_pool, max_pool=hk.max_pool)
# Made once, so that eager calls find its compiled program.
_mean_without_padding = partial(_avg_pool.avg_pool, count_include_pad=False)


def _pool(pool: Any, value: Any, window_shape: Any, strides: Any, padding: Any, channel_axis: Any) -> jax.Array:
    if padding not in ("SAME", "VALID"):
        raise ValueError(f'padding must be "SAME" or "VALID", got {padding!r}')
    x = _checks.float_array("value", value)
    _checks.nonempty("value", x)
    if any(isinstance(size, int) and size != 1 for size in (window_shape, strides)):
        # As Haiku warns: under vmap the batch axis is hidden, so an integer is taken for other axes.
        warnings.warn(
            "an integer window_shape or strides is wrong under vmap; give one for each axis", DeprecationWarning, 3
        )
    window = _for_each_axis("window_shape", window_shape, channel_axis, x.ndim)
    steps = _for_each_axis("strides", strides, channel_axis, x.ndim)
    pooled = [i for i, sizes in enumerate(zip(window, steps, strict=True)) if sizes != (1, 1)]
    if not pooled:
        return x
    first, last = pooled[0], pooled[-1] + 1
    return pool_axes(pool, x, first, window[first:last], steps[first:last], padding)


def _for_each_axis(name: str, size: Any, channel_axis: Any, rank: int) -> Ints:
    size = _checks.listed(size)
    if isinstance(size, Sequence) and not isinstance(size, str):
        if len(size) > rank:
            raise ValueError(f"{name} must have at most {rank} entries, the rank of value, got {size!r}")
        return (1,) * (rank - len(size)) + _checks.integers(name, size, len(size))
    size = _checks.integer(name, size, at_least=1)
    channel = None if channel_axis is None else _checks.axis("channel_axis", channel_axis, rank)
    return tuple(1 if axis in (0, channel) else size for axis in range(rank))
