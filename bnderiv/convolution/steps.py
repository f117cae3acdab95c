"""Convolution, step by step (derivation.md, C5–C13): each of its three products is one plain correlation.

The operands of the correlations are steps too: the padded input, δ dilated and padded, the kernel turned by 180°. So no
correlation needs padding.
"""

from typing import Annotated, NamedTuple

import jax
from jax import lax
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv._checks import Ints, Pads
from bnderiv._types import Padding, PerAxis
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather


@derivation
class Conv(NamedTuple):
    """The steps of `conv` and `conv2d`; shapes are those with two spatial axes."""

    x: Annotated[jax.Array, "a", "(B, M, N, C)", INPUT, "activations of the layer before"]
    kernel: Annotated[jax.Array, "w", "(m, n, C/G, K)", INPUT, "weights"]
    bias: Annotated[jax.Array | None, "b", "(K,)", INPUT, "biases, or None"]
    dy: Annotated[jax.Array, "δ = ∂J/∂z", "as z", INPUT, "gradient from above"]
    strides: Annotated[Ints, "from window to window"]
    padding: Annotated[Pads, "zeros before and after"]
    dilation: Annotated[Ints, "from cell to cell of a window"]
    groups: Annotated[int, "G, how many parts the channels are in"]
    channel_axis: Annotated[int, "where the channels are"]
    batch_axis: Annotated[int, "where the examples are"]
    x_padded: Annotated[jax.Array, "a with t, t' zeros", "as x, larger", "(C5)", "padded input"]
    z: Annotated[jax.Array, "z = w ⋆ a + b", "(B, M', N', K)", "(C6)", "output"]
    d_bias: Annotated[jax.Array, "∂J/∂b = Σ δ", "(K,)", "(C8)", "gradient of the bias"]
    x_read: Annotated[
        jax.Array, "a with t, t'−r zeros", "as x_padded", "(C10)", "without the rest r that no window reaches"
    ]
    d_kernel: Annotated[jax.Array, "∂J/∂w = δ ⋆ a", "(m, n, C/G, K)", "(C7)", "correlation of the input with δ"]
    delta_dilated: Annotated[jax.Array, "δ̃_si = δ_i", "as z, larger", "(C11)", "δ with s − 1 zeros between neighbors"]
    delta_padded: Annotated[jax.Array, "δ̃ with h, h' zeros", "as δ̃, larger", "(C12)", "the same with a rim of zeros"]
    kernel_turned: Annotated[
        jax.Array, "w_(m−1−x, n−1−y)", "(m, n, K/G, C)", "(C11), (C13)", "w turned by 180°, its channels exchanged"
    ]
    dx: Annotated[jax.Array, "∂J/∂a = turned w ⋆ δ̃", "as x", "(C9), (C11)", "gradient of the input"]


def conv(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    dy: ArrayLike,
    *,
    strides: PerAxis = 1,
    padding: Padding = "VALID",
    dilation: PerAxis = 1,
    groups: int = 1,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> Conv:
    """The convolution of networks (a cross-correlation) and its three gradients.

    Args:
      x: a, floating dtype (half precision is computed in float32); with two spatial axes (B, M, N, C), unless the axes
        say otherwise.
      kernel: w, shape (window..., C / groups, K).
      bias: b, shape (K,), or None.
      dy: δ = ∂J/∂z, shape of the output.
      strides, padding, dilation, groups, channel_axis, batch_axis: as in `bnderiv.conv`.

    Returns:
      `Conv`; `d_bias` is there without a bias as well.

    Raises:
      TypeError: an argument without floating dtype, or an option that is no integer.
      ValueError: shapes or options that do not fit.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, kernel = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1), jnp.array([1.0, 10.0]).reshape(2, 1, 1)
      >>> s = bnderiv.steps.conv(x, kernel, None, jnp.ones((1, 2, 1)))
      >>> s.z.ravel().tolist(), s.d_kernel.ravel().tolist(), s.dx.ravel().tolist()
      ([21.0, 32.0], [3.0, 5.0], [1.0, 11.0, 10.0])
    """
    x, kernel, dy = arrays(x=x, kernel=kernel, dy=dy)
    _checks.rank_at_least("kernel", kernel, 3, "spatial axes, C / groups, K")
    _checks.rank_is("x", x, kernel.ndim, "that of kernel: batch, spatial axes, channels")
    batch, spatial, channel = _checks.image_axes(channel_axis, batch_axis, x.ndim)
    n = len(spatial)
    window, sizes = kernel.shape[:n], tuple(x.shape[a] for a in spatial)
    strides, dilation = _checks.integers("strides", strides, n), _checks.integers("dilation", dilation, n)
    padding = _checks.paddings(padding, sizes, window, strides, dilation)
    groups = _checks.integer("groups", groups, at_least=1)
    C, K = x.shape[channel], kernel.shape[-1]
    if C % groups or K % groups:
        raise ValueError(f"groups must divide both numbers of channels, got {groups} for {C} and {K}")
    _checks.shape_is("kernel", kernel, (*window, C // groups, K), "(window..., C / groups, K)")
    if bias is not None:
        bias = _checks.float_array("bias", bias).astype(x.dtype)
        _checks.shape_is("bias", bias, (K,), "(K,), the last axis of kernel")
    images = batch, channel, *spatial
    weights = n + 1, n, *range(n)
    layout = lax.ConvDimensionNumbers(images, weights, images)

    x_padded = _checks.pad(x, dict(zip(spatial, padding, strict=True)))
    z = lax.conv_general_dilated(x_padded, kernel, strides, "VALID", None, dilation, layout, feature_group_count=groups)
    z = z if bias is None else z + _checks.along(bias, channel, x.ndim)  # (C6)
    dy = cotangent(dy, z)

    d_bias = dy.sum((batch, *spatial))  # (C8)

    # (C7): the kernel is δ, dilated by s, and it moves in steps of d. Examples and channels change places: the sum is
    # over the examples, and each pair of channels has a result (C.1).
    outputs = [z.shape[a] for a in spatial]
    rest = [
        size + before + after - d * (m - 1) - 1 - s * (out - 1)
        for size, (before, after), d, m, s, out in zip(sizes, padding, dilation, window, strides, outputs, strict=True)
    ]
    x_read = _checks.pad(x_padded, {a: (0, -r) for a, r in zip(spatial, rest, strict=True)})  # (C10)
    exchanged = channel, batch, *spatial
    pairs = lax.ConvDimensionNumbers(exchanged, exchanged, (n, n + 1, *range(n)))
    d_kernel = lax.conv_general_dilated(x_read, dy, dilation, "VALID", None, strides, pairs, batch_group_count=groups)

    # (C11): δ dilated by the stride and padded (C12), correlated with the turned kernel in steps of 1.
    delta_dilated = _checks.pad(dy, {a: (0, 0, s - 1) for a, s in zip(spatial, strides, strict=True)})
    rim = [
        (d * (m - 1) - before, d * (m - 1) - after + r)
        for d, m, (before, after), r in zip(dilation, window, padding, rest, strict=True)
    ]
    delta_padded = _checks.pad(delta_dilated, dict(zip(spatial, rim, strict=True)))  # (C12)
    kernel_turned = _exchange_channels(lax.rev(kernel, tuple(range(n))), groups)
    dx = lax.conv_general_dilated(
        delta_padded, kernel_turned, (1,) * n, "VALID", None, dilation, layout, feature_group_count=groups
    )
    return gather(Conv, locals())


def conv2d(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    dy: ArrayLike,
    *,
    strides: PerAxis = 1,
    padding: Padding = "VALID",
    dilation: PerAxis = 1,
    groups: int = 1,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> Conv:
    """`conv` with two spatial axes.

    Raises:
      TypeError: an argument without floating dtype, or an option that is no integer.
      ValueError: shapes or options that do not fit.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, kernel = jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1), jnp.array([1.0, 10.0]).reshape(1, 2, 1, 1)
      >>> s = bnderiv.steps.conv2d(x, kernel, None, jnp.ones((1, 1, 2, 1)))
      >>> s.z.ravel().tolist(), s.d_kernel.ravel().tolist(), s.dx.ravel().tolist()
      ([21.0, 32.0], [3.0, 5.0], [1.0, 11.0, 10.0])
    """
    _checks.rank_is("x", _checks.float_array("x", x), 4, "batch, rows, columns, channels")
    _checks.rank_is("kernel", _checks.float_array("kernel", kernel), 4, "(rows, columns, C / groups, K)")
    return conv(
        x,
        kernel,
        bias,
        dy,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        channel_axis=channel_axis,
        batch_axis=batch_axis,
    )


def _exchange_channels(kernel: jax.Array, groups: int) -> jax.Array:
    """(m, n, C/G, K) → (m, n, K/G, C), within each group (C13)."""
    *window, c, k = kernel.shape
    n = len(window)
    parts = kernel.reshape(*window, c, groups, k // groups)
    return parts.swapaxes(n, n + 2).reshape(*window, k // groups, c * groups)
