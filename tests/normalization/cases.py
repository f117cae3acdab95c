"""Cases and slips of the normalization room."""

import jax.numpy as jnp
import numpy as np

from bnderiv.normalization import batch_norm, inference, moments
from tests.case import Case
from tests.slip import Slip, scaled


def random_input(*shape, channels, axis=-1):
    def arrays(rng):
        x = 2 + 3 * rng.standard_normal(np.insert(np.array(shape), axis % (len(shape) + 1), channels))
        return x, 1 + rng.standard_normal(channels), rng.standard_normal(channels)

    return arrays


def _far_from_the_kink(arrays):
    """β so large, per channel in turn of either sign, that no y comes near 0; half of the channels are cut off."""

    def shifted(rng):
        x, gamma, beta = arrays(rng)
        return x, gamma / 4, np.where(np.arange(len(beta)) % 2, 4.0, -4.0) + beta / 4

    return shifted


def _inference(*shape, channels, axis=-1):
    def arrays(rng):
        mean, var = rng.standard_normal(channels), 0.5 + rng.random(channels)
        return *random_input(*shape, channels=channels, axis=axis)(rng), mean, var

    return arrays


_ROWS = np.array([True, False, True, True, False])[:, None]
_IMAGES = np.random.default_rng(7).random((3, 2, 4, 1)) < 0.6
_EACH = np.random.default_rng(8).random((6, 3)) < 0.6

CASES = (
    ROWS := Case("batch_norm", "rows", random_input(7, channels=3)),
    IMAGES := Case("batch_norm", "images", random_input(3, 2, 4, channels=2)),
    Case("batch_norm", "channels-first", random_input(3, 2, 4, channels=2, axis=1), {"channel_axis": 1}),
    Case("batch_norm", "channels-leading", random_input(3, 5, channels=2, axis=0), {"channel_axis": 0}),
    Case("batch_norm", "volumes", random_input(2, 2, 2, 2, channels=2), {"eps": 1e-3}),
    Case("batch_norm", "masked-rows", random_input(5, channels=3), {"where": _ROWS}),
    MASKED := Case("batch_norm", "masked-pixels", random_input(3, 2, 4, channels=2), {"where": _IMAGES}),
    Case("batch_norm", "masked-entries", random_input(6, channels=3), {"where": _EACH}),
    RELU := Case("batch_norm_relu", "images", random_input(3, 2, 4, channels=3)),
    Case("batch_norm_relu", "channels-first", random_input(3, 2, 4, channels=2, axis=1), {"channel_axis": 1}),
    Case("batch_norm_relu", "cut-off-channels", _far_from_the_kink(random_input(6, channels=4))),
    Case("batch_norm_relu", "masked-pixels", random_input(3, 2, 4, channels=2), {"where": _IMAGES}),
    INFERENCE := Case("batch_norm_inference", "rows", _inference(5, channels=3)),
    Case("batch_norm_inference", "images", _inference(2, 2, 3, channels=2)),
    Case("batch_norm_inference", "channels-first", _inference(2, 2, 3, channels=2, axis=1), {"channel_axis": 1}),
)


def _dx(change):
    """A backward of `_normalize` with another dx: `change(dx, δ, u − m, s, r, γ, n)`."""

    def break_bwd(bwd):
        def broken(axis, relu, own, residuals, delta):
            dx, *rest = bwd(axis, relu, own, residuals, delta)
            x, _, gamma, _, eps, n, shift, scale, mean, var = residuals
            shift, scale, mean, var, gamma, n = (_row(a, x) for a in (shift, scale, mean, var, gamma, n))
            u = (x - shift) * scale - mean
            r = 1 / jnp.sqrt(var + eps * scale**2)
            return change(dx, delta, u, scale, r, gamma, n), *rest

        return broken

    return break_bwd


def _sum(a):
    return a.sum(tuple(range(a.ndim - 1)), keepdims=True)  # channels last in every case used here


def _row(vector, like):
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _without_mean_part(dx, delta, u, scale, r, gamma, n):
    return dx + gamma * r * scale / n * _sum(delta)


def _without_variance_part(dx, delta, u, scale, r, gamma, n):
    return dx + gamma * scale * r**3 / n * u * _sum(delta * u)


def _batch_size_for_count(dx, delta, u, scale, r, gamma, n):
    m = dx.shape[0]
    return gamma * r * scale * (delta - _sum(delta) / m - u * r**2 * _sum(delta * u) / m)


def _without_gamma(dx, delta, u, scale, r, gamma, n):
    return dx / gamma


def _gamma_gradient_of_x(bwd):
    """Σ δ x in place of Σ δ x̂: the slip of document 000."""

    def broken(axis, relu, own, residuals, delta):
        dx, nothing, _, *rest = bwd(axis, relu, own, residuals, delta)
        return dx, nothing, jnp.squeeze(_sum(delta * residuals[0])), *rest

    return broken


def _everything_passes(bwd):
    return lambda axis, relu, own, residuals, delta: bwd(axis, False, own, residuals, delta)


def _mask_forgotten(bwd):
    return lambda axis, relu, own, residuals, delta: (
        bwd(axis, relu, own, (residuals[0], None, *residuals[2:]), delta)[0],
        *bwd(axis, relu, own, residuals, delta)[1:],
    )


def _unbiased(bwd):
    """∂σ²/∂x = 2 (x − μ)/(n − 1), the derivative of the other variance."""

    def broken(axis, residuals, cotangents):
        *constants, d_mean, d_var = cotangents
        n = residuals[2]
        return bwd(axis, residuals, (*constants, d_mean, d_var * n / (n - 1)))

    return broken


def _mean_ignored(bwd):
    def broken(axis, residuals, cotangents):
        *constants, d_mean, d_var = cotangents
        return bwd(axis, residuals, (*constants, 0 * d_mean, d_var))

    return broken


SLIPS = (
    Slip("mean-part-dropped", ROWS, batch_norm._normalize, _dx(_without_mean_part)),
    Slip("variance-part-dropped", ROWS, batch_norm._normalize, _dx(_without_variance_part)),
    Slip("batch-size-for-count", IMAGES, batch_norm._normalize, _dx(_batch_size_for_count)),
    Slip("gamma-missing-in-dx", IMAGES, batch_norm._normalize, _dx(_without_gamma)),
    Slip("x-for-x-hat-in-gamma", IMAGES, batch_norm._normalize, _gamma_gradient_of_x),
    Slip("mask-forgotten", MASKED, batch_norm._normalize, _mask_forgotten),
    Slip("returned-mean-ignored", ROWS, moments._moments, _mean_ignored),
    Slip("returned-variance-unbiased", ROWS, moments._moments, _unbiased),
    Slip("relu-ignored", RELU, batch_norm._normalize, _everything_passes),
    Slip("variance-gradient-sign", INFERENCE, inference._inference, scaled(1, 1, 1, 1, -1, 1)),
    Slip("mean-gradient-dropped", INFERENCE, inference._inference, scaled(1, 1, 1, 0, 1, 1)),
)
