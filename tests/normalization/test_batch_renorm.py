"""What is particular to batch renormalization: its limits, what it equals there, large means and scales, devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import bnderiv
from tests.case import random_like
from tests.compiling import fast_jit
from tests.contract import TIGHT, near
from tests.normalization.truth import relative_error

EPS = 1e-5


def _problem(shape=(64, 4), mean=2.0, deviation=3.0, dtype: Any = np.float64):
    """x, γ, β, δ."""
    rng = np.random.default_rng(0)
    drawn = (
        mean + deviation * rng.standard_normal(shape),
        *rng.standard_normal((2, shape[-1])),
        rng.standard_normal(shape),
    )
    return tuple(jnp.asarray(a.astype(dtype)) for a in drawn)


def _value_and_gradient(layer, delta, *arguments):
    y, pull_back, stats = jax.vjp(layer, *arguments, has_aux=True)
    return (y, *pull_back(delta)), stats


def test_without_room_it_is_batch_norm_to_the_bit():
    """Whatever the running statistics are, which batch norm takes for an assumed mean."""
    x, gamma, beta, delta = _problem(mean=1e4, dtype=np.float32)
    mean, var = jnp.array([1e4, 0, jnp.nan, 3e38], jnp.float32), jnp.array([0, jnp.inf, 2, jnp.nan], jnp.float32)
    closed = partial(bnderiv.batch_renorm, mean=mean, var=var, r_max=1, d_max=0)
    plain = partial(bnderiv.batch_norm, assumed_mean=mean)
    for actual, expected in zip(
        *(jax.tree.leaves(fast_jit(partial(_value_and_gradient, f))(delta, x, gamma, beta)) for f in (closed, plain)),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.few(1)
@pytest.mark.parametrize("limits", [{"r_max": 1e3, "d_max": 1e3}, {"r_max": np.inf, "d_max": np.inf}], ids=str)
def test_without_limits_it_is_inference_in_value_and_batch_norm_in_gradient(limits):
    x, gamma, beta, delta = _problem()
    mean, var = jnp.array([1.0, 2, 40, -3]), jnp.array([1.0, 9, 0.1, 2000])
    (y, dx, d_gamma, d_beta), stats = _value_and_gradient(
        partial(bnderiv.batch_renorm, mean=mean, var=var, **limits), delta, x, gamma, beta
    )
    near(y, bnderiv.batch_norm_inference(x, gamma, beta, mean, var), TIGHT)
    near(stats, bnderiv.batch_norm(x, gamma, beta)[1], TIGHT)
    near(d_gamma, (delta * ((x - mean[None]) / jnp.sqrt(var + EPS)[None])).sum(0), TIGHT)
    near(d_beta, delta.sum(0), TIGHT)
    # dx has no part along 1 or x̂, which that of inference has.
    own = (x - x.mean(0, keepdims=True)) / x.std(0, keepdims=True)
    of_inference = gamma / jnp.sqrt(var + EPS)
    assert (abs(dx.sum(0)) < 1e-10 * abs(of_inference)).all()
    assert (abs((dx * own).sum(0)) < 1e-4 * abs(of_inference)).all()  # but for ε


def test_the_gradient_is_that_of_the_value_with_r_and_d_held():
    """Against finite differences."""
    x, gamma, beta, delta = _problem((5, 3))
    mean, var = jnp.array([1.5, 2.5, 40]), jnp.array([8.0, 12, 0.1])
    s = bnderiv.steps.batch_renorm(x, gamma, beta, mean, var, delta)
    np.testing.assert_array_equal(s.r > 2.99, [False, False, True])

    def layer(x, gamma, beta, eps):
        return bnderiv.batch_renorm(x, gamma, beta, mean, var, eps=eps)

    def held(x, gamma, beta, eps):
        x_hat = (x - x.mean(0)) / np.sqrt(x.var(0) + eps)
        return float((delta * (gamma * (x_hat * s.r + s.d) + beta)).sum())

    (_, *gradient), _ = _value_and_gradient(layer, delta, x, gamma, beta, jnp.asarray(EPS))
    arguments = [np.asarray(a) for a in (x, gamma, beta, EPS)]
    direction = [np.asarray(a) for a in random_like(tuple(arguments), 3)]
    with jax.numpy_rank_promotion("allow"):
        there, back = (held(*(a + h * t for a, t in zip(arguments, direction, strict=True))) for h in (1e-5, -1e-5))
    slope = sum(float((g * t).sum()) for g, t in zip(gradient, direction, strict=True))
    assert slope == pytest.approx((there - back) / 2e-5, rel=1e-8)


def _truth(x, gamma, beta, delta, mean, var, eps, r_max, d_max):
    """y, dx, dγ, dβ by (N37), in long double."""
    x, gamma, beta, delta, mean, var = (np.asarray(a).astype(np.longdouble) for a in (x, gamma, beta, delta, mean, var))
    eps, mu = np.longdouble(eps), x.mean(0)
    own, running = np.sqrt(((x - mu) ** 2).mean(0) + eps), np.sqrt(var + eps)
    r, d = np.clip(own / running, 1 / np.longdouble(r_max), r_max), np.clip((mu - mean) / running, -d_max, d_max)
    x_hat = (x - mu) / own
    dx = gamma * r / own * (delta - delta.mean(0) - x_hat * (delta * x_hat).mean(0))
    return gamma * (x_hat * r + d) + beta, dx, (delta * (x_hat * r + d)).sum(0), delta.sum(0)


@jax.jit
def _with_traced_options(delta, x, gamma, beta, *running, **options):
    layer = partial(bnderiv.batch_renorm, mean=running[0], var=running[1], **options)
    return _value_and_gradient(layer, delta, x, gamma, beta)[0]


@pytest.mark.few(3)
@pytest.mark.as_users_compile
@pytest.mark.parametrize(
    ("mean", "deviation", "running_mean", "running_var", "options"),
    [
        (1e4, 1, 1e4 + 0.25, 1.2, {}),
        (1e4, 1, 1e4 - 3, 0.5, {}),
        (1e30, 1e30, 1e18, 1e38, {}),  # clipped, as σ_B² and (μ_B − μ)² are no float32
        (1e30, 1e30, 0, 1e38, {"r_max": 1e15, "d_max": 1e15}),  # the same, and not clipped
        (1e30, 1e20, 0, 1, {}),  # a first batch
        (1e18, 1e18, 1.3e18, 1.3e36, {"eps": 0}),
        (1e-18, 1e-18, 1.3e-18, 1.3e-36, {"eps": 0}),
        (1, 1, 0.5, 0, {"r_max": 1e3, "d_max": 1e3}),  # ε alone
    ],
)
def test_numbers_at_large_means_and_scales(mean, deviation, running_mean, running_var, options):
    _is_right(mean, deviation, running_mean, running_var, options)


@pytest.mark.as_users_compile
def test_numbers_where_the_means_are_large_and_near_each_other():
    """d is their difference, of which nothing would be left if either were rounded at its size."""
    _is_right(1e6, 1, 1e6 + 0.25, 1.2, {})


def _is_right(mean, deviation, running_mean, running_var, options):
    if np.finfo(np.longdouble).maxexp < 16384:
        pytest.skip("needs a long double of a wider range")
    x, gamma, beta, delta = _problem((512, 8), mean, deviation, np.float32)
    near_it = 0.8 + 0.4 * np.random.default_rng(1).random(8)
    running = jnp.full(8, running_mean, jnp.float32), jnp.asarray(running_var * near_it, jnp.float32)
    options = {"eps": EPS, "r_max": 3.0, "d_max": 5.0, **options}
    actual = _with_traced_options(delta, x, gamma, beta, *running, **{k: jnp.float32(v) for k, v in options.items()})
    expected = _truth(x, gamma, beta, delta, *running, **options)
    for a, e, most in zip(actual, expected, (2e-7, 2e-7, 5e-7, 5e-7), strict=True):
        assert relative_error(a, e) < most


def test_an_infinite_running_variance_is_not_silently_beta():
    x, gamma, beta, _ = _problem()
    var = jnp.array([1.0, jnp.inf, 1, 1])
    y, stats = bnderiv.batch_renorm(x, gamma, beta, 0 * var, var, r_max=jnp.inf)
    np.testing.assert_array_equal(np.isnan(y).all(0), [False, True, False, False])
    assert np.isfinite(jax.tree.leaves(stats)).all()


def test_what_is_masked_reaches_nothing():
    x, gamma, beta, delta = _problem((6, 3))
    mean, var = jnp.array([1.5, 2.5, 1.0]), jnp.array([8.0, 12, 1])
    where = jnp.asarray(np.arange(18).reshape(6, 3) % 4 > 0).at[:, 2].set(False)  # the last has no elements
    layer = partial(bnderiv.batch_renorm, mean=mean, var=var, where=where)
    delta = jnp.where(where, delta, 0)
    (clean, dx, *clean_sums), stats = _value_and_gradient(layer, delta, x, gamma, beta)
    (y, spoiled, *sums), other = _value_and_gradient(layer, delta, jnp.where(where, x, jnp.nan), gamma, beta)
    near((jnp.where(where, y, 0), spoiled, sums, other), (jnp.where(where, clean, 0), dx, clean_sums, stats), TIGHT)
    assert np.isfinite(clean).all()
    np.testing.assert_array_equal((stats.count[2], stats.mean[2], stats.var[2]), (0, 0, 0))


@pytest.mark.parametrize("mode", ["shard_map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_over_devices_the_statistics_are_those_of_all(mode):
    """With r and d of the whole batch, and gradients summed where the argument is shared."""
    devices, axis = 4, "devices"
    x, gamma, beta, delta = _problem((32, 3))
    mean, var = jnp.array([1.5, 2.5, 40]), jnp.array([8.0, 12, 0.1])
    where = jnp.asarray(np.arange(32)[:, None] % 5 > np.arange(32)[:, None] // 12)  # unequal counts
    expected = fast_jit(
        partial(_value_and_gradient, lambda x, g, b: bnderiv.reference.batch_renorm(x, g, b, mean, var, where=where))
    )(delta, x, gamma, beta)

    def local(x, where, *vectors):
        return bnderiv.batch_renorm(x, *vectors, where=where, axis_name=axis)

    def whole(x, gamma, beta):
        if mode == "shard_map":
            mesh = Mesh(np.array(jax.devices()[:devices]), (axis,))
            specs = (P(axis), P(axis), *(P(),) * 4), (P(axis), P())
            return jax.shard_map(local, mesh=mesh, in_specs=specs[0], out_specs=specs[1])(
                x, where, gamma, beta, mean, var
            )
        parts = (a.reshape(devices, -1, a.shape[-1]) for a in (x, where))
        y, stats = jax.vmap(local, (0, 0, *(None,) * 4), axis_name=axis)(*parts, gamma, beta, mean, var)
        return y.reshape(x.shape), jax.tree.map(lambda a: a[0], stats)

    near(fast_jit(partial(_value_and_gradient, whole))(delta, x, gamma, beta), expected, TIGHT)


def test_groups_of_devices_have_statistics_of_their_own():
    """Each group is a batch by itself; where JAX does not take groups, they are refused."""
    groups, (x, gamma, beta, _) = ((0, 3), (2, 1)), _problem((4, 3, 2))
    running = jnp.array([1.5, 2.5]), jnp.array([8.0, 12])
    f = partial(bnderiv.batch_renorm, axis_name="i", axis_index_groups=groups)
    y, _ = jax.pmap(f, axis_name="i", in_axes=(0, *(None,) * 4))(x, gamma, beta, *running)
    for group in groups:
        rows = jnp.asarray(group)
        near(y[rows], fast_jit(bnderiv.reference.batch_renorm)(x[rows], gamma, beta, *running)[0], TIGHT)
    with pytest.raises(ValueError, match="axis_index_groups must be None"):
        jax.eval_shape(jax.vmap(f, (0, *(None,) * 4), axis_name="i"), x, gamma, beta, *running)


def test_limits_may_be_traced():
    """As in a warm-up, under one program."""
    x, gamma, beta, _ = _problem((6, 3))
    mean, var = jnp.array([1.5, 2.5, 40]), jnp.array([8.0, 12, 0.1])

    @jax.jit
    def f(*limits):
        y, pull_back = jax.vjp(
            lambda r_max, d_max: bnderiv.batch_renorm(x, gamma, beta, mean, var, r_max=r_max, d_max=d_max)[0], *limits
        )
        return y, pull_back(y)

    for limits, expected in (
        ((1.0, 0.0), bnderiv.batch_norm(x, gamma, beta)),
        ((3.0, 5.0), bnderiv.batch_renorm(x, gamma, beta, mean, var)),
    ):
        y, gradients = f(*limits)
        near(y, expected[0], TIGHT)
        assert gradients == (0, 0)  # r and d are constants, at a limit too


def test_errors():
    ones = jnp.ones(3)
    call: Any = partial(bnderiv.batch_renorm, jnp.ones((4, 3)), ones, ones)
    with pytest.raises(ValueError, match=r"mean must have shape \(3,\).*\[2\]"):
        call(jnp.ones(2), ones)
    with pytest.raises(TypeError, match=r"var must have a floating dtype.*int32"):
        call(ones, jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match=r"r_max must be at least 1, got 0\.5"):
        call(ones, ones, r_max=0.5)
    with pytest.raises(ValueError, match="d_max must be at least 0, got nan"):
        call(ones, ones, d_max=jnp.nan)
    with pytest.raises(TypeError, match="r_max must be a real number, got 'inf'"):
        call(ones, ones, r_max="inf")
    with pytest.raises(TypeError, match="where must be boolean, got float"):
        call(ones, ones, where=jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"where must broadcast to the shape of x, \(4, 3\), got shape \(2, 4, 3\)"):
        call(ones, ones, where=jnp.ones((2, 4, 3), bool))
    with pytest.raises(ValueError, match="axis_index_groups must come with axis_name"):
        call(ones, ones, axis_index_groups=[[0]])
