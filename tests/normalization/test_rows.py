"""Rows as a GPU and a TPU measure them, on the CPU: right for any of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import bnderiv
from bnderiv import _gpu
from bnderiv.normalization.groups import Groups
from bnderiv.normalization.rms_norm import mean_square
from bnderiv.normalization.units import Epsilon
from tests import forms
from tests.case import random_like
from tests.normalization import truth

EPS = np.float64(np.float32(1e-5))
NORMS = {
    "layer_norm": bnderiv.layer_norm,
    "rms_norm": lambda x, gamma, beta, eps=1e-5, **options: bnderiv.rms_norm(x, gamma, eps=eps, **options),
}
every_norm = pytest.mark.parametrize("name", NORMS)


@pytest.fixture(autouse=True, scope="module", params=["cuda", pytest.param("tpu", marks=pytest.mark.slow)])
def platform(request):
    with forms.of(request.param):
        yield request.param


def _draw(shape=(40, 768), dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(s), dtype) for s in (shape, shape[-1:], shape[-1:]))


def _truth(name, x, gamma, beta, delta, eps=EPS):
    centred = name == "layer_norm"
    return truth.over_other_axes(x, gamma, beta if centred else 0, delta, (1,), (0,), eps, centred=centred)[:3]


def _both_ways(norm, delta, *arguments):
    y, pull_back = jax.vjp(norm, *arguments)
    return y, *pull_back(delta)


def _has_branch(f, *arguments):
    return " cond[" in str(jax.make_jaxpr(f)(*arguments))


def _elsewhere(f, *arguments):
    """`f`, as it is measured elsewhere."""
    with forms.of("rocm"):
        return jax.jit(f)(*arguments)


@every_norm
def test_on_a_gpu_nothing_is_assumed_and_tested(name, platform):
    norm, arguments = NORMS[name], _draw()
    x, *_ = arguments
    assert _has_branch(norm, *arguments) == (platform == "tpu")
    assert _has_branch(jax.grad(lambda *a: norm(*a).sum()), *arguments) == (platform == "tpu")
    assert _has_branch(partial(norm, axis=0), x, x[:, 0], x[:, 0])
    with forms.of("rocm"):
        assert _has_branch(norm, *arguments)


def test_on_a_gpu_a_mask_and_long_rows_are_measured_as_elsewhere(monkeypatch):
    x, gamma, beta = _draw()
    assert _has_branch(lambda *a: bnderiv.layer_norm(*a, where=x > 0), x, gamma, beta)
    monkeypatch.setattr(_gpu, "LONGEST", 767)
    jax.clear_caches()
    assert _has_branch(bnderiv.layer_norm, x, gamma, beta)


@pytest.mark.as_users_compile
@every_norm
@pytest.mark.parametrize(
    ("mean", "deviation"),
    [
        (0, 1),
        (0.98, 1),
        (1.02, 1),
        (1e2, 1),
        (1e4, 1),
        (0, 1e20),
        (3e30, 1e30),
        (0, 3e37),
        (0, 7e37),  # up to the largest floats: 1/σ is a normal number, the inverse of the largest x is not
        (0, 1e-3),
        (1e2, 1e-2),
        (0, 1e-15),
    ],
)
def test_right_at_any_mean_and_scale(name, mean, deviation):
    """y alone, and y, dx and dγ with a gradient."""
    x, gamma, beta = _draw()
    x = jnp.asarray(mean + deviation * np.asarray(x, np.float64), jnp.float32)
    delta = 1e6 * random_like(x, 2)  # so that dx is a normal number at 3e37
    y, dx, d_gamma = _truth(name, x, gamma, beta, delta)
    assert truth.relative_error(jax.jit(NORMS[name])(x, gamma, beta), y) < 2e-7
    found = jax.jit(lambda delta, *a: _both_ways(NORMS[name], delta, *a))(delta, x, gamma, beta)
    assert truth.relative_error(found[0], y) < 2e-7
    assert truth.relative_error(found[1], dx) < 2e-7
    assert truth.relative_error(found[2], d_gamma) < 5e-7


@every_norm
@pytest.mark.parametrize(
    ("dtype", "mean", "deviation"),
    [("float16", 50, 10), ("bfloat16", 50, 10), ("bfloat16", 1000, 8), ("float64", 50, 10)],
)
def test_other_dtypes(name, dtype, mean, deviation):
    x, gamma, beta = _draw(dtype=dtype)
    x = mean + deviation * x
    delta = random_like(x, 2)
    y, dx, _, _ = _both_ways(NORMS[name], delta, x, gamma, beta)
    assert y.dtype == dx.dtype == dtype
    expected = _truth(name, x, gamma, beta, delta, np.float64(1e-5) if dtype == "float64" else EPS)
    for actual, right in zip((NORMS[name](x, gamma, beta), y, dx), (expected[0], *expected[:2]), strict=True):
        assert truth.relative_error(actual, right) < max(float(jnp.finfo(dtype).eps) / 2, 1e-15)


@pytest.mark.as_users_compile
@every_norm
@pytest.mark.parametrize("eps", [1e-5, 1e-12, 0])
def test_rows_of_any_kind_as_elsewhere(name, eps):
    """Constants, zeros, an outlier, the whole range of float32, subnormal numbers, NaN, infinity."""
    x, gamma, beta = _draw()
    rows = np.asarray(x).copy()
    rows[1], rows[2], rows[3], rows[4] = 1234.567, -1e36, 3e38, 0
    rows[5, 7], rows[6, 9] = 1e5, 1e30
    rows[7, :3] = 3.4e38, -3.4e38, 1e-38
    rows[8] *= 1e-40
    rows[9] = 3e38 + 1e32 * rows[9]
    rows[10, 1], rows[11, 2], rows[12, 3] = np.nan, np.inf, -np.inf
    x = jnp.asarray(rows)
    norm, delta = partial(NORMS[name], eps=eps), random_like(x, 3)
    alone = jax.jit(norm)(x, gamma, beta)
    y, dx, *sums = jax.jit(lambda *a: _both_ways(norm, *a))(delta, x, gamma, beta)
    expected = _elsewhere(lambda *a: _both_ways(norm, *a), delta, x, gamma, beta)
    assert np.isnan(alone[10:13]).any(1).all()
    for actual, right in ((alone, expected[0]), (y, expected[0]), (dx, expected[1])):
        for i, (a, b) in enumerate(zip(np.asarray(actual), np.asarray(right), strict=True)):
            np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b), err_msg=f"row {i}")
            if np.isfinite(a).all():
                assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max(), f"row {i}"
    assert np.isnan(sums[0]).all()  # NaN in x reaches γ's gradient


@pytest.mark.as_users_compile
@pytest.mark.parametrize("mean", [0, 1e4])
def test_masked_elements_do_not_count(mean):
    """Whatever they hold; here also all of a row."""
    x, gamma, beta = _draw((8, 256))
    where = (random_like(x, 5) > 0).at[3].set(False)
    held = jnp.asarray([np.nan, np.inf, -1e38, 1e30], x.dtype)[jnp.arange(256) % 4]
    held = jnp.broadcast_to(held, x.shape).at[0].set(0.5)
    x, delta = jnp.where(where, mean + x, held), jnp.where(where, random_like(x, 3), 0)

    def both_ways(*arguments):
        y, *gradients = _both_ways(partial(bnderiv.layer_norm, where=where), *arguments)
        return jnp.where(where, y, 0), *gradients

    arguments = (delta, x, gamma, beta)
    for actual, expected in zip(jax.jit(both_ways)(*arguments), _elsewhere(both_ways, *arguments), strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(actual, expected, 2e-6, 2e-6)


@every_norm
def test_under_every_transform(name):
    """vmap, shard_map, a gradient by γ and β alone, second derivatives, `lax.scan`."""
    norm = NORMS[name]
    x, gamma, beta = _draw((8, 6, 32))

    def expected(x, gamma, beta):
        layer = getattr(bnderiv.reference, name)
        return layer(x, gamma, beta) if name == "layer_norm" else layer(x, gamma, eps=1e-5)

    right = expected(x, gamma, beta)
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    close(jax.vmap(norm, (0, None, None))(x, gamma, beta), right)
    close(jax.vmap(norm, (1, None, None), 1)(x, gamma, beta), right)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over_devices = jax.shard_map(norm, mesh=mesh, in_specs=(P("data"), P(), P()), out_specs=P("data"))
    close(jax.jit(over_devices)(x, gamma, beta), right)
    close(jax.lax.scan(lambda _, row: (None, norm(row, gamma, beta)), None, x)[1], right)
    delta = random_like(x, 1)
    for found, wanted in zip(
        jax.vjp(partial(norm, x), gamma, beta)[1](delta),
        jax.vjp(partial(expected, x), gamma, beta)[1](delta),
        strict=True,
    ):
        close(found, wanted, rtol=1e-4)

    def twice(f):
        return jax.grad(lambda x: (jax.grad(lambda x: (f(x, gamma, beta) * delta).sum())(x) * delta).sum())(x)

    close(twice(norm), twice(expected), atol=1e-3)


@pytest.mark.as_users_compile
@every_norm
@pytest.mark.parametrize(
    ("deviation", "size"), [(1e13, 1e15), (1e11, 1e-22), (5e-12, 1e15), (1e-12, 1e-30), (1e30, 1e20)]
)
def test_with_large_and_small_cotangents(name, deviation, size):
    """The statistics' cotangents neither over- nor underflow where dx does not."""
    x, gamma, beta = _draw((8, 256))
    delta, x = size * random_like(x, 4), deviation * x
    norm = partial(NORMS[name], eps=1e-30)
    dx = jax.jit(lambda delta, *a: _both_ways(norm, delta, *a))(delta, x, gamma, beta)[1]
    assert truth.relative_error(dx, _truth(name, x, gamma, beta, delta, np.float64(np.float32(1e-30)))[1]) < 2e-7


@pytest.mark.as_users_compile
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_a_row_in_parts_on_several_devices(name):
    """Parts of very different size, under jit: each of them has its gradient."""
    pytest.importorskip("flax")
    import bnderiv.linen

    rng = np.random.default_rng(5)
    x, delta = (jnp.asarray(rng.standard_normal((2, 3, 16)), jnp.float32) for _ in range(2))
    x = x * jnp.array([1e-15, 1e15], x.dtype)[:, None, None]
    options = {"use_bias": False} if name == "LayerNorm" else {}
    norm = getattr(bnderiv.linen, name)(epsilon=1e-30, axis_name="parts", **options)
    apply = partial(norm.apply, {"params": {"scale": jnp.ones(16, x.dtype)}})
    found = jax.jit(lambda x, delta: _both_ways(jax.vmap(apply, axis_name="parts"), delta, x))(x, delta)

    whole = (np.swapaxes(a, 0, 1) for a in (x, delta))
    rows, delta = (np.asarray(a, np.float64) for a in whole)
    eps = np.float64(np.float32(1e-30))
    expected = truth.over_other_axes(rows, 1.0, 0.0, delta, (1, 2), (0,), eps, centred=name == "LayerNorm")
    for actual, right in zip(found, expected[:2], strict=True):
        for part in range(2):
            assert truth.relative_error(actual[part], right[:, part]) < 5e-7


def test_without_a_gradient_the_same_results_have_a_mapped_axis():
    """JAX takes the shapes from a rule's primal, and the values from its forward."""
    x, *_ = _draw((4, 3, 32))
    groups, eps = Groups(both=(), statistics=(1,), parameters=(0,)), Epsilon.of(1e-5, x.dtype)

    @jax.jit
    def product(x):
        unit, square = mean_square(groups, x, None, groups.count(x, None), eps)
        return (square / unit.scale**2).sum()  # mean x²

    gradient = jax.jit(lambda x: jax.vjp(jax.vmap(product), x)[1](x[:, 0, 0])[0])(x)
    np.testing.assert_allclose(gradient, x[:, :1, :1] * x / 16, rtol=1e-5)
