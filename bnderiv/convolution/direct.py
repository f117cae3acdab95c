"""The three correlations as the backend's own convolution (derivation.md, C10–C13).

All three sum over the same triples (output i, weight x, input p = s·i + d·x − t) (C5). They differ in the two arrays
that are multiplied and in the index that is left.
"""

from jax import lax


def correlation(geometry, x, kernel):
    """z_i = Σ_x w_x a_{s·i + d·x − t}  (C6)."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=geometry.strides,
        padding=geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_dimensions(geometry),
        feature_group_count=geometry.groups,
    )


def input_gradient(geometry, x_shape, kernel, delta):
    """∂J/∂a_p = Σ_x w_x δ_i, i with s·i + d·x − t = p: δ dilated by the stride, the kernel flipped  (C11, C12)."""
    *window, c_in, c_out = kernel.shape
    n, g = len(window), geometry.groups
    flipped = lax.rev(kernel, tuple(range(n))).reshape(*window, c_in, g, c_out // g)
    exchanged = flipped.swapaxes(n, n + 2).reshape(*window, c_out // g, g * c_in)  # within each group (C13)
    # d·(k − 1) − t zeros before, so that the flipped kernel starts at input cell 0; after, as many as the last input
    # cell needs (C12). A negative number crops: the padding was wider than the kernel.
    padding = [
        (d * (k - 1) - before, size - 1 - s * (delta.shape[axis] - 1) + before)
        for k, d, s, (before, _), axis, size in _sides(geometry, window, x_shape)
    ]
    return lax.conv_general_dilated(
        delta,
        exchanged,
        window_strides=(1,) * n,
        padding=padding,
        lhs_dilation=geometry.strides,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_dimensions(geometry),
        feature_group_count=g,
    )


def kernel_gradient(geometry, kernel_shape, x, delta):
    """∂J/∂w_x = Σ_i δ_i a_{s·i + d·x − t}: the input correlated with δ, stride and dilation exchanged  (C7)."""
    batch, channel, *spatial = geometry.layout
    n = len(spatial)
    # The channels of x take the place of the batch, and the examples that of the channels, which are summed.
    x_spec, delta_spec, kernel_spec = (channel, batch, *spatial), (channel, batch, *spatial), (n, n + 1, *range(n))
    # The forward's zeros before; after, as many as let δ slide to the last weight and no further. Negative if no window
    # reached the last rows or columns (C10).
    padding = [
        (before, s * (delta.shape[axis] - 1) + d * (k - 1) + 1 - size - before)
        for k, d, s, (before, _), axis, size in _sides(geometry, kernel_shape[:n], x.shape)
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


def _dimensions(geometry):
    n = len(geometry.strides)
    of_kernel = (n + 1, n, *range(n))  # C_out, C_in and the window in a kernel (window..., C_in/groups, C_out)
    return lax.ConvDimensionNumbers(geometry.layout, of_kernel, geometry.layout)


def _sides(geometry, window, x_shape):
    """For each spatial axis: (kernel size k, dilation d, stride s, padding, axis, input size)."""
    axes = geometry.layout[2:]
    sizes = [x_shape[a] for a in axes]
    return zip(window, geometry.dilation, geometry.strides, geometry.padding, axes, sizes, strict=True)
