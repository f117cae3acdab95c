"""The three correlations as matrix products with the banded matrix of the kernel (derivation.md, C14–C17).

Along one axis a correlation is the product with a matrix that has the kernel on its diagonals (a Toeplitz matrix). So
with T banded along one spatial axis, and the input's lines along the other stacked once for each weight they meet, a
whole convolution is one matrix product. Most of T is zeros, and a zero times NaN or infinity is NaN: what is not finite
in the input or in δ reaches all outputs of its example along the banded axis, not only those whose window it is in.

In the products below the batch is n, channels are c (in) and o (out); weight j along the banded axis leads from cell p
to output i, weight k along the other axis from its line to line s. The letters of an array are its layout.

Each function is compiled as a whole, for calls outside of `jax.jit`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnderiv._precision import accumulator


class _Layout(NamedTuple):
    kernel: str
    band: str
    stacked: str
    output: str
    spatial: tuple[int, int]  # which of (rows, columns) is banded, and which is the other


# In each, every array is a matrix as it lies in memory.
BATCH_LAST = _Layout("jkco", "oikcp", "kcpsn", "oisn", (0, 1))
CHANNELS_LAST = _Layout("kjco", "kpcio", "nskpc", "nsio", (1, 0))
LAYOUTS = {(3, 0, 1, 2): BATCH_LAST, (0, 3, 1, 2): CHANNELS_LAST}  # by the axes of (batch, channel, rows, columns)


@partial(jax.jit, static_argnums=0)
def correlation(geometry, x, kernel):
    """z_ois = Σ T_oikcp a_cp(s + k), all of it (C15)."""
    layout = LAYOUTS[geometry.layout]
    band, stacked = _band(geometry, x.shape, kernel), _stacked(geometry, x, kernel.shape)
    return _contract(layout.band, band, layout.stacked, stacked, layout.output)


@partial(jax.jit, static_argnums=(0, 1))
def input_gradient(geometry, x_shape, kernel, delta):
    """∂J/∂a = Tᵀδ, each line added up from the lines s that it was stacked for (C16)."""
    layout = LAYOUTS[geometry.layout]
    lines = _contract(layout.band, _band(geometry, x_shape, kernel), layout.output, delta, layout.stacked)
    _, other = layout.spatial
    axis, (before, _) = geometry.layout[2 + other], geometry.padding[other]
    stride, dilation = geometry.strides[other], geometry.dilation[other]
    terms = []
    for k in range(kernel.shape[other]):
        line = lax.index_in_dim(lines, k, layout.stacked.index("k"), keepdims=False)
        low = k * dilation - before
        reach = low + (line.shape[axis] - 1) * stride + 1
        padding = [(low, x_shape[axis] - reach, stride - 1) if a == axis else (0, 0, 0) for a in range(4)]
        terms.append(lax.pad(line, jnp.zeros((), line.dtype), padding))
    return sum(terms[1:], terms[0])


@partial(jax.jit, static_argnums=(0, 1))
def kernel_gradient(geometry, kernel_shape, x, delta):
    """∂J/∂T = δ aᵀ, summed along its diagonals (C17)."""
    layout = LAYOUTS[geometry.layout]
    stacked = _stacked(geometry, x, kernel_shape)
    d_band = _contract(layout.output, delta, layout.stacked, stacked, layout.band)
    return _contract("pji", _diagonals(geometry, x.shape, kernel_shape), layout.band, d_band, layout.kernel)


def _diagonals(geometry, x_shape, kernel_shape):
    """1 where weight j leads from cell p to output i of the banded axis: p = stride·i + dilation·j − before (C14)."""
    banded, _ = LAYOUTS[geometry.layout].spatial
    size, k = x_shape[geometry.layout[2 + banded]], kernel_shape[banded]
    stride, dilation, padding = (option[banded] for option in (geometry.strides, geometry.dilation, geometry.padding))
    outputs = (size + sum(padding) - dilation * (k - 1) - 1) // stride + 1
    p, j, i = np.ogrid[:size, :k, :outputs]
    return p == stride * i + dilation * j - padding[0]


def _band(geometry, x_shape, kernel):
    """T: the kernel, each weight along its diagonal (C14)."""
    layout = LAYOUTS[geometry.layout]
    return _contract("pji", _diagonals(geometry, x_shape, kernel.shape), layout.kernel, kernel, layout.band)


def _stacked(geometry, x, kernel_shape):
    """The lines that weight k meets on its way over the other axis, for every k."""
    layout = LAYOUTS[geometry.layout]
    _, other = layout.spatial
    axis, stride, dilation = geometry.layout[2 + other], geometry.strides[other], geometry.dilation[other]
    x = lax.pad(
        x, jnp.zeros((), x.dtype), [(*geometry.padding[other], 0) if a == axis else (0, 0, 0) for a in range(4)]
    )
    reach = dilation * (kernel_shape[other] - 1)
    lines = [
        lax.slice_in_dim(x, k * dilation, x.shape[axis] - reach + k * dilation, stride, axis)
        for k in range(kernel_shape[other])
    ]
    return jnp.stack(lines, layout.stacked.index("k"))


def _contract(of_a, a, of_b, b, of_result):
    """`einsum(f"{of_a},{of_b}->{of_result}")`, but factors and summed axes are in the order that copies the least."""
    wide = accumulator(b.dtype)  # the products of this backend's narrower matrices are no faster, nor always there
    if of_result[0] in of_b:
        of_a, a, of_b, b = of_b, b, of_a, a
    summed = [c for c in of_a if c in of_b]
    axes = [of_a.index(c) for c in summed], [of_b.index(c) for c in summed]
    result = lax.dot_general(jnp.asarray(a, wide), jnp.asarray(b, wide), (axes, ((), ())))
    free = [c for c in of_a + of_b if c not in summed]
    return result.transpose([free.index(c) for c in of_result])
