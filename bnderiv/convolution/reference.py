"""What the convolution must equal: the plain forward, differentiated by JAX."""

import jax.numpy as jnp
from jax import lax

from bnderiv._numbers import accumulator

__all__ = ["conv2d"]


def conv2d(x, kernel, bias=None, *, strides=1, padding="VALID", dilation=1, groups=1, channel_axis=-1, batch_axis=0):
    """`lax.conv_general_dilated` plus the bias; see `bnderiv.conv2d`."""
    dtype = jnp.result_type(x, kernel) if bias is None else jnp.result_type(x, kernel, bias)
    wide = accumulator(dtype)
    spatial = iter("HW")
    names = {channel_axis % 4: "C", batch_axis % 4: "N"}
    layout = "".join(names.get(a) or next(spatial) for a in range(4))
    z = lax.conv_general_dilated(
        x.astype(wide),
        kernel.astype(wide),
        (strides, strides) if isinstance(strides, int) else strides,
        ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding,
        rhs_dilation=(dilation, dilation) if isinstance(dilation, int) else dilation,
        dimension_numbers=(layout, "HWIO", layout),
        feature_group_count=groups,
    )
    if bias is not None:
        z = z + bias.astype(wide).reshape([-1 if name == "C" else 1 for name in layout])
    return z.astype(dtype)
