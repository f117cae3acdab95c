"""Cases and slips of the convolution room."""

import jax.numpy as jnp
from jax import lax

from bnderiv.convolution import conv2d, direct
from tests.case import Case
from tests.slip import Slip, scaled


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
)


def _from_kernel(change):
    """The input gradient of another kernel."""

    def break_bwd(bwd):
        def broken(geometry, residuals, delta):
            x, kernel, bias = residuals
            wrong, _, _ = bwd(geometry, (x, change(kernel), bias), delta)
            return wrong, *bwd(geometry, residuals, delta)[1:]

        return broken

    return break_bwd


def _turned(kernel):
    return lax.rev(kernel, (0, 1))


def _exchanged(kernel):
    return kernel.swapaxes(2, 3)


def _groups_interleaved(kernel):
    """The outputs of a group taken to be every third channel, not consecutive ones."""
    return kernel.reshape(3, 2, 1, 3, 2).swapaxes(3, 4).reshape(kernel.shape)


def _stride_forgotten(bwd):
    """δ not spread by the stride before the full correlation."""

    def broken(geometry, residuals, delta):
        x, kernel, _ = residuals
        wrong = direct.input_gradient(geometry._replace(strides=(1, 1)), x.shape, kernel, delta)
        return wrong, *bwd(geometry, residuals, delta)[1:]

    return broken


def _padding_off_by_one(bwd):
    def broken(geometry, residuals, delta):
        dx, dkernel, dbias = bwd(geometry, residuals, delta)
        return jnp.roll(dx, 1, geometry.layout[2]), dkernel, dbias

    return broken


def _kernel_gradient_turned(bwd):
    """∂J/∂w as a true convolution of input and delta, where it is a correlation."""

    def broken(geometry, residuals, delta):
        dx, dkernel, dbias = bwd(geometry, residuals, delta)
        return dx, _turned(dkernel), dbias

    return broken


SLIPS = (
    Slip("kernel-not-turned", PLAIN, conv2d._conv2d, _from_kernel(_turned)),
    Slip("channels-not-exchanged", SQUARE, conv2d._conv2d, _from_kernel(_exchanged)),
    Slip("groups-interleaved", DEPTHWISE, conv2d._conv2d, _from_kernel(_groups_interleaved)),
    Slip("stride-forgotten", STRIDED, conv2d._conv2d, _stride_forgotten),
    Slip("padding-off-by-one", GROUPED, conv2d._conv2d, _padding_off_by_one),
    Slip("kernel-gradient-turned", PLAIN, conv2d._conv2d, _kernel_gradient_turned),
    Slip("kernel-gradient-averaged-over-the-batch", PLAIN, conv2d._conv2d, scaled(1, 1 / 2, 1)),
    Slip("bias-gradient-averaged", PLAIN, conv2d._conv2d, scaled(1, 1, 1 / (2 * 3 * 3))),
)
