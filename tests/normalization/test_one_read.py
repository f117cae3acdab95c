"""Statistics in one read of x, about an assumed mean: right for any guess, measured again only where it is needed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
import bnderiv.forward_mode
import bnderiv.reference
from tests import forms
from tests.case import random_like
from tests.compiling import fast_jit
from tests.contract import near
from tests.normalization import truth

SHAPE = (32, 14, 14, 6)
EPS = np.float64(np.float32(1e-5))


def _draw(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), 1 + rng.standard_normal(shape[-1]), rng.standard_normal(shape[-1])


@jax.jit
def _all(x, gamma, beta, delta, assumed_mean):
    y, pull_back, stats = jax.vjp(
        lambda *a: bnderiv.batch_norm(*a, assumed_mean=assumed_mean), x, gamma, beta, has_aux=True
    )
    return (y, *pull_back(delta)), stats


def _errors(x, guess, seed=1):
    _, gamma, beta = _draw(seed)
    x, gamma, beta = (jnp.asarray(a, jnp.float32) for a in (x, gamma, beta))
    delta = jnp.asarray(np.random.default_rng(seed + 1).standard_normal(x.shape), jnp.float32)
    guess = None if guess is None else jnp.broadcast_to(jnp.asarray(guess, jnp.float32), x.shape[-1:])
    ours, stats = _all(x, gamma, beta, delta, guess)
    expected = truth.batch_norm(x, gamma, beta, delta, EPS)
    return [truth.relative_error(a, e) for a, e in zip(ours, expected, strict=True)], stats


ABSURD = [0.0, 1.0, -1e3, 1e4, 1e10, -1e30, 3e38, np.nan, np.inf, -np.inf, [0, np.nan, 1e4, np.inf, -3e38, 1]]


@pytest.mark.few(6, 14)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("guess", [None, *ABSURD], ids=str)
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4])
def test_any_guess_gives_the_same(guess, mean):
    (y, dx, d_gamma, d_beta), stats = _errors(_draw()[0] + mean, guess)
    assert max(y, dx) < 2e-7
    assert max(d_gamma, d_beta) < 5e-7
    np.testing.assert_allclose(stats.mean, (np.float32(_draw()[0] + mean)).mean((0, 1, 2), np.float64), 1e-6, 1e-6)


@pytest.mark.few(12, 12)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("guess", ABSURD, ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e20, 1e30])
def test_any_guess_at_any_scale(guess, scale):
    assert max(_errors((_draw()[0] + 3) * scale, guess)[0][:2]) < (2e-7 if scale > 1e-3 else 1e-6)


@pytest.mark.parametrize(("deviation", "off", "eps"), [(2.0**-51, 1e-7, 0.0), (2.0**-40, 2.0**-13, 1.0)])
def test_what_is_nearly_constant_in_float64(deviation, off, eps):
    """A guess that is near in float32's terms hides deviations that a float64 holds."""
    x = 1 + deviation * np.rint(3 * np.random.default_rng(0).standard_normal((64, 1)))
    one = jnp.ones(1, jnp.float64)
    y, stats = bnderiv.batch_norm(jnp.asarray(x), one, 0 * one, assumed_mean=one + off, eps=eps)
    exact = x.astype(np.longdouble)
    assert truth.relative_error(stats.var, exact.var(0)) < 1e-6
    np.testing.assert_allclose(y, (exact - exact.mean(0)) / np.sqrt(exact.var(0) + eps), rtol=0, atol=1e-15)


@pytest.mark.few(1, 2)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("shape", [SHAPE, (128, 84), (64, 12, 12, 20)], ids=str)
def test_both_sides_of_the_threshold(measured_again, shape):
    """Guesses that are off by a given number of the channel's deviations."""
    axes = tuple(range(len(shape) - 1))
    _, gamma, beta = (jnp.asarray(a, jnp.float32) for a in _draw(1, shape))
    delta = random_like(jnp.zeros(shape, jnp.float32), 4)
    for mean in (0.0, 1e4):
        x = jnp.asarray(_draw(3, shape)[0] + mean, jnp.float32)
        expected = truth.batch_norm(x, gamma, beta, delta, EPS)
        exact = np.asarray(x, np.float64)
        for off, again in ((0.5, 0), (0.97, 0), (-0.97, 0), (1.03, 1), (-1.03, 1), (3.0, 1)):
            guess = jnp.asarray(exact.mean(axes) + off * exact.std(axes), jnp.float32)
            count, (ours, _) = measured_again(_all, x, gamma, beta, delta, guess)
            assert count == again, (mean, off)
            errors = [truth.relative_error(a, e) for a, e in zip(ours, expected, strict=True)]
            assert max(errors[:2]) < 2e-7, (mean, off)
            assert max(errors[2:]) < 5e-7, (mean, off)


@pytest.mark.few(1, 3)
@pytest.mark.parametrize("shape", [SHAPE, (64, 7), (4, 30, 30, 20), (6, 28, 28, 32)], ids=str)
def test_a_sample_is_near_enough(measured_again, shape):
    axis = 0 if shape[0] == 6 else -1
    ones = jnp.ones(shape[axis])
    f = jax.jit(lambda x: bnderiv.batch_norm(x, ones, ones, channel_axis=axis)[0])
    for mean in (0.0, 3.7, 1e4):
        count, _ = measured_again(f, jnp.asarray(_draw(5, shape)[0] + mean, jnp.float32))
        assert count == 0


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("dtype", "guesses"),
    [("float32", [1e3, 1e9, -1e16, 1e23, 1e28]), ("float64", [-1e15, 1e30, 1e150, 1e228])],
    ids=["float32", "float64"],
)
def test_however_far_the_guess_one_more_measurement_is_right(measured_again, dtype, guesses):
    x = jnp.asarray(_draw(13)[0] + 3, dtype)
    ones = jnp.ones(6, dtype)
    f = jax.jit(lambda x, guess: bnderiv.batch_norm(x, ones, ones, assumed_mean=guess)[1].mean)
    for guess in guesses:
        count, mean = measured_again(f, x, jnp.full(6, guess, dtype))
        assert count == 1
        np.testing.assert_allclose(mean, np.asarray(x, np.float64).mean((0, 1, 2)), 1e-6)


MOST = np.finfo(np.float32).max
FAR_APART = {
    "the dtype's ends": lambda x: np.where(np.arange(x.size).reshape(x.shape) % 2, MOST, -MOST),
    "two of them": lambda x: np.where(x == x.max(), MOST, np.where(x == x.min(), -MOST, x)),
    "one huge": lambda x: np.where(x == x.max(), 1e30, x),
    "huge beside tiny": lambda x: np.sign(x) * np.abs(x) ** 20,
    "nearly all equal": lambda x: np.where(x == x.max(), 1e9 + 64, 1e9),
}
OVER = {  # the shape of x, its axes of statistics, those of γ and β; what is called
    "batch, in rows": ((16, 7, 8, 3), (0, 1, 2), (0, 1, 2), lambda *args: bnderiv.batch_norm(*args)[0]),
    "batch": ((16, 7, 8, 20), (0, 1, 2), (0, 1, 2), lambda *args: bnderiv.batch_norm(*args)[0]),
    "layer": ((12, 200), (1,), (0,), bnderiv.layer_norm),
    "group": ((4, 7, 8, 2, 10), (1, 2, 4), (0, 1, 2), lambda *args: bnderiv.group_norm(*args, groups=2)),
}


@pytest.mark.few(0, 6)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("far_apart", FAR_APART.values(), ids=FAR_APART)
@pytest.mark.parametrize(("shape", "over", "rest", "norm"), OVER.values(), ids=OVER)
def test_elements_far_apart(shape, over, rest, norm, far_apart):
    """The square of a range may be no float, nor the range itself; or nothing beside the mean."""
    x = np.float32(far_apart(_draw(15, shape)[0]))
    features = [1 if i in rest else size for i, size in enumerate(shape)]
    gamma, beta = (np.float32(np.random.default_rng(i).standard_normal(features)) for i in (1, 2))
    delta = np.float32(1e10 * np.random.default_rng(3).standard_normal(shape))  # so that dx is a normal number
    expected = truth.over_other_axes(x, gamma, beta, delta, over, rest, EPS)

    flat = (*shape[:3], -1) if len(shape) == 5 else shape
    y, pull_back = jax.vjp(norm, jnp.asarray(x.reshape(flat)), jnp.ravel(gamma), jnp.ravel(beta))
    dx, d_gamma, d_beta = pull_back(jnp.asarray(delta.reshape(flat)))
    of_x = [truth.relative_error(a.reshape(shape), e) for a, e in zip((y, dx), expected[:2], strict=True)]
    assert max(of_x) < 5e-7
    near((d_gamma, d_beta), jax.tree.map(lambda a: jnp.ravel(np.float64(a)), expected[2:]), 1e-5)


@pytest.mark.slow
@pytest.mark.as_users_compile
def test_a_guess_that_is_a_product_is_the_same_in_every_kernel():
    """A compiler may add a product without rounding it: then K differs from kernel to kernel."""
    x = jnp.asarray(_draw(18)[0] + 1e4 / 3, jnp.float32)
    gamma, beta = jnp.ones(6, jnp.float32), jnp.zeros(6, jnp.float32)
    seventh = jnp.asarray(np.asarray(x, np.float64).mean((0, 1, 2)) / 7, jnp.float32)
    y = jax.jit(lambda x, seventh: bnderiv.batch_norm(x, gamma, beta, assumed_mean=seventh * 7)[0])(x, seventh)
    expected = truth.batch_norm(x, gamma, beta, x, EPS)[0]
    assert truth.relative_error(y, expected) < 2e-7


@pytest.mark.few(1)
@pytest.mark.parametrize("value", [np.nan, np.inf, pytest.param(-np.inf, marks=pytest.mark.slow)])
def test_what_is_not_finite_is_given_up(measured_again, value):
    """The other channels are what they are without it."""
    x = jnp.asarray(_draw(14)[0], jnp.float32)
    ones = jnp.ones(6, jnp.float32)
    f = jax.jit(lambda x: bnderiv.batch_norm(x, ones, ones)[0])
    count, y = measured_again(f, x.at[3, 2, 1, 4].set(value))
    assert count == 1
    assert np.isnan(y[..., 4]).all()
    np.testing.assert_array_equal(np.delete(y, 4, -1), np.delete(f(x), 4, -1))


@pytest.mark.slow
@pytest.mark.as_users_compile
def test_a_sample_that_is_not_like_the_rest():
    x = _draw(6)[0]
    x[:, 7, 7] += 1e4
    assert max(_errors(x, None)[0][:2]) < 2e-6  # an outlier of 1e4 in each image: as in test_precision


@pytest.mark.few(0, 6)
@pytest.mark.parametrize("eps", [16.0, 1e20, 1e30])
@pytest.mark.parametrize("value", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("guess", [None, 0.0])
def test_a_constant_beside_a_large_epsilon(guess, value, eps):
    """Beside a range of 0, √ε has no unit in which it is a number, unless it counts as one."""
    ones = jnp.ones(3, jnp.float32)
    for shape in ((16, 3), (4, 5, 5, 3)):
        x = jnp.full(shape, value, jnp.float32)
        guesses = None if guess is None else guess * ones
        y, pull_back = jax.vjp(lambda x, of=guesses: bnderiv.batch_norm(x, ones, ones, eps=eps, assumed_mean=of)[0], x)
        np.testing.assert_array_equal(y, np.ones(shape))
        delta = random_like(x, 5)
        exact = (np.asarray(delta) - np.asarray(delta, np.float64).mean(tuple(range(len(shape) - 1)))) / np.sqrt(eps)
        near(pull_back(delta)[0], exact, 1e-6)


CONSTANTS = np.array([0.0, 5.0, 1234.567, -1e-20, 1e4 / 3, 1e20], np.float32)


@pytest.mark.slow
def test_a_dead_channel_is_not_measured_at_every_step(measured_again):
    """About a sample, and about a running mean on its way to a constant."""
    rng = np.random.default_rng(7)
    x = np.where(np.arange(8) < 6, np.append(CONSTANTS, [0, 0]), rng.standard_normal((16, 5, 5, 8))).astype(np.float32)
    gamma, beta = jnp.ones(8, jnp.float32), jnp.arange(8, dtype=jnp.float32)
    f = jax.jit(lambda x, guess: bnderiv.batch_norm(x, gamma, beta, assumed_mean=guess))
    count, (y, stats) = measured_again(f, x, None)
    assert count == 0
    np.testing.assert_array_equal(y[..., :6], np.broadcast_to(beta[:6], (16, 5, 5, 6)))
    np.testing.assert_array_equal(stats.mean[:6], CONSTANTS)
    np.testing.assert_array_equal(stats.var[:6], 0)

    small = jnp.where(jnp.abs(x) < 100, x, 0.0)  # of 1234.567 a step of 0.1 is not small beside √ε
    running, counts = bnderiv.init_running_stats(8), []
    for _ in range(250):
        count, (y, stats) = measured_again(f, small, running.mean)
        running = bnderiv.update_running_stats(running, stats)
        counts.append(count)
        np.testing.assert_array_equal(y[..., :2], np.broadcast_to(beta[:2], (16, 5, 5, 2)))
    assert counts[0] == 1
    assert sum(counts) < 190
    assert not any(counts[-50:])


@pytest.mark.slow
@pytest.mark.as_users_compile
def test_under_vmap_a_branch_that_nobody_needs_is_not_taken(measured_again):
    """One example that needs it has the whole batch measured again; each result is its own."""
    rng = np.random.default_rng(8)
    x = jnp.asarray(rng.standard_normal((5, 64, 7)) + 3, jnp.float32)
    gamma, beta = jnp.ones(7, jnp.float32), jnp.zeros(7, jnp.float32)

    def f(x, guess):
        return bnderiv.batch_norm(x, gamma, beta, assumed_mean=guess)

    guesses = jnp.full((5, 7), 3, jnp.float32)
    count, _ = measured_again(jax.jit(jax.vmap(f)), x, guesses)
    assert count == 0
    guesses = guesses.at[2, 4].set(1e4)
    count, mapped = measured_again(jax.jit(jax.vmap(f)), x, guesses)
    assert count >= 1
    one_by_one = [f(a, guess) for a, guess in zip(x, guesses, strict=True)]
    near(mapped, jax.tree.map(lambda *a: jnp.stack(a), *one_by_one), 2e-7)
    assert (
        max(
            truth.relative_error(y, truth.batch_norm(a, gamma, beta, 0 * a, EPS)[0])
            for y, a in zip(mapped[0], x, strict=True)
        )
        < 2e-7
    )


@pytest.mark.few(0, 4)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("sigma", [1e-4, 1e-5, 1e-6, 4e-7])
@pytest.mark.parametrize("guess", [3e-4, 2e-6])
def test_a_guess_near_beside_epsilon_alone(sigma, guess):
    """√ε is 3e-3: so near a guess makes no difference to x̂ in absolute terms, but it does to that of a small σ."""
    errors, stats = _errors(_draw(12)[0] * sigma, guess)
    assert max(errors[:2]) < 2e-7
    np.testing.assert_allclose(stats.var, np.float32(_draw(12)[0] * sigma).astype(np.float64).var((0, 1, 2)), 1e-6)


@pytest.mark.few(1, 7)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("guess", [0, 1, 2, 7])
@pytest.mark.parametrize(("elements", "value"), [(10_000, 1e9), (100_000, 1e9), (100_000, 1e6), (11_000, 1e3)])
def test_nearly_constant(elements, value, guess):
    """One of many elements is the next float: whatever is assumed within some floats, the variance is not lost.

    Of K, which may be a float off itself, m² is then that many times v, and of v two digits are left.
    """
    step = np.spacing(np.float32(value))
    x = jnp.full((elements, 2), value, jnp.float32).at[77, 0].add(step)
    gamma, beta = jnp.ones(2, jnp.float32), jnp.zeros(2, jnp.float32)
    y, stats = bnderiv.batch_norm(x, gamma, beta, assumed_mean=jnp.full(2, value + guess * step, jnp.float32))
    share = 1 / elements
    var = float(step) ** 2 * share * (1 - share)
    np.testing.assert_allclose(stats.var, [var, 0], 2e-2)
    r = 1 / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y[77, 0], (1 - share) * step * r, 1e-2)
    np.testing.assert_allclose(y[:77, 0], -share * step * r, 2e-2, 2e-7)
    np.testing.assert_array_equal(y[:, 1], 0)


@pytest.mark.parametrize(
    ("norm", "on_tpu"),
    [
        (lambda *args: bnderiv.batch_norm(*args)[0], 1),
        (bnderiv.layer_norm, 2),  # about 0, about a sample
        (lambda x, gamma, _: bnderiv.rms_norm(x, gamma), 1),
    ],
    ids=["batch", "layer", "rms"],
)
def test_under_vmap_a_branch_stays_one(norm, on_tpu):
    """It would become a select, of both branches, if its predicate had the mapped axes."""
    ones = jnp.ones(20, jnp.float32)
    f = jax.vmap(jax.vmap(lambda x: norm(x, ones, ones)))
    for platform, branches in (("rocm", 1), ("tpu", on_tpu)):
        with forms.of(platform):
            program = str(jax.make_jaxpr(f)(jnp.ones((2, 3, 8, 20), jnp.float32)))
        assert program.count(" cond[") == branches, platform


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "guess", "layers"),
    [
        pytest.param(
            layer, guess, layers,
            marks=[] if layers is bnderiv and layer == "batch_norm" and guess in (0.0, 1e5)
            else [pytest.mark.slow, *[pytest.mark.exhaustive] * (guess in (2.0, 3e38))],
            id=f"{layer}-{guess}-{layers.__name__}",
        )
        for layer in ("batch_norm", "batch_norm_relu")
        for guess in (0.0, 2.0, 1e5, 3e38, 1e300, np.nan)
        for layers in (bnderiv, bnderiv.forward_mode)
    ],
)  # fmt: skip
def test_derivatives_about_any_guess(layers, guess, layer):
    """First and second, in float64, the statistics' own among them; of the guess there is none."""
    x, gamma, beta = (jnp.asarray(a) for a in _draw(9, (6, 3, 2, 4)))
    guess = jnp.full(4, guess)

    def loss(layers, guess, x, gamma, beta):
        y, stats = getattr(layers, layer)(x, gamma, beta, assumed_mean=guess)
        return (random_like(y, 1) * y**3).sum() + (stats.mean * stats.var * random_like(stats.mean, 2)).sum()

    def second(layers):
        def gradient(*args):
            return jax.grad(lambda *a: loss(layers, guess, *a), (0, 1, 2))(*args)

        args = (x, gamma, beta)
        _, pull_back = jax.vjp(gradient, *args)
        return gradient(*args), pull_back(random_like(args, 3))

    near(fast_jit(second, static_argnums=0)(layers), fast_jit(second, static_argnums=0)(bnderiv.reference), 1e-10)
    np.testing.assert_array_equal(fast_jit(jax.grad(loss, 1), static_argnums=0)(layers, guess, x, gamma, beta), 0)


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.as_users_compile
@pytest.mark.parametrize(
    "where",
    [pytest.param(None, marks=pytest.mark.slow), np.arange(32)[:, None, None, None] % 3 > 0],
    ids=["all", "masked"],
)
@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_half_precision(dtype, where):
    x, gamma, beta = (jnp.asarray(a) for a in _draw(10))
    x = (x + 3).astype(dtype)
    outs = [
        bnderiv.batch_norm(x, gamma, beta, where=where, assumed_mean=guess)
        for guess in (None, jnp.zeros(6, dtype), jnp.full(6, 1e4, jnp.float32))
    ]
    assert all(y.dtype == x.dtype for y, _ in outs)
    for y, stats in outs[1:]:
        near((y, stats), outs[0], float(jnp.finfo(dtype).eps))


def test_channels_without_elements_have_mean_0_whatever_is_assumed():
    x = jnp.asarray(_draw(11)[0], jnp.float32)
    where = jnp.arange(6) > 0
    for guess in (7.0, np.nan):
        y, stats = bnderiv.batch_norm(x, jnp.ones(6), jnp.zeros(6), where=where, assumed_mean=jnp.full(6, guess))
        assert (stats.mean[0], stats.var[0], stats.count[0]) == (0, 0, 0)
        np.testing.assert_allclose(y[..., 0], np.asarray(x)[..., 0] / np.sqrt(1e-5), 1e-6)


@pytest.mark.parametrize(
    ("guess", "error", "words"),
    [
        (np.ones(4), ValueError, [r"assumed_mean", r"\(3,\)", r"\[4\]"]),
        (np.ones((1, 3)), ValueError, ["assumed_mean"]),
        (np.ones(3, jnp.int32), TypeError, ["assumed_mean", "int32"]),
        ("near", TypeError, ["assumed_mean", "str"]),
    ],
)
def test_errors(guess: Any, error, words):
    for word in words:
        with pytest.raises(error, match=word):
            bnderiv.batch_norm(jnp.ones((4, 3)), jnp.ones(3), jnp.ones(3), assumed_mean=guess)


@pytest.mark.few(1)
@pytest.mark.parametrize("features", [20, 200, 768])
def test_a_trend_along_the_features_is_read_once(features, measured_again):
    """The sample is of the middle, whatever tiles of memory it lies in."""
    noise = np.random.default_rng(0).standard_normal((64, features))
    x = jnp.asarray(0.2 * noise + np.linspace(-3, 3, features), jnp.float32)
    count, _ = measured_again(jax.jit(lambda x: bnderiv.layer_norm(x, None, None)), x)
    assert count == 0


@pytest.mark.slow
def test_a_list_of_axis_names_and_epsilon_of_numpy():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 8, 2)), jnp.float32)
    gamma, beta = jnp.ones(2, jnp.float32), jnp.zeros(2, jnp.float32)

    def run(name, eps):
        return jax.vmap(lambda x: bnderiv.batch_norm(x, gamma, beta, axis_name=name, eps=eps), axis_name="i")(x)

    with jax.enable_x64(False):
        near(run(["i"], np.array(1e-5)), run("i", 1e-5), 0)


@pytest.mark.few(1)
@pytest.mark.parametrize("value", [0, 0.3, 7, 1e-6, 1e30])
def test_a_constant_without_epsilon(measured_again, value):
    """It is measured again at each step, as no unit has deviations of 0 in range."""
    ones = jnp.ones(8, jnp.float32)
    f = jax.jit(lambda x: bnderiv.batch_norm(x, ones, ones, eps=0)[1].mean)
    count, mean = measured_again(f, jnp.full((64, 8), value, jnp.float32))
    assert count == 1
    np.testing.assert_array_equal(mean, np.full(8, value, np.float32))
