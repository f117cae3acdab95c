"""The correlation as a sum of shifted inputs, each times one weight (derivation.md, C6).

For kernels of few weights on a CPU. XLA fuses the sum into one loop whose innermost axis is the batch.
"""

from bnderiv._checks import along, pad
from bnderiv.convolution._lines import lines


def correlation(geometry, x, kernel):
    """z_i = Σ_x w_x a_{s·i + d·x − t}  (C6), for one group and the layout (C, H, W, N)."""
    kh, kw, c_in, _ = kernel.shape
    x = pad(x, {1: geometry.padding[0], 2: geometry.padding[1]})
    z = None
    for i in range(kh):
        for j in range(kw):
            cells = _cells_under(i, kh, 1, geometry, _cells_under(j, kw, 2, geometry, x))
            for c in range(c_in):
                term = along(kernel[i, j, c], 0, 4) * cells[c : c + 1]
                z = term if z is None else z + term
    return z


def _cells_under(i, k, axis, geometry, x):
    """The cells along `axis` under weight i of k, one for each output."""
    stride, dilation = geometry.strides[axis - 1], geometry.dilation[axis - 1]
    return lines(x, axis, i * dilation, x.shape[axis] - dilation * (k - 1 - i), stride)
