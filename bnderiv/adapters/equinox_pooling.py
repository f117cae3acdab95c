"""Pooling under Equinox's names: modules that are called on one example, (channels, spatial axes...)."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv.pooling.avg_pool import avg_pool
from bnderiv.pooling.max_pool import max_pool


def _floating(compute: Callable[[Any, Any], jax.Array], theirs: Any) -> Callable[..., jax.Array]:
    """A `__call__` by `compute` for floating input; other dtypes are left to the class of Equinox."""

    def __call__(self: Any, x: ArrayLike, *, key: jax.Array | None = None) -> jax.Array:
        """Pools one example `x`, shape (channels, spatial axes...); `key` is ignored."""
        return compute(self, x) if _checks.is_float(x) else theirs.__call__(self, jnp.asarray(x), key=key)

    return __call__


def _average(pool: eqx.nn.Pool, x: Any) -> jax.Array:
    every = math.prod(pool.kernel_size)  # cells past the padding count too
    return _of_one(avg_pool, x, divisor_override=every, **_options(pool))


def _maximum(pool: eqx.nn.Pool, x: Any) -> jax.Array:
    return _of_one(max_pool, x, **_options(pool))


def _adaptive_average(pool: eqx.nn.AdaptivePool, x: Any) -> jax.Array:
    return _adaptive(avg_pool, x, pool.target_shape)


def _adaptive_maximum(pool: eqx.nn.AdaptivePool, x: Any) -> jax.Array:
    return _adaptive(max_pool, x, pool.target_shape)


class AvgPool1d(eqx.nn.AvgPool1d):
    """`equinox.nn.AvgPool1d` computed by `bnderiv.avg_pool`; see `AvgPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AvgPool1d(2)(jnp.array([[1.0, 3.0, 5.0]])).tolist()
      [[2.0, 4.0]]
    """

    __init__ = eqx.nn.AvgPool1d.__init__  # otherwise type checkers would make one of the fields; so in each class
    __call__ = _floating(_average, eqx.nn.AvgPool1d)


class AvgPool2d(eqx.nn.AvgPool2d):
    """`equinox.nn.AvgPool2d` computed by `bnderiv.avg_pool`: its arguments, defaults and fields.

    Half precision is accumulated in float32. Where Equinox refuses what `use_ceil` adds to the padding, the result is
    that of `bnderiv.avg_pool`. Padding as large as a window and windows that do not fit raise ValueError. Integers and
    complex numbers are left to Equinox.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AvgPool2d((1, 2), (1, 2))(jnp.array([[[1.0, 3.0, 5.0, 7.0]]])).tolist()
      [[[2.0, 6.0]]]
    """

    __init__ = eqx.nn.AvgPool2d.__init__
    __call__ = _floating(_average, eqx.nn.AvgPool2d)


class AvgPool3d(eqx.nn.AvgPool3d):
    """`equinox.nn.AvgPool3d` computed by `bnderiv.avg_pool`; see `AvgPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AvgPool3d(2)(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel().tolist()
      [3.5]
    """

    __init__ = eqx.nn.AvgPool3d.__init__
    __call__ = _floating(_average, eqx.nn.AvgPool3d)


class MaxPool1d(eqx.nn.MaxPool1d):
    """`equinox.nn.MaxPool1d` computed by `bnderiv.max_pool`; see `MaxPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.MaxPool1d(2)(jnp.array([[1.0, 3.0, 2.0]])).tolist()
      [[3.0, 3.0]]
    """

    __init__ = eqx.nn.MaxPool1d.__init__
    __call__ = _floating(_maximum, eqx.nn.MaxPool1d)


class MaxPool2d(eqx.nn.MaxPool2d):
    """`equinox.nn.MaxPool2d` computed by `bnderiv.max_pool`: its arguments, defaults and fields.

    The gradient goes to the first maximum in row-major order. Errors are those of `AvgPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.MaxPool2d((1, 2), (1, 2))(jnp.array([[[1.0, 3.0, 7.0, 5.0]]])).tolist()
      [[[3.0, 7.0]]]
    """

    __init__ = eqx.nn.MaxPool2d.__init__
    __call__ = _floating(_maximum, eqx.nn.MaxPool2d)


class MaxPool3d(eqx.nn.MaxPool3d):
    """`equinox.nn.MaxPool3d` computed by `bnderiv.max_pool`; see `MaxPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.MaxPool3d(2)(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel().tolist()
      [7.0]
    """

    __init__ = eqx.nn.MaxPool3d.__init__
    __call__ = _floating(_maximum, eqx.nn.MaxPool3d)


class AdaptiveAvgPool1d(eqx.nn.AdaptiveAvgPool1d):
    """`equinox.nn.AdaptiveAvgPool1d` computed by `bnderiv.avg_pool`; see `AdaptiveAvgPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveAvgPool1d(2)(jnp.array([[1.0, 3.0, 5.0]])).tolist()
      [[2.0, 5.0]]
    """

    __init__ = eqx.nn.AdaptiveAvgPool1d.__init__
    __call__ = _floating(_adaptive_average, eqx.nn.AdaptiveAvgPool1d)


class AdaptiveAvgPool2d(eqx.nn.AdaptiveAvgPool2d):
    """`equinox.nn.AdaptiveAvgPool2d` computed by `bnderiv.avg_pool`: its arguments and fields.

    Windows tile each axis. Where the target size does not divide it, the first ones are a cell longer, as in Equinox
    (in PyTorch they overlap). Half precision is accumulated in float32. A target larger than the input raises
    ValueError.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveAvgPool2d((1, 2))(jnp.array([[[1.0, 3.0, 5.0, 7.0]]])).tolist()
      [[[2.0, 6.0]]]
    """

    __init__ = eqx.nn.AdaptiveAvgPool2d.__init__
    __call__ = _floating(_adaptive_average, eqx.nn.AdaptiveAvgPool2d)


class AdaptiveAvgPool3d(eqx.nn.AdaptiveAvgPool3d):
    """`equinox.nn.AdaptiveAvgPool3d` computed by `bnderiv.avg_pool`; see `AdaptiveAvgPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveAvgPool3d(1)(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel().tolist()
      [3.5]
    """

    __init__ = eqx.nn.AdaptiveAvgPool3d.__init__
    __call__ = _floating(_adaptive_average, eqx.nn.AdaptiveAvgPool3d)


class AdaptiveMaxPool1d(eqx.nn.AdaptiveMaxPool1d):
    """`equinox.nn.AdaptiveMaxPool1d` computed by `bnderiv.max_pool`; see `AdaptiveMaxPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveMaxPool1d(2)(jnp.array([[1.0, 3.0, 5.0]])).tolist()
      [[3.0, 5.0]]
    """

    __init__ = eqx.nn.AdaptiveMaxPool1d.__init__
    __call__ = _floating(_adaptive_maximum, eqx.nn.AdaptiveMaxPool1d)


class AdaptiveMaxPool2d(eqx.nn.AdaptiveMaxPool2d):
    """`equinox.nn.AdaptiveMaxPool2d` computed by `bnderiv.max_pool`: its arguments and fields.

    Windows are those of `AdaptiveAvgPool2d`. The gradient goes to one of equal maxima; Equinox divides it.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveMaxPool2d((1, 2))(jnp.array([[[1.0, 3.0, 7.0, 5.0]]])).tolist()
      [[[3.0, 7.0]]]
    """

    __init__ = eqx.nn.AdaptiveMaxPool2d.__init__
    __call__ = _floating(_adaptive_maximum, eqx.nn.AdaptiveMaxPool2d)


class AdaptiveMaxPool3d(eqx.nn.AdaptiveMaxPool3d):
    """`equinox.nn.AdaptiveMaxPool3d` computed by `bnderiv.max_pool`; see `AdaptiveMaxPool2d`.

    Example:
      >>> import bnderiv.equinox, jax.numpy as jnp
      >>> bnderiv.equinox.AdaptiveMaxPool3d(1)(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel().tolist()
      [7.0]
    """

    __init__ = eqx.nn.AdaptiveMaxPool3d.__init__
    __call__ = _floating(_adaptive_maximum, eqx.nn.AdaptiveMaxPool3d)


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
