"""The largest and smallest numbers a dtype holds: constants near its limit, tiny ε, devices far apart, inference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import bnderiv
import bnderiv.forward_mode
from tests.case import random_like
from tests.normalization import truth

LAYERS = [bnderiv.batch_norm, bnderiv.batch_norm_relu]
CONSTANT = [
    ("float32", 1e36, 1e-5),
    ("float32", 3e38, 1e-5),
    ("float32", 1e32, 1e-12),
    ("float32", 1e36, 1e-30),
    ("float32", 1.0, 1e-40),
    ("bfloat16", 1e36, 1e-5),
    ("bfloat16", 3e38, 1e-12),
    ("float64", 1e306, 1e-5),
    ("float64", 1e300, 1e-30),
    ("float64", 1.0, 1e-310),
]


IMAGES, ONE_ELEMENT = (6, 3, 3, 2), (1, 2)


@pytest.mark.few(0, 5)
@pytest.mark.parametrize(
    ("shape", "assumed"),
    [
        pytest.param(IMAGES, None, id="images-sample"),
        pytest.param(IMAGES, 0.0, marks=pytest.mark.slow, id="images-nothing"),
        pytest.param(IMAGES, 1.0, marks=pytest.mark.slow, id="images-itself"),
        pytest.param(ONE_ELEMENT, None, marks=pytest.mark.slow, id="one-element-sample"),
        # What is assumed makes no other difference to one element.
        pytest.param(ONE_ELEMENT, 0.0, marks=[pytest.mark.slow, pytest.mark.exhaustive], id="one-element-nothing"),
        pytest.param(ONE_ELEMENT, 1.0, marks=[pytest.mark.slow, pytest.mark.exhaustive], id="one-element-itself"),
    ],
)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("dtype", "value", "eps"), CONSTANT, ids=str)
def test_a_constant_channel(layer, dtype, value, eps, shape, assumed):
    """y = β and dx = γ/√ε (δ − mean δ), beside a channel that is no constant."""
    dtype = jnp.dtype(dtype)
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    x = jnp.full(shape, value, dtype)
    if len(shape) > 2:
        x = x.at[..., 1].set(random_like(x[..., 1], 0))
    gamma, beta = jnp.array([2.0, 1.0], wide), jnp.array([0.5, 3.0], wide)
    delta = random_like(x, 1)
    guess = None if assumed is None else assumed * x.reshape(-1, 2)[0].astype(wide)
    y, pull_back, stats = jax.vjp(lambda *a: layer(*a, eps=eps, assumed_mean=guess), x, gamma, beta, has_aux=True)
    dx, d_gamma, _ = pull_back(delta)
    np.testing.assert_array_equal(y[..., 0], np.full(shape[:-1], 0.5, dtype))
    assert (stats.mean[0], stats.var[0]) == (x.ravel()[0].astype(wide), 0)
    centred = np.asarray(delta, np.longdouble)[..., 0]
    centred = centred - centred.mean()
    expected = np.longdouble(2) / np.sqrt(np.longdouble(eps)) * centred
    tolerance = 4 * float(jnp.finfo(dtype).eps)
    limit = float(jnp.finfo(dtype).max)
    fits = np.abs(expected) < limit
    actual = np.asarray(dx, np.float64)[..., 0]
    assert np.abs(actual - expected)[fits].max(initial=0) <= tolerance * np.abs(expected).max(initial=0)
    assert d_gamma[0] == 0
    assert np.isfinite(np.asarray(dx, np.float64)[..., 1]).all()


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "eps", [jnp.bfloat16(1e-5), jnp.float16(1e-3), np.float16(1e-5), np.float32(1e-5), 1, np.int32(2)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_an_epsilon_of_another_dtype_is_that_number(eps, dtype):
    rng = np.random.default_rng(3)
    x, gamma, beta = jnp.asarray(1e-4 * rng.standard_normal((64, 3)), dtype), jnp.ones(3, dtype), jnp.zeros(3, dtype)
    y, _ = bnderiv.batch_norm(x, gamma, beta, eps=eps)
    expected = truth.batch_norm(x, gamma, beta, 0 * x, float(eps))[0]
    assert truth.relative_error(y, expected) < (2e-7 if dtype == jnp.float32 else 1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-19, 1e-20, 1e-21])
def test_an_epsilon_that_is_no_normal_number_counts(scale):
    """ε = 1e-40 beside a variance of 1e-38 to 1e-42; and as an array of a wider dtype."""
    rng = np.random.default_rng(2)
    x, gamma, beta = jnp.asarray(scale * rng.standard_normal((64, 3)), jnp.float32), jnp.ones(3), jnp.zeros(3)
    delta = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    expected = truth.batch_norm(x, gamma, beta, delta, 1e-40)
    for eps in (1e-40, jnp.float64(1e-40)):
        y, pull_back, _ = jax.vjp(lambda *a, eps=eps: bnderiv.batch_norm(*a, eps=eps), x, gamma, beta, has_aux=True)
        assert truth.relative_error(y, expected[0]) < 1e-6
        assert truth.relative_error(pull_back(delta)[0], expected[1]) < 1e-6
    z = bnderiv.batch_norm_inference(x, gamma, beta, jnp.zeros(3), jnp.zeros(3), eps=1e-40)
    assert truth.relative_error(z, np.asarray(x, np.longdouble) / np.longdouble(1e-20)) < 1e-6


def _inference(delta, eps, x, gamma, beta, mean, var):
    """y, dx, dγ, dβ in long double, two channels."""
    x, gamma, beta, mean, var, delta = (
        np.asarray(a, np.float64).astype(np.longdouble) for a in (x, gamma, beta, mean, var, delta)
    )
    r = 1 / np.sqrt(var + np.longdouble(eps))
    return gamma * (x - mean) * r + beta, gamma * r * delta, (delta * (x - mean) * r).sum(0), delta.sum(0)


MAX = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("x", "mean", "var", "eps", "gamma"),
    [
        (1e19, 0.0, 3e38, 3e38, 1.0),  # the sum overflows
        (3e38, -3e38, 1.0, 1e-5, 1e-10),  # the difference does
        (MAX, -MAX, MAX, MAX, 1.0),
        (1e-30, 2e-30, 0.0, 1e-30, 1.0),
        (1e-18, 0.0, 1e-36, 0.0, 1.0),
        (5.0, 4.0, 2.0, 1e-5, 3.0),
    ],
    ids=str,
)
def test_inference(x, mean, var, eps, gamma):
    signs = np.array([[1.0, -0.5], [0.5, 0.25], [-1.0, 1.0]])
    arrays = [
        jnp.asarray(a, jnp.float32)
        for a in (x * signs, np.full(2, gamma), np.full(2, 0.5), np.full(2, mean), np.full(2, var))
    ]
    eps = float(np.float32(eps))
    y, pull_back = jax.vjp(partial(bnderiv.batch_norm_inference, eps=eps), *arrays)
    delta = random_like(y, 3)
    ours = (y, *pull_back(delta)[:3])
    expected = _inference(delta, eps, *arrays)
    for a, e in zip(ours, expected, strict=True):
        if np.abs(e).max() < MAX:
            assert truth.relative_error(a, e) < 5e-7


def test_inference_by_a_mean_that_is_not_finite():
    ones = jnp.ones(3, jnp.float32)
    y = bnderiv.batch_norm_inference(jnp.ones((2, 3)), ones, ones, jnp.array([0.0, np.inf, np.nan], jnp.float32), ones)
    assert np.isfinite(y[:, 0]).all()
    np.testing.assert_array_equal(y[:, 1], -np.inf)
    assert np.isnan(y[:, 2]).all()


@pytest.mark.few(1, 2)
@pytest.mark.parametrize(
    "layers", [bnderiv, pytest.param(bnderiv.forward_mode, marks=pytest.mark.slow)], ids=lambda m: m.__name__
)
@pytest.mark.parametrize(
    ("large", "small", "eps"),
    [
        (1e32, 1e-8, 1e-12),
        (1e33, 1e-6, 1e-12),
        (1e32, 1.0, 1e-5),
        (1e25, 1e-13, 1e-26),
        (1e32, 0.0, 1e-5),
        (1e12, 1e-26, 0.0),
    ],
)
def test_devices_whose_magnitudes_are_far_apart(layers, large, small, eps):
    """Each device's dx by itself, relative to its own size."""
    rng = np.random.default_rng(4)
    scale = np.array([large, small, small, small])[:, None, None]
    x, delta = (
        jnp.asarray(scale * rng.standard_normal((4, 32, 2)), jnp.float32),
        random_like(jnp.zeros((4, 32, 2), jnp.float32), 5),
    )
    gamma, beta = jnp.ones(2, jnp.float32), jnp.zeros(2, jnp.float32)
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    def mapped(x, delta):
        def f(x):
            return layers.batch_norm(x[0], gamma, beta, eps=eps, axis_name="d")[0]

        y, pull_back = jax.vjp(f, x)
        return y[None], pull_back(delta[0])[0]

    y, dx = mapped(x, delta)
    y_, dx_, *_ = truth.batch_norm(x.reshape(-1, 2), gamma, beta, delta.reshape(-1, 2), np.float64(np.float32(eps)))
    for device in range(4):
        assert truth.relative_error(dx[device], dx_.reshape(x.shape)[device]) < 1e-6, device
    assert truth.relative_error(y.reshape(-1, 2), y_) < 5e-7


@pytest.mark.slow
@pytest.mark.parametrize("value", [1e36, -3e38])
def test_constant_devices(value):
    """The same constant everywhere, and another one on each."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P("d"), out_specs=(P("d"), P()))
    def layer(x):
        return bnderiv.batch_norm(x, jnp.ones(2), jnp.ones(2), axis_name="d")

    same = jnp.full((8, 2), value, jnp.float32)
    y, stats = layer(same)
    np.testing.assert_array_equal(y, 1)
    np.testing.assert_array_equal(stats.mean, same[0])
    np.testing.assert_array_equal(stats.var, 0)
    apart = same * jnp.repeat(jnp.array([1, 0.5, -1, 0], jnp.float32), 2)[:, None]
    y, _ = layer(apart)
    exact = np.asarray(apart, np.float64)
    assert truth.relative_error(y, 1 + (exact - exact.mean(0)) / exact.std(0)) < 5e-7


@pytest.mark.slow
def test_constant_devices_by_a_tiny_epsilon():
    """K s bounds the unit, which is still to be one in which ε s² is a normal number."""
    x, ones = jnp.full((2, 8, 1), 1e30, jnp.float32), jnp.ones(1, jnp.float32)
    layer = partial(bnderiv.batch_norm, gamma=ones, beta=ones, eps=1e-40, axis_name="devices")
    y, pull_back, _ = jax.vjp(jax.vmap(layer, axis_name="devices"), x, has_aux=True)
    delta = random_like(x, 0)
    np.testing.assert_array_equal(y, 1)
    np.testing.assert_allclose(pull_back(delta)[0], 1e20 * (delta - delta.mean()), rtol=1e-5, atol=1e14)


FAR_GUESSES = {  # mean, deviation, what the mean is assumed to be
    "float32": [(1e30, 1e27, 0), (0, 1e-30, 1e20), (5, 1e-3, 0), (5, 2, 2e4), (0, 1, 1e20), (1e6, 2, 1.2e6)],
    "float64": [(1e300, 1e295, 0), (0, 1e-250, 1e100), (5, 1e-9, 0), (5, 2, 1e10), (0, 1, 1e38)],
}


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.0, 1e-40])
@pytest.mark.parametrize("dtype", FAR_GUESSES)
def test_a_far_guess_and_no_epsilon_to_speak_of(dtype, eps):
    """About a far K a variance is not told from zero: that is no constant, and K s is to be finite all the same."""
    rng = np.random.default_rng(8)
    z, delta = rng.standard_normal((2, 64, 1))
    gamma, beta = jnp.ones(1, dtype), jnp.zeros(1, dtype)

    @jax.jit
    def step(x, guess, delta):
        layer = partial(bnderiv.batch_norm, eps=eps, assumed_mean=guess)
        y, pull_back, stats = jax.vjp(layer, x, gamma, beta, has_aux=True)
        return y, stats, pull_back(delta)

    for mean, deviation, guess in FAR_GUESSES[dtype]:
        x = jnp.asarray(mean + deviation * z, dtype)
        y, stats, (dx, *_) = step(x, jnp.full(1, guess, dtype), jnp.asarray(delta, dtype))
        expected = truth.batch_norm(x, gamma, beta, jnp.asarray(delta, dtype), eps)
        tolerance = 2 * float(jnp.finfo(dtype).eps)
        assert truth.relative_error(y, expected[0]) < tolerance
        assert truth.relative_error(dx, expected[1]) < tolerance
        assert stats.mean[0] == pytest.approx(float(np.asarray(x, np.longdouble).mean()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("value", [1e-6, 7.0, 1e36])
def test_statistics_of_a_constant_without_epsilon(value):
    """There is no y, but mean and variance are what they are: of one device, and of two of which one has nothing."""
    x, ones = jnp.full((2, 8, 1), value, jnp.float32), jnp.ones(1, jnp.float32)
    _, stats = bnderiv.batch_norm(x, ones, ones, eps=0)
    assert (stats.mean[0], stats.var[0]) == (x[0, 0, 0], 0)
    layer = partial(bnderiv.batch_norm, gamma=ones, beta=ones, eps=0, axis_name="devices")
    there = jnp.array([True, False]).reshape(2, 1, 1)
    _, stats = jax.vmap(lambda x, where: layer(x, where=where), axis_name="devices")(x, there)
    np.testing.assert_array_equal(stats.mean, jnp.full((2, 1), value, jnp.float32))
    np.testing.assert_array_equal(stats.var, np.zeros((2, 1)))


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("size", "cotangent"), [(1e4, 1e36), (1e10, 1e29), (1e20, 1e30), (1e30, 3e35), (1e38, 1e30), (1e-10, 1e27)]
)
def test_large_cotangents(size, cotangent):
    """What fits comes out: Σ δ x̂ does where Σ δ (x − μ) does not."""
    rng = np.random.default_rng(6)
    x, delta = (jnp.asarray(scale * rng.standard_normal((32, 3)), jnp.float32) for scale in (size, cotangent))
    gamma, beta = jnp.ones(3, jnp.float32), jnp.zeros(3, jnp.float32)
    _, pull_back, _ = jax.vjp(bnderiv.batch_norm, x, gamma, beta, has_aux=True)
    expected = truth.batch_norm(x, gamma, beta, delta, np.float64(np.float32(1e-5)))[1:]
    for ours, theirs in zip(pull_back(delta), expected, strict=True):
        assert truth.relative_error(ours, theirs) < 5e-7


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e9, 3e9])
def test_one_device_of_large_numbers_beside_constant_ones(size):
    """Without epsilon a constant's unit is as fine as can be, and the way from the common one to it a small number."""
    x, delta = (
        jnp.zeros((4, 16, 1), jnp.float32).at[1, 3].set(size),
        np.random.default_rng(2).standard_normal((4, 16, 1)),
    )
    ones = jnp.ones(1, jnp.float32)
    layer = partial(bnderiv.batch_norm, gamma=ones, beta=ones, eps=0, axis_name="devices")
    y, pull_back = jax.vjp(lambda x: jax.vmap(lambda x: layer(x)[0], axis_name="devices")(x), x)
    (dx,) = pull_back(jnp.asarray(delta, jnp.float32))
    expected = truth.batch_norm(x.reshape(64, 1), ones, ones, jnp.asarray(delta, jnp.float32).reshape(64, 1), 0.0)
    assert truth.relative_error(y.reshape(64, 1), expected[0]) < 1e-6
    assert truth.relative_error(dx.reshape(64, 1), expected[1]) < 1e-6
