"""Two-dimensional convolution with its gradient in closed form: three correlations (derivation.md, C1–C13)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bnderiv import _checks
from bnderiv._checks import Ints, Padding
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv.convolution.correlations import with_fastest


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[Sequence[int]] = "VALID",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> jax.Array:
    """Convolution as networks use it: z_ij = Σ_xy w_xy a_{si+dx−t, sj+dy−t} + b, summed over the input channels (C6).

    Here s is the stride, d the dilation and t the padding at the top and left. It is the cross-correlation: the kernel
    is not flipped. The gradient (derivation.md): ∂J/∂w correlates the input with δ (C7), ∂J/∂b is Σδ (C8), and ∂J/∂a
    is a full correlation of δ with the flipped kernel (C9, C11).

    The algorithm depends on the shapes and the platform (`correlations.py`). On a CPU, NaN and infinity may reach
    all rows or all columns of their example. Half precision is accumulated in float32: on a CPU explicitly, and rounded
    once. On a GPU or TPU the convolution and its gradients keep half precision, so that matrix units take them; the
    hardware accumulates, in float32 by default, and the bias is added to the rounded sum.

    Args:
      x: input of rank 4 and floating dtype, channels last (N, H, W, C_in) unless the axes say otherwise.
      kernel: weights, shape (kh, kw, C_in / groups, C_out) whatever the layout of x.
      bias: optional, shape (C_out,). Batch norm cancels it, so leave it out there.
      strides: step of the window, an int or (vertical, horizontal).
      padding: zeros around the input: "VALID" (none), "SAME" (⌈size / stride⌉ outputs, the odd zero at the bottom and
        right), an int, or ((top, bottom), (left, right)), of any non-negative size.
      dilation: distance between the input cells under neighboring weights, an int or a pair.
      groups: the number of parts that the channels are split into, each convolved separately. With C_in parts it is the
        depthwise convolution.
      channel_axis: axis of the channels, 1 for (N, C, H, W).
      batch_axis: axis of the examples. The other two are the rows and the columns, in order.

    Returns:
      Array in the layout of x and of dtype `jnp.result_type(x, kernel, bias)`, with C_out channels and
      ⌊(H + padding − dilation·(kh − 1) − 1) / stride⌋ + 1 rows; columns likewise.

    Raises:
      TypeError: an array does not have a floating dtype, or an option is not an integer.
      ValueError: an empty array, shapes or groups that do not fit, an axis out of range, `channel_axis` and
        `batch_axis` equal, negative padding, or a dilated kernel larger than the padded input.

    >>> image, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
    >>> bnderiv.conv2d(image, kernel, padding="SAME")[0, :, :, 0]
    Array([[4., 6., 6., 4.],
           [6., 9., 9., 6.],
           [6., 9., 9., 6.],
           [4., 6., 6., 4.]], dtype=float32)
    """
    x = _checks.float_array("x", x)
    kernel = _checks.float_array("kernel", kernel)
    _checks.rank_is("x", x, 4, "batch, rows, columns, channels")
    _checks.rank_is("kernel", kernel, 4, "(rows, columns, C_in / groups, C_out)")
    _checks.nonempty("x", x)
    _checks.nonempty("kernel", kernel)
    batch, (rows, columns), channel = _checks.image_axes(channel_axis, batch_axis, 4)
    groups = _checks.integer("groups", groups, at_least=1)
    kh, kw, _, c_out = kernel.shape
    c_in = x.shape[channel]
    if c_in % groups or c_out % groups:
        raise ValueError(
            f"groups must divide the input channels of x and the output channels of kernel, "
            f"got {groups} groups for {c_in} and {c_out} channels"
        )
    meaning = f"(rows, columns, C_in / groups, C_out), x has {c_in} channels in {groups} group(s)"
    _checks.shape_is("kernel", kernel, (kh, kw, c_in // groups, c_out), meaning)
    if bias is not None:
        bias = _checks.float_array("bias", bias)
        _checks.shape_is("bias", bias, (c_out,), "(C_out,), the last axis of kernel")
    strides = _checks.integers("strides", strides, 2)
    dilation = _checks.integers("dilation", dilation, 2)
    padding = _checks.paddings(padding, (x.shape[rows], x.shape[columns]), (kh, kw), strides, dilation)
    geometry = _Geometry(strides, padding, dilation, groups, (batch, channel, rows, columns))
    return _conv2d(geometry, x, kernel, bias)


class _Geometry(NamedTuple):
    """The options of a convolution. `layout`: the axes of (batch, channel, rows, columns) in x and z."""

    strides: Ints
    padding: Padding
    dilation: Ints
    groups: int
    layout: tuple[int, int, int, int]


def _result(geometry, x, kernel, bias):
    _, channel, _, _ = geometry.layout
    return P(*(kernel[-1] if axis == channel else entry for axis, entry in enumerate(x)))


@closed_form(static=1, result=_result)
def _conv2d(geometry, x, kernel, bias):
    dtype = jnp.result_type(*(a for a in (x, kernel, bias) if a is not None))

    def form(correlations, precision):
        z = correlations.correlation(geometry, x.astype(precision), kernel.astype(precision))
        if bias is not None:
            z = z + _checks.along(bias, geometry.layout[1], 4).astype(precision)
        return z.astype(dtype)

    return with_fastest(form, geometry, x.shape, kernel.shape, dtype)


def _conv2d_fwd(geometry, x, kernel, bias):
    like_bias = None if bias is None else bias[:0]  # an empty slice keeps the bias's dtype and no data
    return _conv2d.body(geometry, x, kernel, bias), (x, kernel, like_bias)


def _conv2d_bwd(geometry, residuals, delta):
    x, kernel, like_bias = residuals
    batch, _, rows, columns = geometry.layout

    def form(correlations, precision):
        dx = correlations.input_gradient(geometry, x.shape, kernel.astype(precision), delta.astype(precision))
        dkernel = correlations.kernel_gradient(geometry, kernel.shape, x.astype(precision), delta.astype(precision))
        return dx.astype(x.dtype), dkernel.astype(kernel.dtype)

    dx, dkernel = with_fastest(form, geometry, x.shape, kernel.shape, delta.dtype)
    dbias = None
    if like_bias is not None:
        dbias = delta.sum((batch, rows, columns), dtype=accumulator(delta.dtype)).astype(like_bias.dtype)  # (C8)
    return dx, dkernel, dbias


_conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)
