"""Convolution with two spatial axes."""

import jax

from bnderiv import _checks
from bnderiv._types import Padding, PerAxis
from bnderiv.convolution.conv import conv


def conv2d(
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
    """Convolution as networks use it: z_ij = Σ_xy w_xy a_{s·i+d·x−t, s·j+d·y−t} + b, summed over input channels (C6).

    Here s is the stride, d the dilation and t the padding at the top and left. It is the cross-correlation: the kernel
    is not flipped. The gradient (derivation.md): ∂J/∂w correlates the input with δ (C7), ∂J/∂b is Σδ (C8), and ∂J/∂a
    is a full correlation of δ with the flipped kernel (C9, C11).

    The algorithm depends on the shapes and the platform (`correlations.py`). On a CPU, NaN and infinity may reach
    all rows or all columns of their example. Half precision is accumulated in float32: on a CPU explicitly, and rounded
    once. On a GPU or TPU the convolution and its gradients keep half precision, so that matrix units take them; the
    hardware accumulates, in float32 by default, and the bias is added to the rounded sum.

    Args:
      x: input of rank 4 and floating dtype, channels last (N, H, W, C_in) unless the axes say otherwise.
      kernel: weights, shape (kh, kw, C_in / groups, C_out) whatever the layout of x. A weight of PyTorch becomes one by
        `transpose(2, 3, 1, 0)`.
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
      TypeError: an array does not have a floating dtype, JAX does not promote their dtypes to one (float8), or an
        option is not an integer.
      ValueError: an empty array, shapes or groups that do not fit, an axis out of range, `channel_axis` and
        `batch_axis` equal, negative padding, or a dilated kernel larger than the padded input.

    >>> image, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
    >>> bnderiv.conv2d(image, kernel, padding="SAME")[0, :, :, 0]
    Array([[4., 6., 6., 4.],
           [6., 9., 9., 6.],
           [6., 9., 9., 6.],
           [4., 6., 6., 4.]], dtype=float32)
    """
    kernel = _checks.float_array("kernel", kernel)
    _checks.rank_is("kernel", kernel, 4, "(rows, columns, C_in / groups, C_out)")
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
