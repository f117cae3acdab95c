"""Layer, group and instance norm and ∂J/∂x in long double, for measuring the adapters' float32 against."""

import numpy as np

from tests.normalization.truth import relative_error


def errors(y_and_dx, x, delta, axes, *, groups=None, eps=1e-6):
    """Relative errors of y and dx. With `groups`, the last axis is split into so many, and `axes` are of that array."""

    def wide(a):
        a = np.asarray(a, np.float64).astype(np.longdouble)
        return a if groups is None else a.reshape(*a.shape[:-1], groups, -1)

    x, delta, y, dx = (wide(a) for a in (x, delta, *y_and_dx))
    centred = x - x.mean(axes, keepdims=True)
    r = 1 / np.sqrt((centred**2).mean(axes, keepdims=True) + np.longdouble(eps))
    x_hat = centred * r
    through = delta.mean(axes, keepdims=True) + x_hat * (delta * x_hat).mean(axes, keepdims=True)
    return relative_error(y, x_hat), relative_error(dx, r * (delta - through))
