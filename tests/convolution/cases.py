"""Cases and slips of the convolution room."""

import jax
import jax.numpy as jnp

import bnderiv
from tests.case import Case
from tests.slip import Slip, gradients, scaled


def _arrays(x, kernel, bias=True):
    return lambda rng: (
        rng.standard_normal(x),
        rng.standard_normal(kernel),
        rng.standard_normal(kernel[-1]) if bias else None,
    )


CASES = (
    PLAIN := Case("conv2d", "plain", _arrays((2, 5, 4, 2), (3, 2, 2, 3))),
    SQUARE := Case("conv2d", "same-no-bias", _arrays((2, 4, 3, 3), (2, 3, 3, 3), bias=False), {"padding": "SAME"}),
    STRIDED := Case(  # one row and two columns of the padded input are reached by no window
        "conv2d",
        "strides-leave-a-rest",
        _arrays((2, 6, 5, 1), (2, 3, 1, 2)),
        {"strides": (2, 4), "padding": ((1, 0), (1, 3))},
    ),
    GROUPED := Case(
        "conv2d",
        "groups-strided-dilated-nchw",
        _arrays((2, 4, 4, 5), (2, 2, 2, 4)),
        {"groups": 2, "strides": 2, "dilation": (1, 3), "padding": 1, "channel_axis": 1},
    ),
    DEPTHWISE := Case("conv2d", "depthwise", _arrays((2, 4, 3, 3), (3, 2, 1, 6)), {"groups": 3, "padding": 1}),
    Case(
        "conv2d",
        "hcwn",
        _arrays((5, 2, 4, 3), (3, 3, 2, 2)),
        {"channel_axis": 1, "batch_axis": -1, "padding": "SAME", "strides": (2, 1)},
    ),
    Case("conv2d", "one-by-one-chwn", _arrays((3, 2, 3, 2), (1, 1, 3, 2)), {"channel_axis": 0, "batch_axis": 3}),
    Case("conv2d", "kernel-as-large-as-the-input", _arrays((2, 3, 4, 2), (3, 4, 2, 3))),
    Case("conv2d", "stride-larger-than-kernel", _arrays((2, 6, 7, 1), (1, 2, 1, 2)), {"strides": (3, 4)}),
    Case(  # windows that see nothing but padding: the padding of the input gradient is negative
        "conv2d",
        "padding-wider-than-the-kernel",
        _arrays((2, 2, 3, 1), (2, 1, 1, 2)),
        {"padding": ((3, 4), (2, 0)), "dilation": 2, "strides": (3, 1)},
    ),
    Case("conv", "one-axis", _arrays((2, 7, 2), (3, 2, 3)), {"strides": 2, "padding": ((2, 0),), "dilation": 2}),
    CONV3D := Case(
        "conv",
        "three-axes-groups-channels-first",
        _arrays((1, 4, 3, 4, 3), (2, 2, 1, 2, 4)),
        {"strides": (1, 2, 3), "padding": ((0, 1), (1, 0), (0, 0)), "groups": 2, "channel_axis": 1},
    ),
)


def _from_kernel(case, other):
    """The input gradient of another kernel."""

    def change(right, arguments, delta):
        x, kernel, bias = arguments
        wrong, *_ = gradients(getattr(bnderiv, case.layer), (x, other(kernel), bias), delta, **case.options)
        return wrong, *right[1:]

    return change


def _turned(kernel):
    return kernel[::-1, ::-1]


def _exchanged(kernel):
    return kernel.swapaxes(2, 3)


def _groups_interleaved(kernel):
    """The outputs of a group taken to be every third channel, not consecutive ones."""
    return kernel.reshape(3, 2, 1, 3, 2).swapaxes(3, 4).reshape(kernel.shape)


def _stride_forgotten(right, arguments, delta):
    """δ not upsampled by the stride before the full correlation: its entries lie side by side, zeros after them."""
    options = STRIDED.options | {"strides": 1}
    dense = jax.eval_shape(lambda *a: bnderiv.conv2d(*a, **options), *arguments)
    delta = jnp.pad(delta, [(0, more - size) for more, size in zip(dense.shape, delta.shape, strict=True)])
    return gradients(bnderiv.conv2d, arguments, delta, **options)[0], *right[1:]


def _padding_off_by_one(right, arguments, delta):
    return jnp.roll(right[0], 1, axis=2), *right[1:]  # the rows of NCHW


def _kernel_gradient_turned(right, arguments, delta):
    """∂J/∂w as a true convolution of input and delta, where it is a correlation."""
    dx, d_kernel, d_bias = right
    return dx, _turned(d_kernel), d_bias


SLIPS = (
    Slip("kernel-not-turned", PLAIN, _from_kernel(PLAIN, _turned)),
    Slip("kernel-not-turned", CONV3D, _from_kernel(CONV3D, lambda kernel: kernel[::-1, ::-1, ::-1])),
    Slip("channels-not-exchanged", SQUARE, _from_kernel(SQUARE, _exchanged)),
    Slip("groups-interleaved", DEPTHWISE, _from_kernel(DEPTHWISE, _groups_interleaved)),
    Slip("stride-forgotten", STRIDED, _stride_forgotten),
    Slip("padding-off-by-one", GROUPED, _padding_off_by_one),
    Slip("kernel-gradient-turned", PLAIN, _kernel_gradient_turned),
    Slip("kernel-gradient-averaged-over-the-batch", PLAIN, scaled(1, 1 / 2, 1)),
    Slip("bias-gradient-averaged", PLAIN, scaled(1, 1, 1 / (2 * 3 * 3))),
)
