"""The three correlations as the backend's own convolution (derivation.md, C10–C13).

All three sum over the same triples (output i, weight x, input p = s·i + d·x − t) (C5). They differ in the two arrays
that are multiplied and in the index that is left.
"""

from jax import lax

_HWIO = (3, 2, 0, 1)  # the axes of (out, in, rows, columns) in a kernel (kh, kw, C_in/groups, C_out), as lax wants them


def correlation(geometry, x, kernel):
    """z_i = Σ_x w_x a_{s·i + d·x − t}  (C6)."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=geometry.strides,
        padding=geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(geometry.layout, _HWIO, geometry.layout),
        feature_group_count=geometry.groups,
    )


def input_gradient(geometry, x_shape, kernel, delta):
    """∂J/∂a_p = Σ_x w_x δ_i, i with s·i + d·x − t = p: δ dilated by the stride, the kernel flipped  (C11, C12)."""
    kh, kw, c_in, c_out = kernel.shape
    g = geometry.groups
    flipped = lax.rev(kernel, (0, 1)).reshape(kh, kw, c_in, g, c_out // g)
    exchanged = flipped.swapaxes(2, 4).reshape(kh, kw, c_out // g, g * c_in)  # within each group (C13)
    # d·(k − 1) − t zeros before, so that the flipped kernel starts at input cell 0; after, as many as the last input
    # cell needs (C12). A negative number crops: the padding was wider than the kernel.
    padding = [
        (d * (k - 1) - before, size - 1 - s * (delta.shape[axis] - 1) + before)
        for k, d, s, (before, _), axis, size in _sides(geometry, (kh, kw), x_shape)
    ]
    return lax.conv_general_dilated(
        delta,
        exchanged,
        window_strides=(1, 1),
        padding=padding,
        lhs_dilation=geometry.strides,
        rhs_dilation=geometry.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(geometry.layout, _HWIO, geometry.layout),
        feature_group_count=g,
    )


def kernel_gradient(geometry, kernel_shape, x, delta):
    """∂J/∂w_x = Σ_i δ_i a_{s·i + d·x − t}: the input correlated with δ, stride and dilation exchanged  (C7)."""
    batch, channel, *spatial = geometry.layout
    # The channels of x take the place of the batch, and the examples that of the channels, which are summed.
    x_spec, delta_spec, kernel_spec = (channel, batch, *spatial), (channel, batch, *spatial), (2, 3, 0, 1)
    # The forward's zeros before; after, as many as let δ slide to the last weight and no further. Negative if no window
    # reached the last rows or columns (C10).
    padding = [
        (before, s * (delta.shape[axis] - 1) + d * (k - 1) + 1 - size - before)
        for k, d, s, (before, _), axis, size in _sides(geometry, kernel_shape[:2], x.shape)
    ]
    return lax.conv_general_dilated(
        x,
        delta,
        window_strides=geometry.dilation,
        padding=padding,
        rhs_dilation=geometry.strides,
        dimension_numbers=lax.ConvDimensionNumbers(x_spec, delta_spec, kernel_spec),
        batch_group_count=geometry.groups,
    )


def _sides(geometry, window, x_shape):
    """Rows, then columns: (kernel size k, dilation d, stride s, padding, axis, input size)."""
    axes = geometry.layout[2:]
    sizes = [x_shape[a] for a in axes]
    return zip(window, geometry.dilation, geometry.strides, geometry.padding, axes, sizes, strict=True)
