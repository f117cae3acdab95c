"""Cases and slips of the normalization room."""

import numpy as np

from tests.case import Case


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


SLIPS = ()
