"""Convolution with its gradient in closed form: three correlations (derivation.md, C1–C13)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bnderiv import _checks
from bnderiv._checks import Ints, Pads
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._target import first_on_gpu
from bnderiv._types import Padding, PerAxis
from bnderiv.convolution.correlations import with_fastest


def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: PerAxis = 1,
    padding: Padding = "VALID",
    dilation: PerAxis = 1,
    groups: int = 1,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> jax.Array:
    """Convolution with as many spatial axes as the kernel has: z_i = Σ_x w_x a_{s·i+d·x−t} + b (C6), i, x one for each.

    With two it is `conv2d`, which says more. The gradient is the closed form (derivation.md, C7–C11), and the dtypes
    are those of `conv2d`.

    Args:
      x: input of floating dtype and the rank of the kernel, channels last unless the axes say otherwise: (N, L, C_in),
        (N, H, W, C_in), (N, D, H, W, C_in).
      kernel: weights, shape (window..., C_in / groups, C_out) whatever the layout of x.
      bias: optional, shape (C_out,).
      strides: step of the window, an int or one for each spatial axis.
      padding: zeros around the input: "VALID" (none), "SAME" (⌈size / stride⌉ outputs, the odd zero at the end), an
        int, or a pair (low, high) for each spatial axis, of any non-negative size.
      dilation: distance between the input cells under neighboring weights, an int or one for each spatial axis.
      groups: the number of parts that the channels are split into, each convolved separately.
      channel_axis: axis of the channels.
      batch_axis: axis of the examples. The others are the spatial ones, in order.

    Returns:
      Array in the layout of x and of dtype `jnp.result_type(x, kernel, bias)`, with C_out channels.

    Raises:
      TypeError: an array does not have a floating dtype, JAX does not promote their dtypes to one (float8), or an
        option is not an integer.
      ValueError: an empty array, ranks, shapes or groups that do not fit, an axis out of range, `channel_axis` and
        `batch_axis` equal, negative padding, or a dilated kernel larger than the padded input.

    >>> signal, kernel = jnp.arange(1.0, 6).reshape(1, 5, 1), jnp.array([1.0, 10.0]).reshape(2, 1, 1)
    >>> bnderiv.conv(signal, kernel)[0, :, 0]
    Array([21., 32., 43., 54.], dtype=float32)
    """
    x = _checks.float_array("x", x)
    kernel = _checks.float_array("kernel", kernel)
    _checks.rank_at_least("kernel", kernel, 3, "spatial axes, C_in / groups, C_out")
    _checks.rank_is("x", x, kernel.ndim, "that of kernel: batch, spatial axes, channels")
    _checks.nonempty("x", x)
    _checks.nonempty("kernel", kernel)
    batch, spatial, channel = _checks.image_axes(channel_axis, batch_axis, x.ndim)
    groups = _checks.integer("groups", groups, at_least=1)
    *window, _, c_out = kernel.shape
    c_in = x.shape[channel]
    if c_in % groups or c_out % groups:
        raise ValueError(
            f"groups must divide the input channels of x and the output channels of kernel, "
            f"got {groups} groups for {c_in} and {c_out} channels"
        )
    meaning = f"(window..., C_in / groups, C_out), x has {c_in} channels in {groups} group(s)"
    _checks.shape_is("kernel", kernel, (*window, c_in // groups, c_out), meaning)
    if bias is not None:
        bias = _checks.float_array("bias", bias)
        _checks.shape_is("bias", bias, (c_out,), "(C_out,), the last axis of kernel")
    _checks.promoted(x=x, kernel=kernel, bias=bias)
    strides = _checks.integers("strides", strides, len(spatial))
    dilation = _checks.integers("dilation", dilation, len(spatial))
    sizes = tuple(x.shape[a] for a in spatial)
    pads = _checks.paddings(padding, sizes, tuple(window), strides, dilation)
    geometry = _Geometry(strides, pads, dilation, groups, (batch, channel, *spatial))
    return _conv(geometry, x, kernel, bias)


class _Geometry(NamedTuple):
    """The options of a convolution. `layout`: the axes of batch and channels in x and z, then the spatial ones."""

    strides: Ints
    padding: Pads
    dilation: Ints
    groups: int
    layout: Ints


def _result(geometry, x, kernel, bias):
    channel = geometry.layout[1]
    return P(*(kernel[-1] if axis == channel else entry for axis, entry in enumerate(x)))


@closed_form(static=1, result=_result)
def _conv(geometry, x, kernel, bias):
    dtype = jnp.result_type(*(a for a in (x, kernel, bias) if a is not None))

    def form(correlations, precision):
        z = correlations.correlation(geometry, x.astype(precision), kernel.astype(precision))
        if bias is not None:
            z = z + _checks.along(bias, geometry.layout[1], x.ndim).astype(precision)
        return z.astype(dtype)

    return with_fastest(form, geometry, x.shape, kernel.shape, dtype)


def _conv_fwd(geometry, x, kernel, bias):
    like_bias = None if bias is None else bias[:0]  # an empty slice keeps the bias's dtype and no data
    return _conv.body(geometry, x, kernel, bias), (x, kernel, like_bias)


def _conv_bwd(geometry, residuals, delta):
    x, kernel, like_bias = residuals
    batch, _, *spatial = geometry.layout

    def form(correlations, precision):
        dkernel = correlations.kernel_gradient(geometry, kernel.shape, x.astype(precision), delta.astype(precision))
        # XLA:GPU would leave the kernels' gradients for the end, and keep the x and δ of every layer until then.
        dkernel, then = first_on_gpu(dkernel, delta)
        dx = correlations.input_gradient(geometry, x.shape, kernel.astype(precision), then.astype(precision))
        return dx.astype(x.dtype), dkernel.astype(kernel.dtype)

    dx, dkernel = with_fastest(form, geometry, x.shape, kernel.shape, delta.dtype)
    dbias = None
    if like_bias is not None:
        dbias = delta.sum((batch, *spatial), dtype=accumulator(delta.dtype)).astype(like_bias.dtype)  # (C8)
    return dx, dkernel, dbias


_conv.defvjp(_conv_fwd, _conv_bwd)
