"""Pooling under Flax's signature: any number of batch and spatial axes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from bnderiv import _checks
from bnderiv.adapters.pooling import Ints, pool_axes
from bnderiv.pooling import avg_pool as _avg_pool
from bnderiv.pooling import max_pool as _max_pool


def avg_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    count_include_pad: bool = True,
) -> jax.Array:
    """The mean over each window: `flax.linen.avg_pool` computed by `bnderiv.avg_pool`.

    Half precision is accumulated in float32.

    Args:
      inputs: shape (batch axes..., spatial axes..., channels), floating dtype; no batch axis, one or several.
      window_shape: one integer for each spatial axis.
      strides: one integer for each spatial axis; None means 1 (not the window).
      padding: "VALID", "SAME", "SAME_LOWER" or a (low, high) pair for each spatial axis, smaller than the window.
      count_include_pad: whether padding counts as zeros, or not at all.

    Returns:
      Array of the batch axes, the pooled spatial axes and the channels, in the dtype of `inputs`.

    Raises:
      TypeError: `inputs` has no floating dtype, or another argument has the wrong type.
      ValueError: lengths that do not fit, empty `inputs`, padding as large as the window, or a window larger than the
        padded input.

    Example:
      >>> import bnderiv.linen, jax.numpy as jnp
      >>> bnderiv.linen.avg_pool(jnp.array([[1.0], [3.0], [5.0]]), (2,))[:, 0].tolist()
      [2.0, 4.0]
    """
    pool = _mean_with_padding if count_include_pad else _mean_without_padding
    return _pool(pool, inputs, window_shape, strides, padding)


def max_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> jax.Array:
    """The maximum of each window: `flax.linen.max_pool` computed by `bnderiv.max_pool`.

    The gradient goes to the first maximum in row-major order. Arguments, result and errors are those of `avg_pool`.

    Example:
      >>> import bnderiv.linen, jax.numpy as jnp
      >>> bnderiv.linen.max_pool(jnp.array([[1.0], [3.0], [2.0]]), (2,))[:, 0].tolist()
      [3.0, 3.0]
    """
    return _pool(_max_pool.max_pool, inputs, window_shape, strides, padding)


# Made once, so that eager calls find their compiled program.
_mean_with_padding = partial(_avg_pool.avg_pool, count_include_pad=True)
_mean_without_padding = partial(_avg_pool.avg_pool, count_include_pad=False)


def _pool(pool: Any, inputs: Any, window_shape: Any, strides: Any, padding: Any) -> jax.Array:
    x = _checks.float_array("inputs", inputs)
    window = _integers("window_shape", window_shape)
    rank, batch = len(window), x.ndim - len(window) - 1
    if batch < 0:
        raise ValueError(f"window_shape must leave an axis of inputs for the channels, got {window} for rank {x.ndim}")
    _checks.nonempty("inputs", x)
    strides = (1,) * rank if strides is None else _integers("strides", strides)
    if len(strides) != rank:
        raise ValueError(f"strides must have {rank} entries, as window_shape, got {strides}")
    return pool_axes(pool, x, batch, window, strides, _checked(padding, rank))


def _integers(name: str, value: Any) -> Ints:
    value = _checks.listed(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be a sequence of integers, one for each spatial axis, got {value!r}")
    return tuple(_checks.integer(f"{name}[{i}]", v, at_least=1) for i, v in enumerate(value))


def _checked(padding: Any, rank: int) -> Any:
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID", "SAME_LOWER"):
            raise ValueError(f'padding must be "SAME", "VALID", "SAME_LOWER" or pairs of integers, got {padding!r}')
        return padding
    try:
        pads = tuple(map(tuple, padding))  # as Flax: of anything that can be iterated, such as arrays of NumPy
    except TypeError:
        raise TypeError(f"padding must be a string or a sequence of (low, high) pairs, got {padding!r}") from None
    if len(pads) != rank or any(len(p) != 2 for p in pads):
        raise ValueError(f"padding must be a (low, high) pair for each of the {rank} spatial axes, got {pads}")
    return pads
