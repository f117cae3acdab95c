"""Cases and slips of the normalization room."""

import jax.numpy as jnp
import numpy as np

import bnderiv
from tests.case import Case
from tests.slip import Slip, gradients, scaled


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


def _residual(arrays):
    """A residual z besides. No sum comes near 0, so z is moved where one would."""

    def with_z(rng):
        x, gamma, beta = arrays(rng)
        z = rng.standard_normal(x.shape)
        return x, gamma / 4, beta / 4, z + np.sign(z) * 4

    return with_z


def _features(*shape, axes=(-1,)):
    """x with γ and β of its shape along these axes."""

    def arrays(rng):
        own = [shape[a] for a in axes]
        return 2 + 3 * rng.standard_normal(shape), 1 + rng.standard_normal(own), rng.standard_normal(own)

    return arrays


def _without_beta(arrays):
    return lambda rng: arrays(rng)[:2]


def _inference(*shape, channels, axis=-1):
    def arrays(rng):
        mean, var = rng.standard_normal(channels), 0.5 + rng.random(channels)
        return *random_input(*shape, channels=channels, axis=axis)(rng), mean, var

    return arrays


def _renorm(*shape, channels, axis=-1):
    """Running statistics near the batch's, so that neither r nor d is clipped."""

    def arrays(rng):
        mean, var = 2 + 0.5 * rng.standard_normal(channels), 9 * (0.5 + rng.random(channels))
        return *random_input(*shape, channels=channels, axis=axis)(rng), mean, var

    return arrays


def _at_the_limits(*shape, channels):
    """Running statistics far from the batch's, on either side in turn: r and d do not move."""

    def arrays(rng):
        odd = np.arange(channels) % 2
        mean, var = np.where(odd, -9.0, 13.0), np.where(odd, 0.3, 270.0)
        return *random_input(*shape, channels=channels)(rng), mean, var

    return arrays


_ROWS = np.array([True, False, True, True, False])[:, None]
_IMAGES = np.random.default_rng(7).random((3, 2, 4, 1)) < 0.6
_EACH = np.random.default_rng(8).random((6, 3)) < 0.6
_TOKENS = np.random.default_rng(9).random((6, 3, 4)) < 0.7
_ENTRIES = np.random.default_rng(10).random((5, 12)) < 0.8
_PLACES = np.random.default_rng(11).random((3, 1, 8)) < 0.6

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
    RESIDUAL := Case("batch_norm_relu", "residual", _residual(random_input(3, 2, 4, channels=3))),
    Case("batch_norm_relu", "residual-masked", _residual(random_input(6, channels=3)), {"where": _EACH}),
    Case("batch_renorm", "at-the-limits", _at_the_limits(7, channels=4), {"r_max": 1.5, "d_max": 0.5}),
    RENORM := Case("batch_renorm", "images", _renorm(3, 2, 4, channels=2), differentiable=False),
    Case(
        "batch_renorm",
        "channels-first-masked",
        _renorm(3, 8, channels=2, axis=1),
        {"channel_axis": 1, "where": _PLACES, "r_max": 1.2, "d_max": 0.1},
        differentiable=False,
    ),
    LAYER := Case("layer_norm", "tokens", _features(3, 4, 5)),
    Case("layer_norm", "images", _features(3, 2, 4, axes=(1, 2)), {"axis": (-1, 1)}),
    Case("layer_norm", "masked", _features(6, 3, 4, axes=(1,)), {"axis": 1, "where": _TOKENS, "eps": 1e-3}),
    Case("layer_norm", "one-example", _features(7), {"eps": 1e-3}),
    GROUP := Case("group_norm", "images", random_input(3, 2, 4, channels=6), {"groups": 2}),
    Case("group_norm", "channels-first", random_input(2, 5, channels=6, axis=1), {"groups": 3, "channel_axis": 1}),
    Case("group_norm", "rows", random_input(5, channels=12), {"groups": 2, "where": _ENTRIES}),
    INSTANCE := Case("instance_norm", "images", random_input(3, 2, 4, channels=3)),
    Case("instance_norm", "masked", random_input(3, 8, channels=2, axis=1), {"channel_axis": 1, "where": _PLACES}),
    RMS := Case("rms_norm", "tokens", _without_beta(_features(3, 4, 5))),
    Case("rms_norm", "images", _without_beta(_features(3, 2, 4, axes=(0, 2))), {"axis": (0, 2)}),
    INFERENCE := Case("batch_norm_inference", "rows", _inference(5, channels=3)),
    Case("batch_norm_inference", "images", _inference(2, 2, 3, channels=2)),
    Case("batch_norm_inference", "channels-first", _inference(2, 2, 3, channels=2, axis=1), {"channel_axis": 1}),
)


def _with_part(part):
    """dx and a part of the derivation, `part(steps)`, that is added or taken away."""

    def change(right, arguments, cotangent):
        steps = bnderiv.steps.batch_norm(*arguments, dy=cotangent[0])  # channels last, eps 1e-5 in the cases used here
        return right[0] + part(steps), *right[1:]

    return change


def _batch_size_for_count(s):
    """The second and third part divided by the rows, not by all elements of the channel."""
    rows, channels = s.x.shape[0], s.x.shape[-1]
    return (s.x.size / channels / rows - 1) * (s.dx_through_mu + s.dx_through_var)


def _gamma_gradient_of_x(right, arguments, cotangent):
    """Σ δ x in place of Σ δ x̂: the slip of document 000."""
    product = cotangent[0] * arguments[0]
    return right[0], product.sum(range(product.ndim - 1)), right[2]


def _mask_forgotten(right, arguments, cotangent):
    """What comes back through the statistics is handed to the elements that have no part in them as well."""
    x, gamma, _ = arguments
    delta, others = cotangent[0], (0, 1, 2)
    mean, var, count = (jnp.broadcast_to(a, x.shape) for a in bnderiv.batch_norm(*arguments, **MASKED.options)[1])
    r = 1 / jnp.sqrt(var + 1e-5)
    x_hat = (x - mean) * r
    sums = delta.sum(others, keepdims=True) + x_hat * (delta * x_hat).sum(others, keepdims=True)
    return right[0] - jnp.where(_IMAGES, 0, gamma[None, None, None] * r / count * sums), *right[1:]


def _from_cotangents(change):
    """The gradients that other cotangents of the returned mean and variance give."""

    def changed(right, arguments, cotangent):
        delta, stats = cotangent
        return gradients(bnderiv.batch_norm, arguments, (delta, change(stats)))

    return changed


def _mean_ignored(stats):
    return stats._replace(mean=0 * stats.mean)


def _unbiased(stats):
    """∂σ²/∂x = 2 (x − μ)/(n − 1), the derivative of the other variance, with n = 7."""
    return stats._replace(var=stats.var * 7 / 6)


def _residual_without_mask(right, arguments, cotangent):
    return *right[:3], cotangent[0]


def _residual_forgotten_in_mask(right, arguments, cotangent):
    """[γ x̂ + β > 0] in place of [γ x̂ + β + z > 0]."""
    without = arguments[:3]
    inner = jnp.where(bnderiv.batch_norm(*without)[0] > 0, cotangent[0], 0)
    return *gradients(bnderiv.batch_norm, without, (inner, cotangent[1])), inner


def _everything_passes(right, arguments, cotangent):
    return gradients(bnderiv.batch_norm, arguments, cotangent)


def _gamma_outside_of_the_means(layer, axes):
    """γ r (δ − mean δ − x̂ mean(δ x̂)): the gradient of batch norm, where γ is the same for all."""

    def change(right, arguments, cotangent):
        steps = getattr(bnderiv.steps, layer)(*arguments, dy=cotangent)
        r, delta = jnp.expand_dims(steps.inv_std, axes), steps.dy
        means = delta.mean(axes, keepdims=True) + steps.x_hat * (delta * steps.x_hat).mean(axes, keepdims=True)
        return steps.gamma[None, None] * r * (delta - means), *right[1:]

    return change


def _corrections(arguments):
    """r, d and x̂ of `batch_renorm`, as they broadcast against x."""
    x, _, _, mean, var = arguments
    others = tuple(range(x.ndim - 1))
    own, running = jnp.sqrt(x.var(others) + 1e-5), jnp.sqrt(var + 1e-5)
    mu, mean, own, running = (a[None, None, None] for a in (x.mean(others), mean, own, running))
    return own / running, (mu - mean) / running, (x - mu) / own


def _corrections_differentiated(right, arguments, cotangent):
    """Where nothing is clipped: that of inference, by given statistics."""
    return gradients(bnderiv.batch_norm_inference, arguments, cotangent[0])


def _gamma_without_d(right, arguments, cotangent):
    r, _, x_hat = _corrections(arguments)
    product = cotangent[0] * x_hat * r
    return right[0], product.sum(range(product.ndim - 1)), *right[2:]


def _r_inverted(right, arguments, cotangent):
    """1/r in the place of r in what comes back through y; what comes back through the statistics stays."""
    delta, stats = cotangent
    r, *_ = _corrections(arguments)
    return gradients(bnderiv.batch_renorm, arguments, (delta / r**2, stats))[0], *right[1:]


def _dropped(layer, part, **options):
    def change(right, arguments, cotangent):
        steps = getattr(bnderiv.steps, layer)(*arguments, dy=cotangent, **options)
        return right[0] - getattr(steps, part), *right[1:]

    return change


def _channel_for_group(right, arguments, cotangent):
    """Part 2 of each channel by itself, as in instance norm."""
    steps = bnderiv.steps.group_norm(*arguments, groups=2, dy=cotangent)
    own = -(steps.dx_through_x_hat.mean((1, 2), keepdims=True))
    return right[0] - steps.dx_through_mu + own, *right[1:]


SLIPS = (
    Slip("gamma-outside-of-the-means", LAYER, _gamma_outside_of_the_means("layer_norm", (2,))),
    Slip("layer-mean-part-dropped", LAYER, _dropped("layer_norm", "dx_through_mu")),
    Slip("group-variance-part-dropped", GROUP, _dropped("group_norm", "dx_through_var", groups=2)),
    Slip("channel-for-group", GROUP, _channel_for_group),
    Slip("instance-mean-part-dropped", INSTANCE, _dropped("instance_norm", "dx_through_mu")),
    Slip("rms-part-dropped", RMS, _dropped("rms_norm", "dx_through_mean_square")),
    Slip("corrections-differentiated", RENORM, _corrections_differentiated),
    Slip("d-missing-in-gamma", RENORM, _gamma_without_d),
    Slip("r-inverted", RENORM, _r_inverted),
    Slip("running-mean-has-a-gradient", RENORM, lambda right, *_: (*right[:3], right[2], right[4])),
    Slip("mean-part-dropped", ROWS, _with_part(lambda s: -s.dx_through_mu)),
    Slip("variance-part-dropped", ROWS, _with_part(lambda s: -s.dx_through_var)),
    Slip("batch-size-for-count", IMAGES, _with_part(_batch_size_for_count)),
    Slip("gamma-missing-in-dx", IMAGES, _with_part(lambda s: s.dx / s.gamma[None, None, None] - s.dx)),
    Slip("x-for-x-hat-in-gamma", IMAGES, _gamma_gradient_of_x),
    Slip("mask-forgotten", MASKED, _mask_forgotten),
    Slip("returned-mean-ignored", ROWS, _from_cotangents(_mean_ignored)),
    Slip("returned-variance-unbiased", ROWS, _from_cotangents(_unbiased)),
    Slip("relu-ignored", RELU, _everything_passes),
    Slip("residual-without-mask", RESIDUAL, _residual_without_mask),
    Slip("residual-forgotten-in-mask", RESIDUAL, _residual_forgotten_in_mask),
    Slip("variance-gradient-sign", INFERENCE, scaled(1, 1, 1, 1, -1)),
    Slip("mean-gradient-dropped", INFERENCE, scaled(1, 1, 1, 0, 1)),
)
