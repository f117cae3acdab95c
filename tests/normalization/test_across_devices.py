"""Statistics over several devices: equal to those of the whole batch, in values, gradients and messages sent."""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bnderiv
import bnderiv.reference
from bnderiv import BatchStats
from bnderiv.normalization.across_devices import merge
from bnderiv.normalization.units import Moments, Unit
from tests.case import random_like
from tests.compiling import fast_jit
from tests.contract import near
from tests.programs import collectives

DEVICES, CHANNELS = 8, 3
AXIS = "devices"
MODES = ("shard_map", "vmap", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("shard_map-unchecked", "pmap")))
ALL = ((0, 1, 2, 3, 4, 5, 6, 7),)
HALVES = ((0, 1, 2, 3), (4, 5, 6, 7))
PAIRS = ((0, 4), (1, 5), (2, 6), (3, 7))
SHARED = (1, 2)  # the places of gamma and beta, where all devices have the same


def _mesh(**axes):
    return Mesh(np.array(jax.devices()[:DEVICES]).reshape(*axes.values()), tuple(axes))


def _mapped(mode, f, shared=()):
    """`f` over the leading axis of its arguments, one device each; those numbered in `shared` are the same for all."""
    if mode in ("pmap", "vmap"):

        def call(*args):
            in_axes = tuple(None if i in shared else 0 for i in range(len(args)))
            return getattr(jax, mode)(f, in_axes=in_axes, axis_name=AXIS)(*args)

        return call
    return _sharded(_mesh(devices=DEVICES), P(AXIS), mode == "shard_map", f, shared)


def _sharded(mesh, spec, check_vma, f, shared=()):
    def local(*args):
        args = (a if i in shared else jax.tree.map(lambda leaf: leaf[0], a) for i, a in enumerate(args))
        return jax.tree.map(lambda out: out[None], f(*args))

    def call(*args):
        in_specs = tuple(P() if i in shared else spec for i in range(len(args)))
        return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=spec, check_vma=check_vma)(*args)

    return call


@lru_cache
def _problem(masked, shared):
    """x, gamma, beta, where and the cotangents of (y, stats), each with a leading axis of devices but for `shared`."""
    rng = np.random.default_rng(0)
    x = 2 + 3 * rng.standard_normal((DEVICES, 2, 3, CHANNELS))
    gamma, beta = 1 + rng.standard_normal((DEVICES, CHANNELS)), rng.standard_normal((DEVICES, CHANNELS))
    dy, where = rng.standard_normal(x.shape), None
    if masked:
        where = rng.random(x.shape) < 0.6
        where[[0, 5]] = False  # nothing there ...
        x[0] = np.nan  # ... and what there is on device 5 has cotangents all the same
        x[3][~where[3]] = np.inf
        dy[~np.isfinite(x)] = 0
    if shared:
        gamma, beta = gamma[0], beta[0]
    stats = BatchStats(*jnp.asarray(rng.standard_normal((3, DEVICES, CHANNELS))))
    return jax.tree.map(jnp.asarray, ((x, gamma, beta, where), (dy, stats)))


def _whole(relu, groups, x, gamma, beta, where):
    """Each group's batch at once: the devices are one more axis of the batch. Every device has a copy of the stats."""
    gamma, beta = (jnp.broadcast_to(a, (DEVICES, CHANNELS))[:, None, None] for a in (gamma, beta))
    ones, zeros = jnp.ones(CHANNELS), jnp.zeros(CHANNELS)

    def one(x, gamma, beta, where):
        x_hat, stats = bnderiv.reference.batch_norm(x, ones, zeros, where=where)
        y = x_hat * gamma + beta
        y = jnp.where(y > 0, y, 0) if relu else y
        return y, jax.tree.map(lambda a: jnp.broadcast_to(a, (len(x), CHANNELS)), stats)

    arrays = (x, gamma, beta, where)
    outs = [one(*jax.tree.map(lambda a, group=group: a[np.array(group)], arrays)) for group in groups]
    back = np.argsort(np.concatenate(groups))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[back], *outs)


def _at(where, f):
    """`f` as a function of what has a gradient."""
    return lambda x, gamma, beta: f(x, gamma, beta, where)


def _value_and_gradient(f, cotangents, *args):
    out, pull_back = jax.vjp(f, *args)
    return out, pull_back(cotangents)


@lru_cache
def _truth(relu, masked, shared, groups=ALL):
    """y, statistics and gradients at 0 in the place of x that are not finite (where autodiff makes NaN of 0 · NaN)."""
    (x, *parameters, where), cotangents = _problem(masked, shared)
    whole = fast_jit(partial(_value_and_gradient, _at(where, partial(_whole, relu, groups))))
    return whole(cotangents, jnp.where(jnp.isfinite(x), x, 0), *parameters)


def _layer(relu, layers=bnderiv):
    return layers.batch_norm_relu if relu else layers.batch_norm


def _equals_the_whole(compute, relu, masked, shared, groups=ALL):
    """`compute(args, cotangents)`, which is ((y, stats), gradients), against the truth."""
    args, cotangents = _problem(masked, shared)
    (y, stats), grads = fast_jit(compute)(args, cotangents)
    (y_, stats_), grads_ = _truth(relu, masked, shared, groups)
    finite = np.isfinite(args[0])
    near((np.asarray(y)[finite], stats), (np.asarray(y_)[finite], stats_), 1e-9)
    assert all(np.isfinite(g).all() for g in grads)
    near(grads, grads_, 1e-9)


@pytest.mark.few(1, 1)
@pytest.mark.parametrize(
    "layers", [bnderiv, pytest.param(bnderiv.forward_mode, marks=pytest.mark.slow)], ids=["bnderiv", "forward_mode"]
)
@pytest.mark.parametrize("mode", ["shard_map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_a_residual(mode, layers):
    """relu(batch norm + z) with statistics of all devices, and z on each its own, as that of the whole batch."""
    (x, gamma, beta, _), (dy, _) = _problem(False, True)
    z = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape))

    def whole(x, gamma, beta, z):
        y = bnderiv.reference.batch_norm_relu(
            *(a.reshape(-1, CHANNELS) if a.ndim > 1 else a for a in (x, gamma, beta, z))
        )
        return y[0].reshape(x.shape)

    sharded = _mapped(mode, lambda *a: layers.batch_norm_relu(*a, axis_name=AXIS)[0], SHARED)
    compute = fast_jit(partial(_value_and_gradient, sharded))
    near(compute(dy, x, gamma, beta, z), fast_jit(partial(_value_and_gradient, whole))(dy, x, gamma, beta, z), 1e-11)


def _outside(f, mapped, checked, args, cotangents):
    """The gradient of the mapped function."""
    *args, where = args
    mapped_f = mapped(f, SHARED if args[1].ndim == 1 else ())
    return _value_and_gradient(_at(where, mapped_f), cotangents, *args)


def _inside(f, mapped, checked, args, cotangents):
    """The gradient, within the mapped function, of this device's part of the loss; under check_vma, of the loss."""

    def local(x, gamma, beta, where, cotangents):
        def loss(*a):
            out = f(*a, where)
            parts = jax.tree.map(lambda o, ct: jnp.where(ct == 0, 0, o * ct).sum(), out, cotangents)
            part = sum(jax.tree.leaves(parts))
            return lax.psum(part, AXIS) if checked else part, out

        grads, out = jax.grad(loss, (0, 1, 2), has_aux=True)(x, gamma, beta)
        return out, grads

    shared = SHARED if args[1].ndim == 1 else ()
    out, (dx, *grads) = mapped(local, shared)(*args, cotangents)
    if shared:
        grads = [g[0] if checked else g.sum(0) for g in grads]
    return out, (dx, *grads)


def _taken(gradient, mode, layers, relu, **options):
    def f(x, gamma, beta, where):
        return _layer(relu, layers)(x, gamma, beta, where=where, axis_name=AXIS, **options)

    return partial(gradient, f, partial(_mapped, mode), mode == "shard_map")


@pytest.mark.few(2, 3)
@pytest.mark.parametrize(
    ("relu", "masked", "shared"),
    [(False, False, SHARED), (False, True, ()), (True, True, SHARED)],
    ids=["all-shared", "masked-own", "relu-masked-shared"],
)
@pytest.mark.parametrize("gradient", [_outside, _inside], ids=["outside", "inside"])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_whole_batch(mode, gradient, relu, masked, shared):
    _equals_the_whole(_taken(gradient, mode, bnderiv, relu), relu, masked, shared)


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.parametrize("gradient", [_outside, _inside], ids=["outside", "inside"])
@pytest.mark.parametrize("mode", ["shard_map", pytest.param("shard_map-unchecked", marks=pytest.mark.slow)])
def test_both_modes_attachment(mode, gradient):
    _equals_the_whole(_taken(gradient, mode, bnderiv.forward_mode, True), True, True, ())


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_forward_mode(mode):
    (x, gamma, beta, where), _ = _problem(True, SHARED)
    x = jnp.where(jnp.isfinite(x), x, 0)
    tangents = random_like((x, gamma, beta), 1)
    mapped = _mapped(mode, partial(_with_where, bnderiv.forward_mode.batch_norm), SHARED)

    def push_forward(f):
        return fast_jit(lambda *a: jax.jvp(_at(where, f), a, tangents))(x, gamma, beta)

    (_, (dy, stats)), (_, (dy_, stats_)) = push_forward(mapped), push_forward(partial(_whole, False, ALL))
    near((dy, stats.mean, stats.var), (dy_, stats_.mean, stats_.var), 1e-9)


def _with_where(f, x, gamma, beta, where, axis_name: Any = AXIS):
    return f(x, gamma, beta, where=where, axis_name=axis_name)


GRID = {"a": 2, "b": 4}


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis_name", "groups"), [(("a", "b"), ALL), ("b", HALVES), (("a",), PAIRS)], ids=["both", "rows", "columns"]
)
@pytest.mark.parametrize(
    "mode", ["shard_map", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("shard_map-unchecked", "vmap"))]
)
def test_grid_of_devices(mode, axis_name, groups):
    f = partial(_with_where, bnderiv.batch_norm, axis_name=axis_name)

    def nested(f, shared):
        def call(*args):
            in_axes = tuple(None if i in shared else 0 for i in range(len(args)))
            grid = (
                a if i in shared else jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), a)
                for i, a in enumerate(args)
            )
            outs = jax.vmap(jax.vmap(f, in_axes, axis_name="b"), in_axes, axis_name="a")(*grid)
            return jax.tree.map(lambda out: out.reshape(DEVICES, *out.shape[2:]), outs)

        return call

    mapped = nested if mode == "vmap" else partial(_sharded, _mesh(**GRID), P(("a", "b")), mode == "shard_map")
    _equals_the_whole(partial(_outside, f, mapped, None), False, True, SHARED, groups)


def test_statistics_are_known_to_be_equal_on_all_devices():
    (x, gamma, beta, where), (dy, stats) = _problem(True, SHARED)
    f = jax.shard_map(
        partial(_with_where, bnderiv.batch_norm), mesh=_mesh(devices=DEVICES), in_specs=(P(AXIS), P(), P(), P(AXIS)),
        out_specs=(P(AXIS), P()), check_vma=True,
    )  # fmt: skip

    x, dy, where = (a.reshape(16, *a.shape[2:]) for a in (x, dy, where))
    cotangents = (dy, jax.tree.map(lambda a: a.sum(0), stats))
    (_, stats), (dx, *grads) = fast_jit(partial(_value_and_gradient, _at(where, f)))(cotangents, x, gamma, beta)
    (_, stats_), (dx_, *grads_) = _truth(False, True, SHARED)
    near(stats, jax.tree.map(lambda a: a[0], stats_), 1e-9)
    near((dx.reshape(dx_.shape), *grads), (dx_, *grads_), 1e-9)


def test_the_same_batch_on_every_device():
    """Not a batch that is spread: its copies count, each, and the statistics are its own."""
    (x, gamma, beta, _), (dy, _) = _problem(False, SHARED)
    x, dy = x[0], dy[0]
    f = jax.shard_map(
        lambda *a: bnderiv.batch_norm(*a, axis_name=AXIS), mesh=_mesh(devices=DEVICES), in_specs=P(), out_specs=P()
    )
    cotangents = (dy, random_like(BatchStats(gamma, gamma, gamma), 1))
    (y, stats), grads = fast_jit(partial(_value_and_gradient, f))(cotangents, x, gamma, beta)
    (y_, (mean, var, count)), grads_ = fast_jit(partial(_value_and_gradient, bnderiv.reference.batch_norm))(
        cotangents, x, gamma, beta
    )
    near((y, stats, grads), (y_, (mean, var, DEVICES * count), grads_), 1e-9)


@pytest.mark.parametrize(
    ("mode", "groups"),
    [
        ("pmap", ((4, 1, 2), (3, 7, 5, 6, 0))),
        pytest.param("pmap", HALVES, marks=pytest.mark.slow),
        pytest.param("shard_map-unchecked", PAIRS, marks=pytest.mark.slow),
    ],
    ids=["unequal-shuffled", "halves", "pairs"],
)
def test_groups(mode, groups):
    compute = _taken(_outside, mode, bnderiv, False, axis_index_groups=groups)
    _equals_the_whole(compute, False, True, SHARED, groups)


@pytest.mark.parametrize("mode", ["vmap", "shard_map"])
def test_groups_where_jax_does_not_take_them(mode):
    (x, gamma, beta, _), _ = _problem(False, SHARED)
    f = partial(bnderiv.batch_norm, axis_name=AXIS, axis_index_groups=HALVES)
    with pytest.raises(ValueError, match="axis_index_groups must be None"):
        jax.eval_shape(_mapped(mode, f, SHARED), x, gamma, beta)


@pytest.mark.parametrize("groups", [((0, 1, 2, 3), (4, 5, 6, 8)), ((0, 1), (2, 3)), ((0, 1, 2, 3), (3, 4, 5, 6, 7))])
def test_groups_that_do_not_share_out_the_devices(groups):
    (x, gamma, beta, _), _ = _problem(False, SHARED)
    f = partial(bnderiv.batch_norm, axis_name=AXIS, axis_index_groups=groups)
    with pytest.raises(ValueError, match="axis_index_groups"):
        _mapped("pmap", f, SHARED)(x, gamma, beta)


def test_groups_without_an_axis():
    (x, gamma, beta, _), _ = _problem(False, SHARED)
    with pytest.raises(ValueError, match="axis_index_groups must come with axis_name"):
        bnderiv.batch_norm(x, gamma, beta, axis_index_groups=HALVES)


def _gradients(f, x, dy):
    gamma, beta = (jnp.full(x.shape[-1], value, x.dtype) for value in (1.5, -0.5))
    out, pull_back = jax.vjp(f, x, gamma, beta)
    return out, pull_back((dy, jax.tree.map(jnp.zeros_like, out[1])))


@jax.jit  # optimized: a product and a sum that become one operation are a part of the question
def _synchronized(x, dy):
    return _gradients(_mapped("shard_map", partial(bnderiv.batch_norm, axis_name=AXIS), SHARED), x, dy)


@fast_jit
def _exact(x, dy):
    return _gradients(bnderiv.reference.batch_norm, x, dy)


def _float32(x, dy):
    """y, statistics and gradients in float32 over the devices, and in float64 at once."""
    x, dy = jnp.asarray(x, jnp.float32), jnp.asarray(dy, jnp.float32)
    (y, stats), grads = _synchronized(x, dy)
    return (y, jax.tree.map(lambda a: a[0], stats)), grads, _exact(x.astype(jnp.float64), dy.astype(jnp.float64))


RNG = np.random.default_rng(5)
IMAGES = RNG.standard_normal((DEVICES, 8, 7, 7, 2))
COTANGENT = RNG.standard_normal(IMAGES.shape)
EACH = np.arange(DEVICES)[:, None, None, None, None]


@pytest.mark.few(0)
@pytest.mark.as_users_compile
@pytest.mark.parametrize(
    ("x", "tolerance"),
    [
        (1e4 + IMAGES, 2e-7),
        (1e4 * EACH + IMAGES, 2e-7),
        (1e4 + 1e-3 * EACH + IMAGES, 2e-7),
        (1e20 * IMAGES, 1e-6),
        (10.0 ** (4 * EACH - 8) * IMAGES, 1e-6),
        (1e30 * (1 + EACH) + 1e28 * IMAGES, 1e-6),
    ],
    ids=["mean-1e4", "means-apart", "means-nearly-equal", "scale-1e20", "scales-apart", "scale-1e30"],
)
def test_accurate_in_float32(x, tolerance):
    (y, stats), (dx, *grads), ((y_, stats_), (dx_, *grads_)) = _float32(x, COTANGENT)

    def off(actual, expected):  # to its own norm, which for dx at 1e20 is 1e-20
        return np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)

    assert off(y, y_) <= tolerance
    assert off(dx, dx_) <= tolerance
    # The rest are sums of numbers much larger than themselves.
    assert off(stats.mean, stats_.mean) <= 1e-6
    assert max(map(off, grads, grads_)) <= 1e-6
    var_ = np.asarray(stats_.var)
    np.testing.assert_allclose(stats.var, np.where(var_ < np.finfo(np.float32).max, var_, np.inf), 1e-6)


@pytest.mark.slow
@pytest.mark.as_users_compile
@pytest.mark.parametrize("value", [0.0, 1234.567, -1e30, 1e-30])
def test_constant_data(value):
    (y, stats), (dx, dgamma, _), _ = _float32(np.full(IMAGES.shape, value), COTANGENT)
    np.testing.assert_array_equal(y, np.full(y.shape, -0.5, np.float32))
    np.testing.assert_array_equal(stats.mean, np.full(2, value, np.float32))
    np.testing.assert_array_equal(stats.var, np.zeros(2))
    np.testing.assert_array_equal(dgamma, np.zeros(2))
    near(dx, 1.5 / np.sqrt(1e-5) * (COTANGENT - COTANGENT.mean((0, 1, 2, 3))), 1e-6)


def test_a_mean_far_above_the_deviation():
    """What a float32 cannot hold of a device's mean is not lost: m_i is added where (K_i − K) is small."""
    x = 1e4 + 0.1 * random_like(jnp.zeros((DEVICES, 4, 8), jnp.float32), 2)
    layer = _mapped("vmap", partial(bnderiv.batch_norm, gamma=jnp.ones(8), beta=jnp.zeros(8), axis_name=AXIS))
    y, _ = fast_jit(layer)(x)
    exact = np.asarray(x, np.float64)
    near(y, (exact - exact.mean((0, 1))) / np.sqrt(exact.var((0, 1)) + 1e-5), 3e-7)


def test_equal_means_and_deviations_far_apart():
    """The unit of all follows the largest deviation, also where no mean is far from the others."""
    x = np.ones((DEVICES, 4, 2)) * np.array([1, -1, 1, -1])[:, None]
    x[0] *= 1e30
    x = jnp.asarray(x, jnp.float32)
    dy = random_like(x, 3)

    def layer(x, dy):
        y, pull_back = jax.vjp(lambda x: bnderiv.batch_norm(x, jnp.ones(2), jnp.zeros(2), axis_name=AXIS)[0], x)
        return y, *pull_back(dy)

    y, dx = fast_jit(_mapped("vmap", layer))(x, dy)
    wide, delta = (np.asarray(a, np.float64) for a in (x, dy))
    r = (wide**2).mean((0, 1)) ** -0.5
    x_hat = wide * r
    near(y, x_hat, 1e-6)
    near(dx * 1e30, 1e30 * r * (delta - delta.mean((0, 1)) - x_hat * (delta * x_hat).mean((0, 1))), 1e-6)


def test_constant_data_and_a_large_epsilon():
    """The unit is no finer than √ε: ε s² would overflow, and dx be 0."""
    x = jnp.full((DEVICES, 4, 2), 7, jnp.float32)
    dy = random_like(x, 6)

    def layer(x, dy):
        ones = jnp.ones(2)
        y, pull_back = jax.vjp(lambda x: bnderiv.batch_norm(x, ones, ones, eps=1e10, axis_name=AXIS)[0], x)
        return y, *pull_back(dy)

    y, dx = fast_jit(_mapped("vmap", layer))(x, dy)
    np.testing.assert_array_equal(y, np.ones(x.shape))
    delta = np.asarray(dy, np.float64)
    near(dx, 1e-5 * (delta - delta.mean((0, 1))), 1e-6)


@pytest.mark.parametrize(("dtype", "eps"), [("float64", 1e-5), ("float32", 1e-40)])
def test_a_channel_that_no_device_counts(dtype, eps):
    """Its mean and variance are 0, its unit is that of √ε, and the others are not touched."""
    x = np.random.default_rng(4).standard_normal((DEVICES, 5, 2)).astype(dtype)
    where = np.broadcast_to([True, False], x.shape)

    def layer(x, where):
        return bnderiv.batch_norm(x, jnp.ones(2), jnp.zeros(2), where=where, eps=eps, axis_name=AXIS)

    y, stats = fast_jit(_mapped("vmap", layer))(jnp.asarray(x), jnp.asarray(where))
    tolerance = 4 * float(jnp.finfo(dtype).eps)
    for found, expected in (
        (stats.count, [5 * DEVICES, 0]),
        (stats.mean, [x[..., 0].mean(dtype=np.float64), 0]),
        (stats.var, [x[..., 0].var(dtype=np.float64), 0]),
    ):
        np.testing.assert_allclose(found, np.broadcast_to(expected, (DEVICES, 2)), 4 * tolerance)
    near(y[..., 1], x[..., 1].astype(np.float64) / np.sqrt(eps), tolerance)


@pytest.mark.parametrize(
    ("dtype", "value", "eps"), [("float32", 1e30, 1e-40), ("float32", -3e38, 1e-12), ("float64", 1e300, 1e-30)]
)
def test_a_constant_beside_devices_that_count_nothing(dtype, value, eps):
    """The constant to the bit, whatever the weights: their sum is rounded, and so is the first average of K_i."""
    rng = np.random.default_rng(7)
    x = jnp.full((DEVICES, 6, 40), value, dtype)
    where = rng.random(x.shape) < 0.6
    where[::3] = False
    where[1, 0] = True  # so that each channel has elements
    x, dy = jnp.where(where, x, jnp.nan), jnp.where(where, random_like(x, 6), 0)

    def layer(x, where, dy):
        ones = jnp.ones(40, dtype)
        f = partial(bnderiv.batch_norm, gamma=ones, beta=ones, where=where, eps=eps, axis_name=AXIS)
        y, pull_back, stats = jax.vjp(f, x, has_aux=True)
        return y, *pull_back(dy), stats

    y, dx, stats = fast_jit(_mapped("vmap", layer))(x, jnp.asarray(where), dy)
    np.testing.assert_array_equal(np.asarray(y)[where], 1)
    np.testing.assert_array_equal(stats.mean, np.full(stats.mean.shape, value, dtype))
    np.testing.assert_array_equal(stats.var, 0)
    delta = np.asarray(dy, np.float64)
    centered = np.where(where, delta - delta.sum((0, 1)) / where.sum((0, 1)), 0)
    near(np.asarray(dx, np.float64) * np.sqrt(eps), centered, 1e-6)


@pytest.mark.parametrize("eps", [1e-5, 1e-40])
@pytest.mark.parametrize("low", [-1e38, -3e38], ids=["near", "farther-than-the-largest-number"])
def test_a_constant_of_its_own_on_each_device(low, eps):
    """K_i − K may overflow, and one device's unit may be all but invisible in the common one."""
    constants = np.array([3e38, 3e38, 3e38, low, 2e38, 3e38, 1e37, 0])
    x = jnp.asarray(np.broadcast_to(constants[:, None, None], (DEVICES, 3, 2)), jnp.float32)
    layer = _mapped("vmap", partial(bnderiv.batch_norm, gamma=jnp.ones(2), beta=jnp.zeros(2), eps=eps, axis_name=AXIS))
    y, stats = fast_jit(layer)(x)
    exact = np.asarray(x, np.float64)
    near(y, (exact - exact.mean((0, 1))) / exact.std((0, 1)), 1e-6)
    np.testing.assert_allclose(stats.mean, np.broadcast_to(exact.mean((0, 1)), (DEVICES, 2)), 1e-6)


def test_large_cotangents():
    """The common unit is that of deviations: Σ δ u is in range if Σ δ x̂ is."""
    x, dy = (scale * random_like(jnp.zeros((DEVICES, 4, 2), jnp.float32), i) for i, scale in enumerate((1e10, 1e29)))

    def layer(x, dy):
        ones = jnp.ones(2, jnp.float32)
        return jax.vjp(lambda x: bnderiv.batch_norm(x, ones, ones, axis_name=AXIS)[0], x)[1](dy)[0]

    dx = fast_jit(_mapped("vmap", layer))(x, dy)
    wide, delta = (np.asarray(a, np.float64) for a in (x, dy))
    r = wide.std((0, 1)) ** -1
    x_hat = (wide - wide.mean((0, 1))) * r
    near(dx, r * (delta - delta.mean((0, 1)) - x_hat * (delta * x_hat).mean((0, 1))), 1e-6)


@pytest.mark.parametrize(
    "differentiated",
    [
        lambda gradient, x, t: jax.vjp(gradient, x)[1](t)[0],
        pytest.param(lambda gradient, x, t: jax.jvp(gradient, (x,), (t,))[1], marks=pytest.mark.slow),
    ],
    ids=["reverse", "forward"],
)
def test_second_derivatives(differentiated):
    """Of a loss on y and on the statistics, also where a channel is constant: its σ² has a second derivative there."""
    (x, gamma, beta, _), (dy, _) = _problem(False, SHARED)
    x = x.at[..., 0].set(7.0)
    on_mean, on_var = np.random.default_rng(8).standard_normal((2, CHANNELS))

    def loss(layer):
        def f(x):
            y, (mean, var, _) = layer(x)
            return (jnp.sin(y) * dy).sum() + (on_mean * mean**2 + on_var * var).sum()

        return f

    def synchronized(x):
        y, stats = _mapped("vmap", lambda x: bnderiv.batch_norm(x, gamma, beta, axis_name=AXIS))(x)
        return y, jax.tree.map(lambda a: a[0], stats)

    def whole(x):
        return bnderiv.reference.batch_norm(x, gamma, beta)

    t = random_like(x, 9)
    found, expected = (fast_jit(partial(differentiated, jax.grad(loss(f))))(x, t) for f in (synchronized, whole))
    for channel in range(CHANNELS):
        near(found[..., channel], expected[..., channel], 1e-9)


def test_merging_constants_computes_no_nan_on_the_way():
    """As `jax_debug_nans` finds it, operation by operation. In forward mode the derivative of √v at 0 would be one."""
    n, one, mean, var = jnp.full((2, 1, 1), 3.0), jnp.ones((2, 1, 1)), jnp.zeros((2, 1, 1)), jnp.zeros((2, 1, 1))

    def merged(mean, var):
        moments = Moments(Unit(one[0], 7 * one[0]), mean, var)
        return merge(n[0], moments, AXIS, None)[1].var

    with jax.debug_nans(True), jax.disable_jit():
        _, d_var = jax.jvp(jax.vmap(merged, axis_name=AXIS), (mean, var), (one, n))
    np.testing.assert_array_equal(d_var, n)


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_channel(value):
    x = IMAGES.copy()
    x[3, 0, 0, 0, 0] = value
    (y, stats), (dx, *_), ((y_, _), (dx_, *_)) = _float32(x, COTANGENT)
    assert np.isnan(stats.mean[0]) | np.isinf(stats.mean[0])
    assert np.isnan(y[..., 0]).all()
    near((y[..., 1], dx[..., 1]), (y_[..., 1], dx_[..., 1]), 1e-6)


def _compiled(f, cotangents, args, where):
    """`f(*args, where)`, and that with its gradient, as programs (optimized: messages that can be merged are)."""

    def both(cotangents, args, where):
        return _value_and_gradient(_at(where, f), cotangents, *args)

    return (
        jax.jit(lambda args, where: f(*args, where)).lower(args, where).compile(),
        jax.jit(both).lower(cotangents, args, where).compile(),
    )


@pytest.mark.slow
@pytest.mark.as_users_compile
@pytest.mark.parametrize(
    ("mode", "masked", "layers"),
    [
        ("shard_map", False, bnderiv),
        pytest.param("shard_map-unchecked", True, bnderiv, marks=pytest.mark.slow),
        ("shard_map", True, bnderiv.forward_mode),
    ],
    ids=["all", "masked-unchecked", "masked-forward_mode"],
)
def test_one_message_forward_and_one_backward(mode, masked, layers):
    (*args, where), cotangents = _problem(masked, SHARED)
    mapped = _mapped(mode, partial(_with_where, layers.batch_norm), SHARED)
    forward, both = _compiled(mapped, cotangents, args, where)
    assert collectives(forward) == {"all-reduce": 1}
    assert collectives(both) == {"all-reduce": 2}


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.as_users_compile
@pytest.mark.parametrize(
    ("relu", "shape", "masked", "axes"),
    [
        (False, (32, 3), False, AxisType.Auto),
        pytest.param(False, (32, 3), True, AxisType.Explicit, marks=pytest.mark.slow),
        pytest.param(False, (16, 2, 3, 3), False, AxisType.Explicit, marks=pytest.mark.slow),
        pytest.param(False, (16, 2, 3, 3), True, AxisType.Auto, marks=pytest.mark.slow),
        pytest.param(True, (16, 2, 3, 3), True, AxisType.Auto, marks=pytest.mark.slow),
        (True, (16, 2, 3, 3), True, AxisType.Explicit),
    ],
    ids=["rows", "rows-masked-explicit", "images-explicit", "images-masked", "relu-masked", "relu-masked-explicit"],
)
def test_a_sharded_batch_is_never_gathered(relu, shape, masked, axes):
    rng = np.random.default_rng(1)
    whole = jax.tree.map(
        jnp.asarray,
        (
            (rng.standard_normal(shape), BatchStats(*jnp.asarray(rng.standard_normal((3, 3))))),
            (rng.standard_normal(shape), *rng.standard_normal((2, 3))),
            rng.random(shape) < 0.6 if masked else None,
        ),
    )
    mesh = jax.make_mesh((DEVICES,), (AXIS,), (axes,))
    by_batch, everywhere = (NamedSharding(mesh, spec) for spec in (P(AXIS), P()))
    placed = jax.tree.map(lambda a: jax.device_put(a, by_batch if a.shape == shape else everywhere), whole)
    forward, both = _compiled(partial(_with_where, _layer(relu), axis_name=None), *placed)
    for program, messages in ((forward, 2), (both, 3)):
        assert set(collectives(program)) == {"all-reduce"}
        assert collectives(program)["all-reduce"] <= messages

    (y, stats), (dx, *grads) = both(*placed)
    cotangents, args, where = whole
    reference = partial(_with_where, _layer(relu, bnderiv.reference), axis_name=None)
    expected = fast_jit(partial(_value_and_gradient, _at(where, reference)))(cotangents, *args)
    near(((y, stats), (dx, *grads)), expected, 1e-9)
    assert y.sharding.is_equivalent_to(by_batch, y.ndim)
    assert dx.sharding.is_equivalent_to(by_batch, y.ndim)
