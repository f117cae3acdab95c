"""Checks and normal forms of arguments, for every layer. Errors are raised at trace time and name the argument.

At the end, what many layers do to arrays: `along`, `pad`, `same_varying`.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

Pair = tuple[int, int]
Ints = tuple[int, ...]
Pads = tuple[Pair, ...]  # (before, after) for each spatial axis


def float_array(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array of floating dtype.

    Raises:
      TypeError: it is no array, or an integer, boolean or complex one.
    """
    if not hasattr(value, "dtype") and not isinstance(value, (float, int)):
        raise TypeError(f"{name} must be an array of floating dtype, got {type(value).__name__}")
    representable(name, value)
    if not isinstance(value, jax.Array) or not value.ndim:  # a traced scalar may stand for a Python number
        value = jnp.asarray(value)  # for a traced array, this would be a copy
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{name} must have a floating dtype (real, not integer), got {_describe(value)}")
    return value


def is_float(value: Any) -> bool:
    """Whether `value` is real, and no integer: of floating dtype."""
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)


def integer_array(name: str, value: Any) -> Any:
    """`value`, an array of JAX or NumPy of integer dtype; a Python integer as an array of NumPy.

    Raises:
      TypeError: it is neither.
    """
    if isinstance(value, int):
        value = np.asarray(value)
    if not hasattr(value, "dtype"):
        raise TypeError(f"{name} must be an array of integer dtype, got {type(value).__name__}")
    representable(name, value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must have an integer dtype, got {_describe(value)}")
    return value


def mask(name: str, value: Any, shape: tuple[int, ...], of: str = "x") -> jax.Array:
    """`value` as booleans of the rank of `shape`, the shape of the argument `of`, that broadcast to it.

    Raises:
      TypeError: not boolean.
      ValueError: it does not broadcast to `shape`.
    """
    representable(name, value)
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be boolean, got {value!r}") from None
    if value.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean, got {_describe(value)}")
    try:
        fits = jnp.broadcast_shapes(value.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} must broadcast to the shape of {of}, {shape}, got shape {value.shape}")
    return value.reshape((1,) * (len(shape) - value.ndim) + value.shape)


def representable(name: str, value: Any) -> None:
    """Raises TypeError where `value` is an array of NumPy whose dtype JAX does not have."""
    if not isinstance(value, (np.ndarray, np.generic)):
        return
    dtype = value.dtype
    if not dtype.isnative:
        raise TypeError(
            f"{name} must have the byte order of this machine, got {_describe(value)}: "
            f"convert it with {name}.astype({name}.dtype.newbyteorder('='))"
        )
    numeric = jnp.issubdtype(dtype, jnp.number) or dtype == np.bool_
    if not numeric or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        raise TypeError(f"{name} must have a dtype that JAX has, of at most 64 bits, got {_describe(value)}")


def promoted(**arrays: jax.Array | None) -> jnp.dtype:
    """The dtype that JAX promotes those of the arrays to; None stands for an argument that is left out.

    Raises:
      TypeError: there is none, as for float8 and float32, or where `jax.numpy_dtype_promotion` is "strict".
    """
    given = {name: a for name, a in arrays.items() if a is not None}
    try:
        return jnp.result_type(*given.values())
    except ValueError as error:
        listed = ", ".join(f"{name} {_describe(a)}" for name, a in given.items())
        raise TypeError(f"{', '.join(given)} must have dtypes that JAX promotes to one, got {listed}") from error


def nonempty(name: str, x: jax.Array) -> None:
    """Raises ValueError where `x` has no elements."""
    if x.size == 0:
        raise ValueError(f"{name} must not be empty, got {_describe(x)}")


def shape_is(name: str, x: jax.Array, shape: tuple[int, ...], meaning: str) -> None:
    """Raises ValueError unless `x.shape == shape`; `meaning` says where that shape comes from."""
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape} ({meaning}), got {_describe(x)}")


def rank_is(name: str, x: jax.Array, rank: int, meaning: str) -> None:
    """Raises ValueError unless `x` has this rank."""
    if x.ndim != rank:
        raise ValueError(f"{name} must have rank {rank} ({meaning}), got {_describe(x)}")


def rank_at_least(name: str, x: jax.Array, rank: int, meaning: str) -> None:
    """Raises ValueError where `x` has a smaller rank."""
    if x.ndim < rank:
        raise ValueError(f"{name} must have rank {rank} or more ({meaning}), got {_describe(x)}")


def integer(name: str, value: Any, *, at_least: int | None = None) -> int:
    """`value` as an int.

    Raises:
      TypeError: not an integer (booleans and floats are not).
      ValueError: smaller than `at_least`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if at_least is not None and number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    return number


def boolean(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is True or False, of Python or NumPy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a boolean, got {value!r}")


def axis(name: str, value: Any, ndim: int) -> int:
    """The axis `value` counted from the front.

    Raises:
      TypeError: not an integer.
      ValueError: out of range.
    """
    number = integer(name, value)
    if not -ndim <= number < ndim:
        raise ValueError(f"{name} must lie in [{-ndim}, {ndim}) for an array of rank {ndim}, got {number}")
    return number % ndim


def image_axes(channel_axis: Any, batch_axis: Any, ndim: int) -> tuple[int, tuple[int, ...], int]:
    """The batch axis, the spatial axes and the channel axis of an array of rank `ndim`, counted from the front.

    Raises:
      ValueError: an axis out of range, or the two equal.
    """
    channel = axis("channel_axis", channel_axis, ndim)
    batch = axis("batch_axis", batch_axis, ndim)
    if channel == batch:
        raise ValueError(f"channel_axis and batch_axis must differ, got {channel_axis} and {batch_axis}")
    return batch, tuple(a for a in range(ndim) if a not in (batch, channel)), channel


def integers(name: str, value: Any, count: int) -> tuple[int, ...]:
    """An int, or a sequence (or array of NumPy) of `count` ints, one for each spatial axis, as a tuple.

    Raises:
      TypeError: any other type.
      ValueError: an entry below 1, or another number of them.
    """
    value = listed(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (integer(name, value, at_least=1),) * count
    if len(value) != count:
        raise ValueError(f"{name} must be an integer, or one for each of the {count} spatial axes, got {value!r}")
    return tuple(integer(f"{name}[{i}]", v, at_least=1) for i, v in enumerate(value))


def paddings(
    padding: Any, sizes: Ints, window: Ints, strides: Ints, dilation: Ints, *, ceil_mode: bool = False
) -> Pads:
    """`padding` as a pair (before, after) for each spatial axis.

    "VALID" pads nothing; "SAME" pads so that ⌈size/stride⌉ outputs fit, the odd cell after; an int pads all sides.

    Raises:
      TypeError: any other type.
      ValueError: another string, another number of pairs, negative padding, or a dilated window larger than the padded
        input; with `ceil_mode` it may extend past that by less than a stride.
    """
    reach = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
    padding = listed(padding)
    if isinstance(padding, str):
        name = padding.upper()
        if name not in ("SAME", "VALID"):
            raise ValueError(f'padding must be "SAME", "VALID", an integer or pairs of integers, got {padding!r}')
        totals = (
            max((-(-size // stride) - 1) * stride + r - size, 0) if name == "SAME" else 0
            for size, stride, r in zip(sizes, strides, reach, strict=True)
        )
        pads = tuple((total // 2, total - total // 2) for total in totals)
    elif isinstance(padding, Sequence):
        sides = [listed(p) for p in padding]
        pairs = all(isinstance(p, Sequence) and len(p) == 2 for p in sides)
        if len(sides) != len(sizes) or not pairs:
            raise ValueError(
                f"padding must be a (low, high) pair for each of the {len(sizes)} spatial axes, got {padding!r}"
            )
        low_high = [
            [integer(f"padding[{i}][{j}]", v, at_least=0) for j, v in enumerate(p)] for i, p in enumerate(sides)
        ]
        pads = tuple((low, high) for low, high in low_high)
    else:
        number = integer("padding", padding, at_least=0)
        pads = ((number, number),) * len(sizes)
    for i, (size, (before, after), r, stride) in enumerate(zip(sizes, pads, reach, strides, strict=True)):
        if r > size + before + after + (stride - 1 if ceil_mode else 0):
            raise ValueError(
                f"the window must fit into the padded input: along spatial axis {i} it spans {r}, "
                f"the input has {size} with padding ({before}, {after})"
            )
    return pads


def listed(value: Any) -> Any:
    """An array of NumPy as a list, as `jax.lax` takes it; anything else as it is."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def along(vector: jax.Array, axis: int, ndim: int) -> jax.Array:
    """A vector along `axis` of an array of rank `ndim`, to broadcast against it explicitly."""
    return lax.expand_dims(vector, tuple(a for a in range(ndim) if a != axis))


def pad(x: jax.Array, margins: Mapping[int, tuple[int, ...]], value: float = 0) -> jax.Array:
    """`lax.pad` with (low, high) or (low, high, interior) for some axes; negative margins crop."""
    if all(isinstance(m, int) and m == 0 for margin in margins.values() for m in margin):
        return x
    config: Any = [(*margins.get(a, (0, 0)), 0)[:3] for a in range(x.ndim)]
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def longer(size: Any, limit: int) -> bool:
    """Whether `size` is above the limit. A symbolic one, in a program exported for any size, may be."""
    return not isinstance(size, int) or size > limit


def same_varying(*arrays: Any) -> tuple[Any, ...]:
    """The arrays, cast to vary over the union of their manual mesh axes (None stays None).

    Under `shard_map(check_vma=True)` a rule must return each cotangent with its primal's varying axes. Cast before the
    rule, all arguments vary alike. The transpose of the cast is the sum over devices that a shared argument needs.
    """
    present = [a for a in arrays if a is not None]
    joined = frozenset().union(*(varying_axes(a) for a in present)) if present else frozenset()

    def cast(a: Any) -> Any:
        missing = tuple(sorted(joined - varying_axes(a))) if a is not None else ()
        return lax.pcast(a, missing, to="varying") if missing else a

    return tuple(cast(a) for a in arrays)


def varying_axes(a: Any) -> frozenset[str]:
    return frozenset(jax.typeof(a).manual_axis_type.varying) if isinstance(a, Tracer) else frozenset()


def _describe(x: Any) -> str:
    native = getattr(x.dtype, "isnative", True)
    return f"{x.dtype.name if native else x.dtype.str}{list(x.shape)}"
