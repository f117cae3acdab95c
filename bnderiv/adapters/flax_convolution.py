"""Convolution under the signature that Flax's `Conv` calls: `Conv` of `bnderiv.linen` and `bnderiv.nnx` use it."""

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
    """`bnderiv.conv` where it computes what is asked, otherwise `lax.conv_general_dilated`.

    As Flax calls it: the channels are the last axis, and those of the output the kernel's last. `lhs_dilation` is empty
    where there are no spatial axes.
    """
    asked = any(option is not None for option in others.values())  # a precision, a dtype of the result, a sharding
    ours = not asked and set(lhs_dilation) == {1} and lhs.dtype == rhs.dtype and lhs.dtype.name in _DTYPES
    if ours and lhs.ndim == rhs.ndim and 0 not in (*lhs.shape, *rhs.shape):
        sizes = lhs.shape[1:-1]
        reach = [(k - 1) * d + 1 for k, d in zip(rhs.shape[:-2], rhs_dilation, strict=True)]
        pads = lax.padtype_to_pads(sizes, reach, window_strides, padding) if isinstance(padding, str) else padding
        if all(_fits(*side) for side in zip(sizes, reach, pads, strict=True)):
            options: Any = {"strides": window_strides, "padding": pads, "dilation": rhs_dilation}
            return conv(lhs, rhs, **options, groups=feature_group_count)
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


def _fits(size: Any, reach: int, pads: tuple[int, int]) -> bool:
    """Whether no padding is negative and the window fits; False for a size that an export leaves open."""
    return isinstance(size, int) and min(pads) >= 0 and reach <= size + sum(pads)
