"""The three correlations as matrix products with the banded matrix of the kernel (derivation.md, C14–C17).

Along one axis a correlation is the product with a matrix that has the kernel on its diagonals (a Toeplitz matrix). So
with T banded along one spatial axis, and the input's lines along the other stacked once for each weight they meet, a
whole convolution is one matrix product. Most of T is zeros, and a zero times NaN or infinity is NaN: what is not finite
in the input or in δ reaches all outputs of its example along the banded axis, not only those whose window it is in.

In the products below the batch is n, channels are c (in) and o (out); weight j along the banded axis leads from cell p
to output i, weight k along the other axis from its line to line s. The letters of an array are its layout.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from bnderiv import _cpu
from bnderiv._cpu import quotient
from bnderiv._numbers import accumulator
from bnderiv.convolution._lines import lines


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


def correlation(geometry, x, kernel):
    """z_ois = Σ T_oikcp a_cp(s + k), all of it (C15)."""
    layout = LAYOUTS[geometry.layout]
    band, stacked = _band(geometry, x.shape, kernel), _stacked(geometry, x, kernel.shape)
    return _product(layout.band, band, layout.stacked, stacked, layout.output)


def input_gradient(geometry, x_shape, kernel, delta):
    """∂J/∂a = Tᵀδ, each line added up from the lines s that it was stacked for (C16)."""
    layout = LAYOUTS[geometry.layout]
    stacked = _product(layout.band, _band(geometry, x_shape, kernel), layout.output, delta, layout.stacked)
    _, other = layout.spatial
    axis, (before, _) = geometry.layout[2 + other], geometry.padding[other]
    stride, dilation = geometry.strides[other], geometry.dilation[other]
    terms = []
    for k in range(kernel.shape[other]):
        line = lax.index_in_dim(stacked, k, layout.stacked.index("k"), keepdims=False)
        low = k * dilation - before
        reach = low + (line.shape[axis] - 1) * stride + 1
        terms.append(_padded(line, axis, low, x_shape[axis] - reach, stride - 1))
    # Once, and not for each use of the sum, for which XLA would write every padded line.
    return quotient(sum(terms[1:], terms[0])) if len(terms) > 1 else terms[0]


def kernel_gradient(geometry, kernel_shape, x, delta):
    """∂J/∂T = δ aᵀ, summed along its diagonals (C17)."""
    layout = LAYOUTS[geometry.layout]
    stacked = _stacked(geometry, x, kernel_shape)
    d_band = _product(layout.output, delta, layout.stacked, stacked, layout.band)
    letters = layout.band.replace("i", "").replace("p", "j")  # of one line of T
    axis, size, dilation, windows = letters.index("j"), *_windows(geometry, x.shape, kernel_shape)
    met = []
    for i, (begin, end) in enumerate(windows):
        line = lax.index_in_dim(d_band, i, layout.band.index("i"), keepdims=False)
        met.append(_padded(line, axis, -begin, end - size))
    weights = lax.slice_in_dim(sum(met[1:], met[0]), 0, None, dilation, axis)
    return weights.transpose([letters.index(c) for c in layout.kernel])


def _band(geometry, x_shape, kernel):
    """T: line i is the kernel, laid along the cells that output i meets (C14)."""
    layout = LAYOUTS[geometry.layout]
    letters = layout.band.replace("i", "").replace("p", "j")  # of one line of T
    axis, size, dilation, windows = letters.index("j"), *_windows(geometry, x_shape, kernel.shape)
    weights = kernel.transpose([layout.kernel.index(c) for c in letters])
    band = [_padded(weights, axis, begin, size - end, dilation - 1) for begin, end in windows]
    return jnp.stack(band, layout.band.index("i"))


def _windows(geometry, x_shape, kernel_shape):
    """Of the banded axis its size and dilation, and for each output (begin, end) of the cells from its first weight to
    its last, inside of the input or not: weight j leads from p = stride·i + dilation·j − before to output i (C14).
    """
    banded, _ = LAYOUTS[geometry.layout].spatial
    size, stride, dilation = x_shape[geometry.layout[2 + banded]], geometry.strides[banded], geometry.dilation[banded]
    before, after = geometry.padding[banded]
    reach = dilation * (kernel_shape[banded] - 1) + 1
    return size, dilation, [(p, p + reach) for p in range(-before, size + after - reach + 1, stride)]


def _padded(a, axis, low, high, interior=0):
    """`lax.pad` with zeros along one axis; negative edges cut."""
    return lax.pad(
        a, jnp.zeros((), a.dtype), [(low, high, interior) if i == axis else (0, 0, 0) for i in range(a.ndim)]
    )


def _stacked(geometry, x, kernel_shape):
    """The lines that weight k meets on its way over the other axis, for every k."""
    layout = LAYOUTS[geometry.layout]
    _, other = layout.spatial
    axis, stride, dilation = geometry.layout[2 + other], geometry.strides[other], geometry.dilation[other]
    x = _padded(x, axis, *geometry.padding[other])
    reach = dilation * (kernel_shape[other] - 1)
    first = range(0, reach + 1, dilation)
    return jnp.stack([lines(x, axis, k, x.shape[axis] - reach + k, stride) for k in first], layout.stacked.index("k"))


def _product(of_a, a, of_b, b, of_result):
    """`einsum(f"{of_a},{of_b}->{of_result}")` of arrays that are matrices as they lie: what is summed is first or last.

    Where XLA is given the matrices themselves it multiplies them as they are, transposed or not. Several summed axes it
    makes one by a copy. But axes that are spread over devices must stay axes.
    """
    if of_result[0] in of_b:
        of_a, a, of_b, b = of_b, b, of_a, a
    sizes = dict(zip(of_a + of_b, a.shape + b.shape, strict=True))
    wide = accumulator(b.dtype)  # the products of this backend's narrower matrices are no faster, nor always there
    a, summed_in_a = _matrix(of_a, a.astype(wide), of_result)
    b, summed_in_b = _matrix(of_b, b.astype(wide), of_result)
    result = lax.dot_general(a, b, ((summed_in_a, summed_in_b), ((), ())))
    return result.reshape([sizes[c] for c in of_result])


def _matrix(letters, a, of_result):
    """`a`, and which of its axes are not in the result; two axes in all if there is but one device."""
    summed = [i for i, c in enumerate(letters) if c not in of_result]
    if not _cpu.on_one_device():
        return a, summed
    cut = len(summed) if summed[0] == 0 else summed[0]
    return a.reshape(math.prod(a.shape[:cut]), -1), [0 if summed[0] == 0 else 1]
