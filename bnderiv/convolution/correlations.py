"""Which way to the three correlations is the fastest: the choice, and the cost model behind it.

Whatever is chosen, the closed form is the same, and so are the results, but for rounding and for how far a value that
is not finite reaches (see `banded`).

A CPU's convolution of few channels runs at a rate that grows with the output channels, about 1.6 GFLOP/s for each on
the two cores it was measured on, where matrix products run at 260. The banded matrix of a kernel has size/k times its
weights (size of the input and k of the kernel, along the banded axis), and so many times the work is done. They break
even at size/k · C_out = 160; some of that goes to stacking and copying. A sum of shifted inputs does no work in vain,
but reads its input once for each weight: it is the fastest up to some thirty of them. `experiments/benchmark` measures
all of this. On other platforms the backend's convolution is the fast way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bnderiv._checks import longer
from bnderiv._cpu import on_cpu
from bnderiv.convolution import banded, direct, shifted


class Correlations(NamedTuple):
    """Of a geometry, with (x, kernel), (x_shape, kernel, delta) and (kernel_shape, x, delta)."""

    correlation: Callable[..., jax.Array]
    input_gradient: Callable[..., jax.Array]
    kernel_gradient: Callable[..., jax.Array]


def fastest(geometry: Any, x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> Correlations:
    """The three correlations, each in the way that is expected to be the fastest on the default backend."""
    layout = banded.LAYOUTS.get(geometry.layout)
    if not on_cpu() or geometry.groups > 1 or layout is None:
        return _DIRECT
    kh, kw, c_in, c_out = kernel_shape
    axis, _ = layout.spatial
    size = x_shape[geometry.layout[2 + axis]]
    if longer(size, _LONGEST) or size * c_out >= 128 * kernel_shape[axis]:
        return _DIRECT
    if layout is banded.BATCH_LAST and kh * kw * c_in <= 32:
        return _BANDED._replace(correlation=shifted.correlation)
    return _BANDED


# A band is laid one output after the other, and so takes its time to compile.
_LONGEST = 64

_DIRECT = Correlations(direct.correlation, direct.input_gradient, direct.kernel_gradient)
_BANDED = Correlations(banded.correlation, banded.input_gradient, banded.kernel_gradient)
