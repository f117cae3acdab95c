"""Checks of the norms' arguments, and the reshaping of gamma and beta that makes them broadcast against x."""

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._types import Axes
from bnderiv.normalization.units import Epsilon


def normalized_axes(axis: Axes, ndim: int) -> tuple[int, ...]:
    """`axis`, an integer, a sequence or an array of NumPy, counted from the front, in order.

    Raises:
      TypeError: any other type.
      ValueError: out of range, no axis, or one twice.
    """
    given = _checks.listed(axis)
    several = isinstance(given, Sequence) and not isinstance(given, str)
    axes = [_checks.axis("axis", a, ndim) for a in (given if several else (given,))]
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"axis must name at least one axis, and none twice, got {axis!r}")
    return tuple(sorted(axes))


def parameter(name: str, value: Any, x: jax.Array, axes: tuple[int, ...], neutral: float) -> jax.Array:
    """Gamma or beta, of the shape of x along `axes`. None stands for `neutral`, 1 or 0.

    Raises:
      TypeError: no floating dtype.
      ValueError: another shape.
    """
    shape = tuple(x.shape[a] for a in axes)
    if value is None:
        return jnp.full(shape, neutral, accumulator(x.dtype))
    value = _checks.float_array(name, value)
    _checks.shape_is(
        name, value, shape, f"that of x along {'axis' if len(axes) == 1 else 'axes'} {str(axes)[1:-1].rstrip(',')}"
    )
    return value


def with_channels(x: Any, channel_axis: Any, **vectors: Any) -> tuple[Any, ...]:
    """x, its channel axis counted from the front, and each vector, which has one number per channel.

    Raises:
      TypeError: no floating dtype.
      ValueError: x is empty or of rank 1, the axis is out of range, or a vector has another shape.
    """
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 2, "batch and channels")
    _checks.nonempty("x", x)
    axis = _checks.axis("channel_axis", channel_axis, x.ndim)
    for name, value in vectors.items():
        vectors[name] = _checks.float_array(name, value)
        _checks.shape_is(name, vectors[name], (x.shape[axis],), "one per channel of x")
    return x, axis, *vectors.values()


def mapped_axes(axis_name: Any, index_groups: Any) -> tuple[Any, tuple[tuple[int, ...], ...] | None]:
    """`axis_name`, a name or a tuple of names, with None for an empty one, and `axis_index_groups` as tuples.

    Raises:
      TypeError: `axis_name` cannot be hashed, or groups are not sequences of integers.
      ValueError: groups without `axis_name`.
    """
    if isinstance(axis_name, list):
        axis_name = tuple(axis_name)
    if not isinstance(axis_name, Hashable):
        raise TypeError(f"axis_name must be a name or a tuple of names, got {axis_name!r}")
    if index_groups is not None and axis_name is None:
        raise ValueError("axis_index_groups must come with axis_name, got axis_name=None")
    axis_name = None if axis_name == () else axis_name
    if index_groups is None:
        return axis_name, None
    try:
        return axis_name, tuple(tuple(_checks.integer("axis_index_groups", i) for i in group) for group in index_groups)
    except TypeError:
        raise TypeError(f"axis_index_groups must be sequences of indices, got {index_groups!r}") from None


def laid(x: jax.Array, axes: tuple[int, ...], a: jax.Array) -> jax.Array:
    """`a`, whose axes are the `axes` of x, so that it broadcasts against x; in the accumulator's dtype."""
    return lax.expand_dims(a.astype(accumulator(x.dtype)), [i for i in range(x.ndim) if i not in axes])


def epsilon(eps: Any, x: jax.Array) -> Epsilon:
    """ε for this x.

    Raises:
      TypeError: no real number.
      ValueError: negative, or above what the accumulator's dtype holds. (A traced value is not checked.)
    """
    dtype = accumulator(x.dtype)
    return Epsilon.of(nonnegative("eps", eps, dtype), dtype)


def nonnegative(name: str, value: Any, dtype: Any) -> Any:
    """`value`, a real scalar of at least 0 that the dtype holds. (A traced value is not checked.)"""
    _real_number(name, value)
    if not isinstance(value, Tracer):
        try:
            fits = 0 <= float(value) <= float(jnp.finfo(dtype).max)
        except OverflowError:
            fits = False
        if not fits:
            raise ValueError(f"{name} must be finite and at least 0 in {jnp.dtype(dtype).name}, got {value}")
    return value


def limit(name: str, value: Any, least: int, x: jax.Array) -> jax.Array:
    """`value`, a real scalar from `least` to infinity inclusive, in the accumulator's dtype of x.

    Raises:
      TypeError: no real number.
      ValueError: smaller, or NaN. (A traced value is not checked.)
    """
    _real_number(name, value)
    if not isinstance(value, Tracer) and not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return jnp.asarray(value, accumulator(x.dtype))


def _real_number(name: str, value: Any) -> None:
    if not isinstance(value, (float, int, np.number, np.ndarray, jax.Array)) or jnp.ndim(value):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    kinds = (jnp.floating, jnp.integer)
    if not isinstance(value, (float, int)) and not any(jnp.issubdtype(value.dtype, kind) for kind in kinds):
        raise TypeError(f"{name} must be a real number, got {value!r}")
