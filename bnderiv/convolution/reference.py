"""What the convolution must equal: the plain forward, differentiated by JAX."""

import jax.numpy as jnp
from jax import lax

from bnderiv._numbers import accumulator

__all__ = ["conv", "conv2d"]


def conv(x, kernel, bias=None, *, strides=1, padding="VALID", dilation=1, groups=1, channel_axis=-1, batch_axis=0):
    """`lax.conv_general_dilated` plus the bias; see `bnderiv.conv`."""
    dtype = jnp.result_type(x, kernel) if bias is None else jnp.result_type(x, kernel, bias)
    wide = accumulator(dtype)
    n = x.ndim - 2
    spatial = iter("HWD")
    names = {channel_axis % x.ndim: "C", batch_axis % x.ndim: "N"}
    layout = "".join(names.get(a) or next(spatial) for a in range(x.ndim))
    z = lax.conv_general_dilated(
        x.astype(wide),
        kernel.astype(wide),
        (strides,) * n if isinstance(strides, int) else strides,
        ((padding, padding),) * n if isinstance(padding, int) else padding,
        rhs_dilation=(dilation,) * n if isinstance(dilation, int) else dilation,
        dimension_numbers=(layout, "HWD"[:n] + "IO", layout),
        feature_group_count=groups,
    )
    if bias is not None:
        z = z + bias.astype(wide).reshape([-1 if name == "C" else 1 for name in layout])
    return z.astype(dtype)


def conv2d(x, kernel, bias=None, *, strides=1, padding="VALID", dilation=1, groups=1, channel_axis=-1, batch_axis=0):
    """`conv` with two spatial axes; see `bnderiv.conv2d`."""
    return conv(
        x,
        kernel,
        bias,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        channel_axis=channel_axis,
        batch_axis=batch_axis,
    )
