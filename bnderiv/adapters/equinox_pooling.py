"""Pooling under Equinox's names: modules that are called on one example, (channels, spatial axes...)."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv.pooling.avg_pool import avg_pool
from bnderiv.pooling.max_pool import max_pool


class _Average(eqx.nn.Pool):
    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """The mean over each window of `x`, shape (channels, spatial axes...); `key` is ignored."""
        if not _checks.is_float(x):
            return super().__call__(x, key=key)
        every = math.prod(self.kernel_size)  # cells past the padding count too
        return _of_one(avg_pool, x, divisor_override=every, **_options(self))


class _Maximum(eqx.nn.Pool):
    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """The maximum of each window of `x`, shape (channels, spatial axes...); `key` is ignored."""
        if not _checks.is_float(x):
            return super().__call__(x, key=key)
        return _of_one(max_pool, x, **_options(self))


class AvgPool1d(_Average, eqx.nn.AvgPool1d):
    """`equinox.nn.AvgPool1d` computed by `bnderiv.avg_pool`; see `AvgPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AvgPool1d(2)(jnp.array([[1.0, 3.0, 5.0]])).tolist()
      [[2.0, 4.0]]
    """


class AvgPool2d(_Average, eqx.nn.AvgPool2d):
    """`equinox.nn.AvgPool2d` computed by `bnderiv.avg_pool`: its arguments, defaults and fields.

    Half precision is accumulated in float32. Where Equinox refuses what `use_ceil` adds to the padding, the result is
    that of `bnderiv.avg_pool`. Padding as large as a window and windows that do not fit raise ValueError. Integers and
    complex numbers are left to Equinox.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AvgPool2d((1, 2), (1, 2))(jnp.array([[[1.0, 3.0, 5.0, 7.0]]])).tolist()
      [[[2.0, 6.0]]]
    """


class AvgPool3d(_Average, eqx.nn.AvgPool3d):
    """`equinox.nn.AvgPool3d` computed by `bnderiv.avg_pool`; see `AvgPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AvgPool3d(2)(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel().tolist()
      [3.5]
    """


class MaxPool1d(_Maximum, eqx.nn.MaxPool1d):
    """`equinox.nn.MaxPool1d` computed by `bnderiv.max_pool`; see `MaxPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.MaxPool1d(2)(jnp.array([[1.0, 3.0, 2.0]])).tolist()
      [[3.0, 3.0]]
    """


class MaxPool2d(_Maximum, eqx.nn.MaxPool2d):
    """`equinox.nn.MaxPool2d` computed by `bnderiv.max_pool`: its arguments, defaults and fields.

    The gradient goes to the first maximum in row-major order. Errors are those of `AvgPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.MaxPool2d((1, 2), (1, 2))(jnp.array([[[1.0, 3.0, 7.0, 5.0]]])).tolist()
      [[[3.0, 7.0]]]
    """


class MaxPool3d(_Maximum, eqx.nn.MaxPool3d):
    """`equinox.nn.MaxPool3d` computed by `bnderiv.max_pool`; see `MaxPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.MaxPool3d(2)(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel().tolist()
      [7.0]
    """


class _AdaptiveAverage(eqx.nn.AdaptivePool):
    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """The means of `x`, shape (channels, spatial axes...), in `target_shape`; `key` is ignored."""
        if not _checks.is_float(x):
            return super().__call__(x, key=key)
        return _adaptive(avg_pool, x, self.target_shape)


class _AdaptiveMaximum(eqx.nn.AdaptivePool):
    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """The maxima of `x`, shape (channels, spatial axes...), in `target_shape`; `key` is ignored."""
        if not _checks.is_float(x):
            return super().__call__(x, key=key)
        return _adaptive(max_pool, x, self.target_shape)


class AdaptiveAvgPool1d(_AdaptiveAverage, eqx.nn.AdaptiveAvgPool1d):
    """`equinox.nn.AdaptiveAvgPool1d` computed by `bnderiv.avg_pool`; see `AdaptiveAvgPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveAvgPool1d(2)(jnp.array([[1.0, 3.0, 5.0]])).tolist()
      [[2.0, 5.0]]
    """


class AdaptiveAvgPool2d(_AdaptiveAverage, eqx.nn.AdaptiveAvgPool2d):
    """`equinox.nn.AdaptiveAvgPool2d` computed by `bnderiv.avg_pool`: its arguments and fields.

    Windows tile each axis. Where the target size does not divide it, the first ones are a cell longer, as in Equinox
    (in PyTorch they overlap). Half precision is accumulated in float32. A target larger than the input raises
    ValueError.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveAvgPool2d((1, 2))(jnp.array([[[1.0, 3.0, 5.0, 7.0]]])).tolist()
      [[[2.0, 6.0]]]
    """


class AdaptiveAvgPool3d(_AdaptiveAverage, eqx.nn.AdaptiveAvgPool3d):
    """`equinox.nn.AdaptiveAvgPool3d` computed by `bnderiv.avg_pool`; see `AdaptiveAvgPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveAvgPool3d(1)(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel().tolist()
      [3.5]
    """


class AdaptiveMaxPool1d(_AdaptiveMaximum, eqx.nn.AdaptiveMaxPool1d):
    """`equinox.nn.AdaptiveMaxPool1d` computed by `bnderiv.max_pool`; see `AdaptiveMaxPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveMaxPool1d(2)(jnp.array([[1.0, 3.0, 5.0]])).tolist()
      [[3.0, 5.0]]
    """


class AdaptiveMaxPool2d(_AdaptiveMaximum, eqx.nn.AdaptiveMaxPool2d):
    """`equinox.nn.AdaptiveMaxPool2d` computed by `bnderiv.max_pool`: its arguments and fields.

    Windows are those of `AdaptiveAvgPool2d`. The gradient goes to one of equal maxima; Equinox divides it.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveMaxPool2d((1, 2))(jnp.array([[[1.0, 3.0, 7.0, 5.0]]])).tolist()
      [[[3.0, 7.0]]]
    """


class AdaptiveMaxPool3d(_AdaptiveMaximum, eqx.nn.AdaptiveMaxPool3d):
    """`equinox.nn.AdaptiveMaxPool3d` computed by `bnderiv.max_pool`; see `AdaptiveMaxPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveMaxPool3d(1)(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel().tolist()
      [7.0]
    """


def _options(pool: eqx.nn.Pool) -> dict[str, Any]:
    return {
        "window": pool.kernel_size,
        "strides": pool.stride,
        "padding": pool.padding,
        "ceil_mode": pool.use_ceil,
    }


def _of_one(pool: Callable[..., jax.Array], x: Any, **options: Any) -> jax.Array:
    """`pool` of one example, (channels, spatial axes...)."""
    x = _checks.float_array("x", x)
    rank = len(options["window"]) + 1
    _checks.rank_is("x", x, rank, "channels and spatial axes")
    return pool(x[None], channel_axis=1, **options)[0]


def _adaptive(pool: Callable[..., jax.Array], x: Any, target_shape: Any) -> jax.Array:
    x = _checks.float_array("x", x)
    _checks.rank_is("x", x, len(target_shape) + 1, "channels and spatial axes")
    sizes, targets = x.shape[1:], _checks.integers("target_shape", target_shape, x.ndim - 1)
    if any(target > size for size, target in zip(sizes, targets, strict=True)):
        raise ValueError(f"target_shape must be at most that of the spatial axes of x, {sizes}, got {targets}")
    # Axes that the target divides are pooled together, each other one by itself. So a mean is rounded at the end.
    y = x.astype(accumulator(x.dtype)) if pool is avg_pool else x
    y = _of_one(pool, y, window=[1 if n % m else n // m for n, m in zip(sizes, targets, strict=True)])
    for axis, (size, target) in enumerate(zip(sizes, targets, strict=True), 1):
        cells, longer = divmod(size, target)
        if longer:  # windows have a cell more
            parts = jnp.split(y, [longer * (cells + 1)], axis)
            windows = ([n if a == axis else 1 for a in range(1, x.ndim)] for n in (cells + 1, cells))
            pooled = (_of_one(pool, part, window=window) for part, window in zip(parts, windows, strict=True))
            y = jnp.concatenate(list(pooled), axis)
    return y.astype(x.dtype)
