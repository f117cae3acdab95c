"""`where`: what is masked out counts for nothing and reaches nothing, whatever it holds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bnderiv
from tests.case import random_like
from tests.contract import near

EPS = 1e-5


def _draw(shape=(6, 3, 4, 2), seed=0):
    rng = np.random.default_rng(seed)
    x, gamma, beta = 3 * rng.standard_normal(shape) + 2, rng.standard_normal(shape[-1]), rng.standard_normal(shape[-1])
    where = rng.random((*shape[:-1], 1)) < 0.5
    return tuple(jnp.asarray(a) for a in (x, gamma, beta, where))


@jax.jit
def _everything(x, gamma, beta, where, delta, stats_delta, eps=EPS):
    (y, stats), pull_back = jax.vjp(lambda *a: bnderiv.batch_norm(*a, where=where, eps=eps), x, gamma, beta)
    return y, stats, pull_back((delta, stats_delta))


def _cotangents(x):
    channels = jnp.zeros(x.shape[-1])
    return random_like(x, 1), bnderiv.BatchStats(*random_like((channels,) * 3, 2))


@pytest.mark.few(2, 2)
@pytest.mark.parametrize("layer", [bnderiv.batch_norm, bnderiv.batch_norm_relu], ids=lambda f: f.__name__)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_masked_out_reaches_nothing(layer, bad):
    x, gamma, beta, where = _draw()
    everywhere = jnp.broadcast_to(where, x.shape)
    delta, stats_delta = _cotangents(x)
    delta = jnp.where(where, delta, 0)  # a loss that ignores the masked places

    @jax.jit
    def run(x):
        (y, stats), pull_back = jax.vjp(lambda *a: layer(*a, where=where), x, gamma, beta)
        return jnp.where(where, y, 0), stats, pull_back((delta, stats_delta))

    chex.assert_trees_all_equal(run(jnp.where(everywhere, x, bad)), run(jnp.where(everywhere, x, 0.0)))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(run(jnp.where(everywhere, x, bad))))


@pytest.mark.few(1, 2)
@pytest.mark.parametrize("layers", [bnderiv, bnderiv.forward_mode], ids=lambda m: m.__name__)
@pytest.mark.parametrize("bad", [np.finfo(np.float32).max, np.finfo(np.float32).min, np.nan])
def test_nor_where_its_deviation_is_no_number(layers, bad):
    """Small data are measured in units so small that float32 does not hold the largest numbers in them."""
    *arrays, where = _draw()
    x, gamma, beta = (a.astype(jnp.float32) / 1000 for a in arrays)
    everywhere = jnp.broadcast_to(where, x.shape)
    delta, stats_delta = jax.tree.map(lambda a: a.astype(jnp.float32), _cotangents(x))
    delta = jnp.where(where, delta, 0)

    @jax.jit
    def run(x):
        (y, stats), pull_back = jax.vjp(lambda *a: layers.batch_norm(*a, where=where), x, gamma, beta)
        return jnp.where(where, y, 0), stats, pull_back((delta, stats_delta))

    chex.assert_trees_all_equal(run(jnp.where(everywhere, x, bad)), run(jnp.where(everywhere, x, 0)))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(run(jnp.where(everywhere, x, bad))))


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("forward", [False, True], ids=["reverse-over-reverse", "forward-over-reverse"])
@pytest.mark.parametrize("layer", ["batch_norm", "batch_norm_relu"])
def test_it_reaches_no_second_derivative_and_no_tangent(layer, forward):
    x, gamma, beta, where = _draw((4, 3, 2))
    everywhere = jnp.broadcast_to(where, x.shape)
    delta, stats_delta = _cotangents(x)
    directions = random_like((x, gamma, beta), 3)

    def loss(x, gamma, beta):  # no linear one, so that its cotangents depend on y and the statistics
        y, stats = getattr(bnderiv.forward_mode if forward else bnderiv, layer)(x, gamma, beta, where=where)
        return (delta * jnp.where(where, y, 0) ** 3).sum() + (stats_delta.mean * stats.mean * stats.var).sum()

    @jax.jit
    def derivatives(x):
        args, gradient = (x, gamma, beta), jax.grad(loss, (0, 1, 2))
        if forward:
            return jax.jvp(loss, args, directions), jax.jvp(gradient, args, directions)
        return jax.grad(lambda *a: sum(map(jnp.vdot, gradient(*a), directions)), (0, 1, 2))(*args)

    zero = derivatives(jnp.where(everywhere, x, 0.0))
    for bad in (np.nan, np.inf):
        chex.assert_trees_all_equal(derivatives(jnp.where(everywhere, x, bad)), zero)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(zero))


def test_masked_rows_are_as_if_they_were_not_there():
    x, gamma, beta, _ = _draw((7, 4))
    keep = np.array([True, False, True, True, False, True, False])
    delta, stats_delta = _cotangents(x)
    delta = jnp.where(keep[:, None], delta, 0)
    y, stats, (dx, d_gamma, d_beta) = _everything(x, gamma, beta, jnp.asarray(keep[:, None]), delta, stats_delta)
    shorter = _everything(x[keep], gamma, beta, jnp.ones((), bool), delta[keep], stats_delta)
    near((y[keep], stats, (dx[keep], d_gamma, d_beta)), shorter, 1e-12)
    np.testing.assert_array_equal(dx[~keep], np.zeros((3, 4)))
    np.testing.assert_array_equal(stats.count, [4] * 4)


def test_a_masked_place_is_mapped_like_any_other_and_its_cotangent_flows():
    x, gamma, beta, where = _draw()
    delta, stats_delta = _cotangents(x)
    nothing = jax.tree.map(jnp.zeros_like, stats_delta)
    y, stats, _ = _everything(x, gamma, beta, where, delta, nothing)
    near(y, bnderiv.batch_norm_inference(x, gamma, beta, stats.mean, stats.var), 1e-12)
    one = (jnp.zeros_like(x).at[0, 0, 0, 1].set(1.0), jnp.zeros(where.shape, bool).at[1:].set(True))
    _, stats, (dx, d_gamma, d_beta) = _everything(x, gamma, beta, one[1], one[0], nothing)
    r = 1 / np.sqrt(stats.var[1] + EPS)
    np.testing.assert_allclose(dx[0, 0, 0, 1], gamma[1] * r, rtol=1e-13)
    np.testing.assert_allclose(d_gamma[1], (x[0, 0, 0, 1] - stats.mean[1]) * r, rtol=1e-12)
    assert d_beta[1] == 1
    assert np.abs(dx[1:, ..., 1]).min() > 0  # through the statistics, to each that counts
    assert not np.asarray(dx[..., 0]).any()


def test_nothing_counted():
    x, gamma, beta, _ = _draw()
    delta, stats_delta = _cotangents(x)
    given = x * jnp.nan, gamma, beta, jnp.zeros((), bool), 0 * delta, stats_delta
    y, stats, grads = _everything(*given)
    for found in (stats, _everything(*given, eps=0.0)[1]):  # without ε what is 0 is measured again
        np.testing.assert_array_equal(jnp.stack(found), np.zeros((3, 2)))
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))
    y, stats, _ = _everything(x, gamma, beta, jnp.zeros((), bool), delta, stats_delta)
    assert np.isfinite(y).all()
    running = bnderiv.RunningStats(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), jnp.int32(5))
    chex.assert_trees_all_equal(bnderiv.update_running_stats(running, stats), running)


def test_a_channel_that_counts_nothing_leaves_the_others_alone():
    x, gamma, beta, _ = _draw()
    delta, stats_delta = _cotangents(x)
    second = _everything(x, gamma, beta, jnp.array([False, True]), delta, stats_delta)
    both = _everything(x, gamma, beta, jnp.array([True, True]), delta, stats_delta)
    near(jax.tree.map(lambda a: a[..., 1], second), jax.tree.map(lambda a: a[..., 1], both), 1e-12)
    np.testing.assert_array_equal(second[1].count, [0, 72])


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "shape", [(), (1,), (2,), (4, 1), (3, 1, 1), (6, 1, 1, 1), (1, 3, 4, 1), (6, 3, 4, 2)], ids=str
)
def test_every_shape_that_broadcasts(shape):
    x, gamma, beta, _ = _draw()
    where = jnp.asarray(np.random.default_rng(3).random(shape) < 0.6)
    delta, stats_delta = _cotangents(x)
    full = jnp.broadcast_to(where, x.shape)
    near(
        _everything(x, gamma, beta, where, delta, stats_delta),
        _everything(x, gamma, beta, full, delta, stats_delta),
        1e-13,
    )


def test_vmapped_over_masks():
    x, gamma, beta, where = _draw()
    delta, stats_delta = _cotangents(x)
    masks = jnp.stack([where, ~where, jnp.zeros_like(where)])
    mapped = jax.vmap(_everything, (None, None, None, 0, None, None))(x, gamma, beta, masks, delta, stats_delta)
    rows = [_everything(x, gamma, beta, mask, delta, stats_delta) for mask in masks]
    near(mapped, jax.tree.map(lambda *r: jnp.stack(r), *rows), 1e-12)


@given(st.integers(0, 2**20 - 1), st.integers(0, 2**32 - 1))
def test_any_mask_against_loops(bits, seed):
    shape = (5, 2, 2)
    x, gamma, beta, _ = _draw(shape, seed)
    where = np.array([bits >> i & 1 for i in range(20)], bool).reshape(shape)
    delta, stats_delta = _cotangents(x)
    y, stats, (dx, d_gamma, d_beta) = _everything(x, gamma, beta, jnp.asarray(where), delta, stats_delta)
    near((y, *stats, dx, d_gamma, d_beta), _by_loops(x, gamma, beta, where, delta, stats_delta), 1e-10)


def _by_loops(x, gamma, beta, where, delta, stats_delta):
    """(N24), channel by channel, over lists of elements."""
    x, gamma, beta, delta = (np.asarray(a) for a in (x, gamma, beta, delta))
    y, dx = np.empty_like(x), np.empty_like(x)
    means, variances, counts, d_gammas, d_betas = ([] for _ in range(5))
    for c in range(x.shape[-1]):
        counted = [float(v) for v, w in zip(x[..., c].ravel(), where[..., c].ravel(), strict=True) if w]
        n = len(counted)
        mean = sum(counted) / max(n, 1)
        var = sum((v - mean) ** 2 for v in counted) / max(n, 1)
        r = (var + EPS) ** -0.5
        x_hat, d = (x[..., c] - mean) * r, delta[..., c]
        y[..., c] = gamma[c] * x_hat + beta[c]
        d_gamma, d_beta = (d * x_hat).sum(), d.sum()
        through = -gamma[c] * r * (d_beta + x_hat * d_gamma) + stats_delta.mean[c]
        through = through + 2 * stats_delta.var[c] * (x[..., c] - mean)
        dx[..., c] = gamma[c] * r * d + np.where(where[..., c], through / max(n, 1), 0)
        for values, value in zip(
            (means, variances, counts, d_gammas, d_betas), (mean, var, n, d_gamma, d_beta), strict=True
        ):
            values.append(value)
    means, variances, counts, d_gammas, d_betas = map(np.array, (means, variances, counts, d_gammas, d_betas))
    return y, means, variances, counts, dx, d_gammas, d_betas


@pytest.mark.parametrize("huge", [1e18, -3e38])
def test_what_is_masked_out_is_not_in_the_range(huge):
    """In the unit of a range of 1e18 the squares of the others would underflow. The guess is far off, so x is measured
    again."""
    x, where = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32), np.ones((40, 1), bool)
    x[7], where[7] = huge, False
    y, stats = bnderiv.batch_norm(
        jnp.asarray(x),
        jnp.ones(3, jnp.float32),
        jnp.zeros(3, jnp.float32),
        where=jnp.asarray(where),
        assumed_mean=jnp.full(3, 1e4),
    )
    counted = np.delete(x, 7, 0).astype(np.float64)
    expected = (counted - counted.mean(0)) / np.sqrt(counted.var(0) + 1e-5)
    np.testing.assert_allclose(np.delete(y, 7, 0), expected, 1e-5, 1e-6)
    np.testing.assert_allclose(stats.var, counted.var(0), 1e-6)
