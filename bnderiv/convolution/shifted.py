"""A correlation as the sum of its shifted inputs, one multiplication and addition after the other (derivation.md, C6).

In one loop over the examples, which lie next to each other, for a kernel of few weights.
"""

from jax import lax

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv.convolution._lines import lines


def correlation(geometry, x, kernel):
    """z_i = Σ_x w_x a_{s·i + d·x − t}  (C6), of a single group, channels first and batch last: (C, H, W, N)."""
    wide = accumulator(x.dtype)
    kh, kw, c_in, _ = kernel.shape
    x, kernel = x.astype(wide), kernel.astype(wide)
    x = lax.pad(x, x.dtype.type(0), [(0, 0, 0), *((*side, 0) for side in geometry.padding), (0, 0, 0)])
    z = None
    for i in range(kh):
        for j in range(kw):
            cells = _met_by(i, kh, 1, geometry, _met_by(j, kw, 2, geometry, x))
            for c in range(c_in):
                term = _checks.along(kernel[i, j, c], 0, 4) * cells[c : c + 1]
                z = term if z is None else z + term
    return z


def _met_by(i, k, axis, geometry, x):
    """The cells along `axis` that weight i of k meets, one for each output."""
    stride, dilation = geometry.strides[axis - 1], geometry.dilation[axis - 1]
    return lines(x, axis, i * dilation, x.shape[axis] - dilation * (k - 1 - i), stride)
