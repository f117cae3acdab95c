"""What `Conv` of linen and of NNX compute instead of `jax.lax.conv_general_dilated`."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from bnderiv.convolution.conv import conv

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: Any,
    feature_group_count: int,
    **others: Any,
) -> jax.Array:
    """`bnderiv.conv` of what it takes, and `lax.conv_general_dilated` of the rest; channels last, as Flax calls it.

    The rest: a dilated input, one of the other options, integers, complex numbers and float8, arrays or results of size
    0, negative padding, and spatial sizes that an export leaves open.
    """
    sizes, window = lhs.shape[1:-1], rhs.shape[:-2]
    reach = [(k - 1) * d + 1 for k, d in zip(window, rhs_dilation, strict=True)]
    pads = lax.padtype_to_pads(sizes, reach, window_strides, padding) if isinstance(padding, str) else padding
    if (
        window
        and set(lhs_dilation) == {1}
        and all(option is None for option in others.values())
        and lhs.dtype == rhs.dtype
        and lhs.dtype.name in _DTYPES
        and 0 not in (*lhs.shape, *rhs.shape)
        and all(isinstance(size, int) for size in sizes)
        and all(
            min(low, high) >= 0 and r <= size + low + high
            for size, r, (low, high) in zip(sizes, reach, pads, strict=True)
        )
    ):
        pads = tuple((low, high) for low, high in pads)
        return conv(lhs, rhs, strides=window_strides, padding=pads, dilation=rhs_dilation, groups=feature_group_count)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **others,
    )
