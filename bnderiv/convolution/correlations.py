"""Which algorithm computes the three correlations, and in which dtype: the choice, and the cost model behind it.

This file alone knows the platform. `direct` is XLA's own convolution, the fast way everywhere but on a CPU. `banded`
and `shifted` are for CPUs only. Results differ by rounding, and in how far NaN and infinity reach (`banded`).

Accelerators convolve half precision as it is: their matrix units take bfloat16 and float16, and accumulate in float32.
Asked for a float32 result, XLA:GPU converts the operands and convolves in float32, which doubles the traffic of a block
of a ResNet. XLA:CPU converts anyway, so there the operands are converted first, and the result is rounded once.

The cost model: the CPU's convolution of few channels runs at about 1.6 GFLOP/s for each output channel, and matrix
products at 260 (two cores). A banded matrix has size/k times the weights of its kernel, for an input of this size and a
kernel of length k along the banded axis, so the matrix product does size/k times the work. They break even at
size/k · C_out = 160. A sum of shifted inputs does no extra work, but reads its input once for each weight.
`experiments/benchmark/convolutions.py` times the three side by side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bnderiv._checks import longer
from bnderiv._numbers import accumulator
from bnderiv._target import by_target
from bnderiv.convolution import banded, direct, shifted

# size/k · C_out from which the backend's convolution is faster: 160 by the cost model, less what stacking costs.
_BANDED_BELOW = 128

# Weights (kh · kw · C_in) up to which a sum of shifted inputs is the fastest forward.
_SHIFTED_UP_TO = 32

# Size of the banded axis above which the band, built one output after the other, takes seconds to compile.
_LONGEST_BAND = 64

Shape = tuple[int, ...]


class Correlations(NamedTuple):
    """Functions of a geometry and (x, kernel), (x_shape, kernel, delta) or (kernel_shape, x, delta)."""

    correlation: Callable[..., jax.Array]
    input_gradient: Callable[..., jax.Array]
    kernel_gradient: Callable[..., jax.Array]


_DIRECT = Correlations(direct.correlation, direct.input_gradient, direct.kernel_gradient)
_BANDED = Correlations(banded.correlation, banded.input_gradient, banded.kernel_gradient)


def with_fastest(
    form: Callable[[Correlations, Any], Any], geometry: Any, x_shape: Shape, kernel_shape: Shape, dtype: Any
) -> Any:
    """`form(correlations, dtype to compute in)`, of what is expected to be the fastest on the target of a program."""
    wide = accumulator(dtype)
    on_cpu = fastest_on_cpu(geometry, x_shape, kernel_shape), wide
    elsewhere = _DIRECT, jnp.dtype(dtype) if jnp.dtype(dtype).itemsize == 2 else wide
    if on_cpu == elsewhere:
        return form(*on_cpu)
    return by_target(cpu=lambda: form(*on_cpu), default=lambda: form(*elsewhere))


def fastest_on_cpu(geometry: Any, x_shape: Shape, kernel_shape: Shape) -> Correlations:
    """The three correlations, each by the algorithm expected to be the fastest on a CPU."""
    layout = banded.LAYOUTS.get(geometry.layout)
    if geometry.groups > 1 or layout is None:
        return _DIRECT
    kh, kw, c_in, c_out = kernel_shape
    axis, _ = layout.spatial
    size = x_shape[geometry.layout[2 + axis]]
    if longer(size, _LONGEST_BAND) or size * c_out >= _BANDED_BELOW * kernel_shape[axis]:
        return _DIRECT
    if layout is banded.BATCH_LAST and kh * kw * c_in <= _SHIFTED_UP_TO:
        return _BANDED._replace(correlation=shifted.correlation)
    return _BANDED
