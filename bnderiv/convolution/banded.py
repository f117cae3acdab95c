"""The three correlations as matrix products with the banded matrix of the kernel (derivation.md, C14–C17).

Along one axis a correlation is the product with a banded (Toeplitz) matrix T, which has the kernel on its diagonals.
Along the other axis, the input's lines are stacked once for each weight. So a convolution is one matrix product, on a
CPU much faster than the backend's convolution if channels are few. Most of T is zeros, and 0 · NaN is NaN: NaN and
infinity in the input or in δ reach all outputs of their example along the banded axis.

The letters of an array are its layout: n is the batch, c and o are the channels of input and output. Along the banded
axis, weight j leads from cell p to output i. Along the other axis, weight k leads from its line to line s.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from bnderiv import _target
from bnderiv._checks import pad
from bnderiv._cpu import quotient
from bnderiv.convolution._lines import lines


class _Layout(NamedTuple):
    kernel: str
    band: str
    stacked: str
    output: str
    spatial: tuple[int, int]  # the banded one of (rows, columns), then the other


# In both, every array is a matrix in memory: the summed letters are contiguous, at the front or at the end.
BATCH_LAST = _Layout("jkco", "oikcp", "kcpsn", "oisn", (0, 1))
CHANNELS_LAST = _Layout("kjco", "kpcio", "nskpc", "nsio", (1, 0))
LAYOUTS = {(3, 0, 1, 2): BATCH_LAST, (0, 3, 1, 2): CHANNELS_LAST}  # by the axes of (batch, channel, rows, columns)


def correlation(geometry, x, kernel):
    """z_ois = Σ T_oikcp a_cp(s + k)  (C15)."""
    layout = LAYOUTS[geometry.layout]
    band, stacked = _band(geometry, x.shape, kernel), _stacked(geometry, x, kernel.shape)
    return _product(layout.band, band, layout.stacked, stacked, layout.output)


def input_gradient(geometry, x_shape, kernel, delta):
    """∂J/∂a = Tᵀδ, with the stacked lines added up (C16)."""
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
        terms.append(pad(line, {axis: (low, x_shape[axis] - reach, stride - 1)}))
    # Without the quotient, XLA would compute the sum at each of its uses, and materialize every padded line.
    return quotient(sum(terms[1:], terms[0])) if len(terms) > 1 else terms[0]


def kernel_gradient(geometry, kernel_shape, x, delta):
    """∂J/∂T = δ aᵀ, summed along its diagonals (C17)."""
    layout = LAYOUTS[geometry.layout]
    stacked = _stacked(geometry, x, kernel_shape)
    d_band = _product(layout.output, delta, layout.stacked, stacked, layout.band)
    letters = layout.band.replace("i", "").replace("p", "j")  # of one line of T
    axis, size, dilation, windows = letters.index("j"), *_windows(geometry, x.shape, kernel_shape)
    terms = []
    for i, (begin, end) in enumerate(windows):
        line = lax.index_in_dim(d_band, i, layout.band.index("i"), keepdims=False)
        terms.append(pad(line, {axis: (-begin, end - size)}))
    weights = lax.slice_in_dim(sum(terms[1:], terms[0]), 0, None, dilation, axis)
    return weights.transpose([letters.index(c) for c in layout.kernel])


def _band(geometry, x_shape, kernel):
    """T: line i is the kernel at the cells of output i's window (C14)."""
    layout = LAYOUTS[geometry.layout]
    letters = layout.band.replace("i", "").replace("p", "j")  # of one line of T
    axis, size, dilation, windows = letters.index("j"), *_windows(geometry, x_shape, kernel.shape)
    weights = kernel.transpose([layout.kernel.index(c) for c in letters])
    band = [pad(weights, {axis: (begin, size - end, dilation - 1)}) for begin, end in windows]
    return jnp.stack(band, layout.band.index("i"))


def _windows(geometry, x_shape, kernel_shape):
    """The banded axis: its size, its dilation, and the cells (begin, end) of each output's window.

    A window may extend beyond the input: weight j of output i is at cell p = stride·i + dilation·j − before (C14).
    """
    banded, _ = LAYOUTS[geometry.layout].spatial
    size, stride, dilation = x_shape[geometry.layout[2 + banded]], geometry.strides[banded], geometry.dilation[banded]
    before, after = geometry.padding[banded]
    reach = dilation * (kernel_shape[banded] - 1) + 1
    return size, dilation, [(p, p + reach) for p in range(-before, size + after - reach + 1, stride)]


def _stacked(geometry, x, kernel_shape):
    """The lines under weight k of the other axis, for every k."""
    layout = LAYOUTS[geometry.layout]
    _, other = layout.spatial
    axis, stride, dilation = geometry.layout[2 + other], geometry.strides[other], geometry.dilation[other]
    x = pad(x, {axis: geometry.padding[other]})
    reach = dilation * (kernel_shape[other] - 1)
    first = range(0, reach + 1, dilation)
    return jnp.stack([lines(x, axis, k, x.shape[axis] - reach + k, stride) for k in first], layout.stacked.index("k"))


def _product(of_a, a, of_b, b, of_result):
    """`einsum(f"{of_a},{of_b}->{of_result}")` where the summed letters of each array are its first or its last.

    So each array is a matrix in memory, transposed or not. XLA multiplies a matrix as it is, but copies an array with
    several summed axes. Axes that may be sharded must not be merged.
    """
    if of_result[0] in of_b:
        of_a, a, of_b, b = of_b, b, of_a, a
    sizes = dict(zip(of_a + of_b, a.shape + b.shape, strict=True))
    a, summed_in_a = _matrix(of_a, a, of_result)
    b, summed_in_b = _matrix(of_b, b, of_result)
    result = lax.dot_general(a, b, ((summed_in_a, summed_in_b), ((), ())))
    return result.reshape([sizes[c] for c in of_result])


def _matrix(letters, a, of_result):
    """`a`, as a matrix unless it may be sharded, and its summed axes."""
    summed = [i for i, c in enumerate(letters) if c not in of_result]
    if not _target.in_one_part():
        return a, summed
    cut = len(summed) if summed[0] == 0 else summed[0]
    return a.reshape(math.prod(a.shape[:cut]), -1), [0 if summed[0] == 0 else 1]
