"""Batch norm: numbers worked by hand, what is saved, degenerate input, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from tests.case import random_like
from tests.compiling import fast_jit
from tests.contract import near
from tests.devices import traced_for

LAYERS = [bnderiv.batch_norm, bnderiv.batch_norm_relu]


def _draw(shape, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    x, gamma, beta = rng.standard_normal(shape), 1 + rng.standard_normal(channels), rng.standard_normal(channels)
    return tuple(jnp.asarray(a, dtype) for a in (x, gamma, beta))


@pytest.mark.fast
def test_numbers_worked_by_hand():
    # One channel, batch 2 of 1×2 images: x = (1, 3), (3, 1). Then μ = 2, σ² = 1, x̂ = (−1, 1), (1, −1) at ε = 0.
    x = jnp.array([[[[1.0], [3.0]]], [[[3.0], [1.0]]]])
    (y, stats), pull_back = jax.vjp(lambda *a: bnderiv.batch_norm(*a, eps=0), x, jnp.array([2.0]), jnp.array([10.0]))
    delta = jnp.array([1.0, 2.0, 6.0, 3.0]).reshape(x.shape)
    nothing = jax.tree.map(jnp.zeros_like, stats)
    dx, d_gamma, d_beta = pull_back((delta, nothing))
    np.testing.assert_array_equal(y.ravel(), [8, 12, 12, 8])
    np.testing.assert_array_equal(jnp.stack(stats).ravel(), [2, 1, 4])
    assert d_gamma[0] == 4  # −1 + 2 + 6 − 3
    assert d_beta[0] == 12
    # γ (δ − 12/4 − x̂ 4/4): the three parts of (N11) contracted.
    np.testing.assert_array_equal(dx.ravel(), [-2, -4, 4, 2])
    # (N13): the cotangents of the returned mean and variance add 1/4 and 2 (x − μ)/4 each.
    dx, _, _ = pull_back((0 * delta, nothing._replace(mean=jnp.array([1.0]), var=jnp.array([2.0]))))
    np.testing.assert_array_equal(dx.ravel(), [0.25 - 1, 0.25 + 1, 0.25 + 1, 0.25 - 1])


def test_epsilon_stands_inside_the_root():
    x = jnp.array([[1.0], [3.0]])
    y, _ = bnderiv.batch_norm(x, jnp.array([3.0]), jnp.array([0.0]), eps=1.25)
    np.testing.assert_allclose(y.ravel(), [-2, 2], rtol=1e-15)  # 3 · 1/√(1 + 1.25)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "shape",
    [
        (6, 1, 1, 7),
        (1, 1, 1, 4),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ((5, 9, 1, 3), (4, 1, 9, 3), (8, 30, 1, 20))),
    ],
    ids=str,
)
def test_axes_of_length_one(shape):
    arguments = _draw(shape, dtype=jnp.float64)
    delta = random_like(arguments[0], 3)

    def both_ways(layer, *arguments):
        y, pull_back, stats = jax.vjp(layer, *arguments, has_aux=True)
        return (y, stats), pull_back(delta)

    result, gradients = both_ways(bnderiv.batch_norm, *arguments)
    expected, expected_gradients = fast_jit(both_ways, static_argnums=0)(bnderiv.reference.batch_norm, *arguments)
    near(result, expected, 1e-12)
    if delta.size > shape[-1]:
        near(gradients, expected_gradients, 1e-11)


def test_gamma_and_beta_can_undo_the_normalization():
    x, _, _ = _draw((64, 5), dtype=jnp.float64)
    eps = 1e-3
    gamma, beta = jnp.sqrt(x.var(0) + eps), x.mean(0)  # (N21)
    y, _ = bnderiv.batch_norm(x, gamma, beta, eps=eps)
    near(y, x, 1e-14)


def test_a_bias_before_batch_norm_has_no_gradient():
    x, gamma, beta = _draw((16, 4), dtype=jnp.float64)
    kernel, bias = random_like((jnp.zeros((4, 4)), jnp.zeros(4)), 1)
    delta = random_like(x, 2)

    def loss(bias):
        return jnp.vdot(bnderiv.relu(bnderiv.batch_norm(bnderiv.dense(x, kernel, bias), gamma, beta)[0]), delta)

    assert jnp.abs(jax.grad(loss)(bias)).max() < 1e-14
    assert jnp.abs(loss(bias) - loss(bias + 10)) < 1e-12


@pytest.mark.few(2, 2)
@pytest.mark.parametrize(
    "shape", [(3, 4, 5, 4), *(pytest.param(s, marks=pytest.mark.slow) for s in ((16, 4), (6, 5, 20)))], ids=str
)
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_reach_epsilon(layer, shape):
    x, gamma, beta = _draw(shape, dtype=jnp.float64)
    delta = random_like(x, 3)

    def loss(eps, layer):
        return jnp.vdot(layer(x, gamma, beta, eps=eps)[0], delta)

    eps = jnp.asarray(0.1)
    reference = getattr(bnderiv.reference, layer.__name__)
    expected = fast_jit(jax.grad(loss), static_argnums=1)(eps, reference)
    near(jax.jit(jax.grad(loss), static_argnums=1)(eps, layer), expected, 1e-12)


@pytest.mark.fast
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_x_alone_is_saved(layer, dtype):
    x, gamma, beta = _draw((8, 6, 6, 4), dtype=dtype)
    leaves = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(layer, *a)[1], x, gamma, beta))
    large = [a for a in leaves if a.size >= x.size]
    assert [(a.shape, a.dtype) for a in large] == [(x.shape, x.dtype)]
    assert all(a.size <= 4 for a in leaves if a not in large)


@pytest.mark.slow
@pytest.mark.as_users_compile
def test_fused_relu_is_the_composition():
    x, gamma, beta = _draw((16, 5, 5, 4))
    gamma = gamma.at[0].set(0.0)
    beta = beta.at[0].set(0.0)  # a channel that is 0 everywhere: relu's derivative there is 0
    delta = random_like(x, 4)

    def composed(*args):
        y, stats = bnderiv.batch_norm(*args)
        return bnderiv.relu(y), stats

    (y, stats), pull_back = jax.vjp(bnderiv.batch_norm_relu, x, gamma, beta)
    (expected, expected_stats), expected_pull_back = jax.vjp(composed, x, gamma, beta)
    nothing = jax.tree.map(jnp.zeros_like, stats)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(jnp.stack(stats), jnp.stack(expected_stats))
    # To the rounding of sums, which XLA fuses with other operations here and there.
    near(pull_back((delta, nothing)), expected_pull_back((delta, nothing)), 5e-7)
    assert not pull_back((delta, nothing))[2][0]


@pytest.mark.slow
def test_a_residual_is_added_before_the_relu_and_keeps_its_dtype():
    x, gamma, beta = _draw((16, 5, 5, 4))
    z = random_like(x, 6).at[0, 0, 0].set(jnp.nan)
    delta = random_like(x, 4)
    for dtype, z_dtype in ((jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)):
        a, b, d = x.astype(dtype), z.astype(z_dtype), delta.astype(dtype)
        y, pull_back = jax.vjp(lambda a, b: bnderiv.batch_norm_relu(a, gamma, beta, b)[0], a, b)
        total = bnderiv.batch_norm(a.astype(jnp.float32), gamma, beta)[0] + b.astype(jnp.float32)
        d_z = pull_back(d)[1]
        assert (y.dtype, d_z.dtype) == (dtype, z_dtype)
        near(y, jnp.maximum(total, 0), 4e-3 if dtype == jnp.bfloat16 else 1e-6)
        clear = jnp.abs(total) > 1e-5  # of the kink
        np.testing.assert_array_equal(jnp.where(clear, d_z, 0), jnp.where(clear & (total > 0), d, 0).astype(z_dtype))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("residual", "error", "message"),
    [
        (np.ones(3, jnp.float32), ValueError, r"residual must have shape \(5, 3\) \(that of x\), got .*\[3\]"),
        (np.ones((5, 1), jnp.float32), ValueError, r"residual must have shape \(5, 3\)"),
        (np.ones((5, 3), jnp.int32), TypeError, "residual must have a floating dtype"),
    ],
)
def test_errors_of_a_residual(residual, error, message):
    x = jnp.ones((5, 3), jnp.float32)
    with pytest.raises(error, match=message):
        bnderiv.batch_norm_relu(x, x[0], x[0], residual)


@pytest.mark.few(1)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("value", [0.0, 1234.567, -1e8, 1e30])
def test_a_constant_channel_is_beta(layer, value):
    shape = (7, 3, 3, 2)
    x = jnp.full(shape, value, jnp.float32)
    gamma, beta = jnp.array([2.0, -1.0], jnp.float32), jnp.array([0.5, 3.0], jnp.float32)
    delta = random_like(x, 5)
    (y, stats), pull_back = jax.vjp(layer, x, gamma, beta)
    dx, d_gamma, d_beta = pull_back((delta, jax.tree.map(jnp.zeros_like, stats)))
    np.testing.assert_array_equal(y, jnp.broadcast_to(beta.reshape(1, 1, 1, 2), shape))
    np.testing.assert_array_equal(stats.mean, x[0, 0, 0])
    np.testing.assert_array_equal(stats.var, [0, 0])
    np.testing.assert_array_equal(d_gamma, [0, 0])
    centred = np.asarray(delta, np.float64) - np.asarray(delta, np.float64).mean((0, 1, 2))
    near(dx, np.asarray(gamma, np.float64) / np.sqrt(np.float64(np.float32(1e-5))) * centred, 3e-7)
    near(d_beta, np.asarray(delta, np.float64).sum((0, 1, 2)), 1e-6)


@pytest.mark.slow
@pytest.mark.as_users_compile
@pytest.mark.parametrize("layer", LAYERS)
def test_one_element_a_channel_is_beta_and_has_no_gradient(layer):
    x, gamma, beta = jnp.array([[3.0, -7.25]]), jnp.array([2.0, 5.0]), jnp.array([0.5, 0.25])
    (y, stats), pull_back = jax.vjp(jax.jit(layer), x, gamma, beta)
    dx, d_gamma, _ = pull_back((random_like(y, 6), jax.tree.map(jnp.zeros_like, stats)))
    np.testing.assert_array_equal(y[0], beta)
    np.testing.assert_array_equal(dx, [[0, 0]])
    np.testing.assert_array_equal(d_gamma, [0, 0])
    np.testing.assert_array_equal(jnp.stack(stats), [[3, -7.25], [0, 0], [1, 1]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_not_finite_stays_in_its_channel(layer, bad):
    x, gamma, beta = _draw((9, 4), dtype=jnp.float64)
    delta = random_like(x, 7)

    def all_of(x):
        (y, stats), pull_back = jax.vjp(layer, x, gamma, beta)
        return y, stats, pull_back((delta, random_like(stats, 8)))

    clean, spoiled = all_of(x), all_of(x.at[3, 1].set(bad))
    for ours, expected in zip(jax.tree.leaves(spoiled), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(np.delete(ours, 1, -1), np.delete(expected, 1, -1))
    assert np.isnan(np.asarray(spoiled[0])[:, 1]).all() or layer is bnderiv.batch_norm_relu
    assert not np.isfinite(spoiled[1].var[1])


@pytest.mark.slow
@pytest.mark.as_users_compile
def test_a_variance_beyond_float32_is_infinite_while_the_rest_is_right():
    x, gamma, beta = _draw((64, 3))
    (y, stats), pull_back = jax.vjp(bnderiv.batch_norm, x * 2.0**100, gamma, beta)
    expected, _ = bnderiv.batch_norm(x * 2.0**20, gamma, beta)
    near(y, expected, 1e-7)
    assert np.isinf(stats.var).all()
    np.testing.assert_allclose(stats.mean / 2.0**100, np.float64(x).mean(0), rtol=0, atol=1e-7)  # of deviations of 1
    dx, d_gamma, d_beta = pull_back((random_like(y, 9), jax.tree.map(jnp.zeros_like, stats)))
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in (dx, d_gamma, d_beta))


@pytest.mark.fast
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": np.ones((4, 3), jnp.int32)}, TypeError, ["x", "float", "int32"]),
        ({"x": np.ones((4, 3), jnp.complex64)}, TypeError, ["x", "complex64"]),
        ({"x": np.ones(3)}, ValueError, ["x", "rank 2"]),
        ({"x": np.ones((0, 3))}, ValueError, ["x", "empty"]),
        ({"gamma": np.ones(4)}, ValueError, ["gamma", r"\(3,\)", r"\[4\]"]),
        ({"gamma": np.ones((1, 3))}, ValueError, ["gamma"]),
        ({"beta": np.ones(2)}, ValueError, ["beta", r"\(3,\)"]),
        ({"beta": np.ones(3, jnp.int32)}, TypeError, ["beta", "int32"]),
        ({"channel_axis": 2}, ValueError, ["channel_axis", "2"]),
        ({"channel_axis": 1.0}, TypeError, ["channel_axis"]),
        ({"eps": -1e-5}, ValueError, ["eps", "-1e-05"]),
        ({"eps": float("nan")}, ValueError, ["eps", "nan"]),
        ({"eps": "small"}, TypeError, ["eps"]),
        ({"eps": 10**400}, ValueError, ["eps", "finite"]),
        (
            {"x": np.ones((4, 3), jnp.float32), "eps": 1e300},
            ValueError,
            ["eps", "finite and at least 0 in float32", r"1e\+300"],
        ),
        ({"axis_name": {}}, TypeError, ["axis_name must be a name or a tuple of names"]),
        ({"axis_name": "i", "axis_index_groups": [0, 1]}, TypeError, ["axis_index_groups", r"\[0, 1\]"]),
        ({"where": np.ones((4, 3))}, TypeError, ["where", "boolean", "float"]),
        ({"where": "all"}, TypeError, ["where", "boolean", "'all'"]),
        ({"where": [[True], [True, False]]}, TypeError, ["where", r"boolean, got \[\[True\], \[True, False\]\]"]),
        ({"where": np.ones((5, 3), bool)}, ValueError, ["where", r"\(4, 3\)", r"\(5, 3\)"]),
        ({"where": np.ones((2, 4, 3), bool)}, ValueError, ["where"]),
        ({"axis_index_groups": [[0], [1]]}, ValueError, ["axis_index_groups", "axis_name"]),
    ],
)
def test_errors(layer, change, error, words):
    arguments = {"x": jnp.ones((4, 3)), "gamma": jnp.ones(3), "beta": jnp.ones(3)} | change
    for word in words:
        with pytest.raises(error, match=word):
            layer(**arguments)


def test_one_row_of_few_channels():
    """A CPU puts few channels in rows, but not if there would be one: it would look like what a channel shares."""
    x, vector = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 8, 3), (3,)))
    gradient = jax.eval_shape(jax.grad(lambda *a: bnderiv.batch_norm(*a)[0].sum()), x, vector, vector)
    assert gradient.shape == x.shape


def test_few_channels_on_one_device():
    """The forms for a CPU and for a TPU are both traced, and each is of x as it is, not of the other's."""
    x, vector = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 3, 3, 2), (2,)))
    with traced_for(1):
        gradient = jax.eval_shape(jax.grad(lambda *a: bnderiv.batch_norm(*a)[0].sum()), x, vector, vector)
    assert gradient.shape == x.shape
