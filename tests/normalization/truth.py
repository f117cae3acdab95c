"""Batch norm and its gradients in long double, by the formulas of derivation.md, for measuring float32 against."""

import numpy as np


def batch_norm(x, gamma, beta, delta, eps=1e-5):
    """y, dx, dγ, dβ for channels last, at the values the arguments have (after rounding to their dtype).

    x is scaled by the power of two nearest its size, so that squares of 1e30 stay in range of any long double.
    """
    x, gamma, beta, delta = (np.asarray(a, np.float64).astype(np.longdouble) for a in (x, gamma, beta, delta))
    size = np.exp2(np.floor(np.log2(max(float(np.abs(x).max()), 1e-300)))).astype(np.longdouble)
    axes = tuple(range(x.ndim - 1))
    n = x.size // x.shape[-1]
    x = x / size
    centred = x - x.mean(axes)
    r = 1 / np.sqrt((centred**2).mean(axes) + np.longdouble(eps) / size**2)
    x_hat = centred * r
    d_gamma, d_beta = (delta * x_hat).sum(axes), delta.sum(axes)
    dx = gamma * r / size * (delta - d_beta / n - x_hat * d_gamma / n)
    return gamma * x_hat + beta, dx, d_gamma, d_beta


def over_other_axes(x, gamma, beta, delta, over, rest, eps=1e-5, centred=True):
    """y, dx, dγ, dβ with statistics over the axes `over`, and γ and β, which broadcast against x, shared over `rest`.

    Not centred: RMS norm.
    """
    x, gamma, beta, delta = (np.asarray(a, np.float64).astype(np.longdouble) for a in (x, gamma, beta, delta))
    size = np.exp2(np.floor(np.log2(max(float(np.abs(x).max()), 1e-300)))).astype(np.longdouble)
    x = x / size
    deviation = x - x.mean(over, keepdims=True) if centred else x
    r = 1 / np.sqrt((deviation**2).mean(over, keepdims=True) + np.longdouble(eps) / size**2)
    x_hat = deviation * r
    d_x_hat = gamma * delta
    mean = d_x_hat.mean(over, keepdims=True) if centred else 0
    dx = r / size * (d_x_hat - mean - x_hat * (d_x_hat * x_hat).mean(over, keepdims=True))
    return gamma * x_hat + beta, dx, (delta * x_hat).sum(rest), delta.sum(rest)


def relative_error(actual, expected):
    """‖actual − expected‖ / ‖expected‖, without overflow; NaN where the actual value has one."""
    actual = np.asarray(actual, np.float64).astype(np.longdouble)
    size = np.abs(expected).max()
    return float(np.linalg.norm((actual - expected) / size) / np.linalg.norm(expected / size))
