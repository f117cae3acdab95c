"""Running statistics: the two conventions, channels that count nothing, errors."""

from fractions import Fraction
from functools import partial
from typing import Any

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bnderiv
from bnderiv import BatchStats, RunningStats
from tests.case import random_like
from tests.contract import near

BATCH = BatchStats(mean=jnp.array([2.0, 4.0]), var=jnp.array([3.0, 8.0]), count=jnp.array([4.0, 5.0]))


def test_before_the_first_batch():
    stats = bnderiv.init_running_stats(3)
    np.testing.assert_array_equal(stats.mean, [0, 0, 0])
    np.testing.assert_array_equal(stats.var, [1, 1, 1])
    assert (stats.mean.dtype, stats.var.dtype) == (jnp.float32, jnp.float32)
    assert (stats.count.shape, stats.count.dtype, int(stats.count)) == ((), jnp.int32, 0)
    assert bnderiv.init_running_stats(3, jnp.float64).var.dtype == jnp.float64


def test_momentum_weighs_the_old_value_and_the_variance_is_unbiased():
    running = RunningStats(jnp.array([10.0, 10.0]), jnp.array([10.0, 10.0]), jnp.int32(7))
    new = bnderiv.update_running_stats(running, BATCH, momentum=0.75)
    np.testing.assert_allclose(new.mean, [8, 8.5], rtol=1e-15)
    np.testing.assert_allclose(new.var, [0.75 * 10 + 0.25 * 3 * 4 / 3, 0.75 * 10 + 0.25 * 8 * 5 / 4], rtol=1e-15)
    assert new.count == 8
    replaced = bnderiv.update_running_stats(running, BATCH, momentum=jnp.uint8(0))
    np.testing.assert_array_equal(replaced.mean, BATCH.mean)
    biased = bnderiv.update_running_stats(running, BATCH, momentum=0.75, unbiased=False)
    np.testing.assert_allclose(biased.var, [0.75 * 10 + 0.25 * 3, 0.75 * 10 + 0.25 * 8], rtol=1e-15)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_has_no_weight_counts_nothing(compiled):
    """A variance may overflow: an average that is frozen, or replaced, does not hear of it."""
    update = jax.jit(bnderiv.update_running_stats) if compiled else bnderiv.update_running_stats
    old = RunningStats(mean=jnp.array([1.0, 2.0]), var=jnp.array([3.0, 4.0]), count=jnp.int32(0))
    infinite = BATCH._replace(var=jnp.array([np.inf, 8.0]))
    np.testing.assert_array_equal(update(old, infinite, momentum=1.0).var, old.var)
    np.testing.assert_array_equal(update(old._replace(var=infinite.var), BATCH, momentum=0.0).var, [4, 10])
    assert np.isinf(update(old, infinite, momentum=0.5).var[0])


def test_the_defaults_are_momentum_090_and_unbiased():
    running = bnderiv.init_running_stats(2, jnp.float64)
    chex.assert_trees_all_equal(
        bnderiv.update_running_stats(running, BATCH),
        bnderiv.update_running_stats(running, BATCH, momentum=0.9, unbiased=True),
    )


def test_channels_that_counted_nothing_keep_theirs():
    running = RunningStats(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), jnp.int32(5))
    half = BATCH._replace(mean=jnp.array([0.0, 4.0]), var=jnp.array([0.0, 8.0]), count=jnp.array([0.0, 5.0]))
    new = bnderiv.update_running_stats(running, half)
    assert (new.mean[0], new.var[0], new.count) == (1, 3, 6)
    assert new.mean[1] != 2
    chex.assert_trees_all_equal(
        bnderiv.update_running_stats(running, BatchStats(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))),
        running,
    )


def test_numpy_arrays_and_python_counts():
    values: list[Any] = [np.zeros(2), np.ones(2), 0]
    batch: list[Any] = [np.asarray(a) for a in BATCH]
    new = bnderiv.update_running_stats(RunningStats(*values), BatchStats(*batch))
    expected = bnderiv.update_running_stats(bnderiv.init_running_stats(2, jnp.float64), BATCH)
    chex.assert_trees_all_equal(new, expected)
    chex.assert_trees_all_equal_dtypes(new, expected)


def test_a_batch_of_one_has_variance_zero_not_nan():
    x = jnp.array([[3.0, 4.0]])
    _, stats = bnderiv.batch_norm(x, jnp.ones(2), jnp.zeros(2))
    new = bnderiv.update_running_stats(bnderiv.init_running_stats(2, jnp.float64), stats, momentum=0.5)
    np.testing.assert_array_equal(new.var, [0.5, 0.5])


@pytest.mark.parametrize("unbiased", [True, False])
def test_value_and_gradient_equal_the_reference(unbiased):
    mean, var = random_like((jnp.zeros(2), jnp.zeros(2)), 0)
    running = RunningStats(mean, var, jnp.int32(3))

    def parts(layers):
        def update(mean, var, batch_mean, batch_var):
            batch = BATCH._replace(mean=batch_mean, var=batch_var)
            old = running._replace(mean=mean, var=var)
            return layers.update_running_stats(old, batch, momentum=0.8, unbiased=unbiased)[:2]

        out, pull_back = jax.vjp(update, running.mean, running.var, BATCH.mean, BATCH.var)
        return out, pull_back(random_like(out, 1))

    near(parts(bnderiv), parts(bnderiv.reference), 1e-14)


# --- Weights near 1 ---

DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_the_derivative_by_the_momentum(momentum):
    """It is old − new also at the ends, where a value with weight 0 is left out."""
    old, new, rate = jnp.array([1.0, 2.0]), jnp.array([4.0, -3.0]), jnp.array([5.0, 7.0])
    running, batch = RunningStats(old, old, jnp.int32(0)), BatchStats(new, new, jnp.ones(2))

    def moved(layers, momentum):
        return layers.update_running_stats(running, batch, momentum=momentum).mean

    reverse = jax.grad(lambda momentum: jnp.sum(rate * moved(bnderiv, momentum)))
    assert reverse(momentum) == jnp.sum(rate * (old - new))
    forward = jax.jacfwd(lambda momentum: moved(bnderiv.forward_mode, momentum))
    np.testing.assert_array_equal(forward(momentum), old - new)


def test_an_infinite_value_that_weighs_nothing_has_no_derivative():
    ones = jnp.ones(2)
    running, batch = RunningStats(ones, ones, jnp.int32(0)), BatchStats(ones, ones, ones)

    def kept(new):
        moved = bnderiv.update_running_stats(running, batch._replace(mean=new), momentum=1.0)
        return jnp.sum(moved.mean * jnp.array([3.0, 5.0]))

    np.testing.assert_array_equal(jax.grad(kept)(jnp.array([jnp.inf, 1.0])), [0, 0])


def updated(old, new, momentum, dtype, batch_dtype=None):
    """The mean and the (biased) variance after one update from `old` by `new`, one channel."""
    running = RunningStats(jnp.full(1, old, dtype), jnp.full(1, old, dtype), jnp.int32(0))
    new = jnp.full(1, new, batch_dtype or (jnp.float64 if dtype == jnp.float64 else jnp.float32))
    out = bnderiv.update_running_stats(
        running, BatchStats(new, new, jnp.full(1, 4, new.dtype)), momentum=momentum, unbiased=False
    )
    assert (out.mean.dtype, out.var.dtype) == (dtype, dtype)
    np.testing.assert_array_equal(np.asarray(out.mean, np.float64), np.asarray(out.var, np.float64))
    return float(out.mean[0])


def exact(old, new, momentum):
    momentum = Fraction(momentum)
    return momentum * Fraction(old) + (1 - momentum) * Fraction(new)


@pytest.mark.few(3)
@pytest.mark.as_users_compile
@pytest.mark.parametrize(
    ("dtype", "momentum"),
    [
        (jnp.bfloat16, 0.999),
        (jnp.bfloat16, 1 - 1e-8),
        (jnp.float16, 0.9998),
        (jnp.float32, 0.99999),
        (jnp.float32, 1 - 1e-12),
        (jnp.float64, 0.99999),
        (jnp.float64, 1 - 1e-12),
    ],
)
def test_a_momentum_near_1_leaves_the_new_value_its_weight(dtype, momentum):
    np.testing.assert_allclose(updated(0, 1, momentum, dtype), 1 - momentum, rtol=float(jnp.finfo(dtype).eps))
    # Also where the old value is not 0: a step of 2 from 8, where bfloat16 has a spacing of 1/16.
    new = 8 + 2 / (1 - momentum)
    if new < 1e9 and dtype != jnp.float16:
        np.testing.assert_allclose(updated(8, new, momentum, dtype), 10, rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.few(2)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    momentum=st.one_of(st.floats(0, 1), st.sampled_from([1e-8, 0.5, 0.9, 0.99, 0.999, 0.99999, 1 - 1e-8])),
    old=st.floats(-1, 1),
    new=st.floats(-1, 1),
    exponent=st.integers(-3, 3),
)
def test_every_momentum_is_exact_to_rounding(dtype, momentum, old, new, exponent):
    old, new = (float(jnp.asarray(a, dtype)) for a in (old, new * 10.0**exponent))
    wide = jnp.finfo(jnp.float64 if dtype == jnp.float64 else jnp.float32)
    truth = exact(old, new, momentum)
    computed = 2 * float(wide.eps) * float(exact(abs(old), abs(new), momentum))
    info = jnp.finfo(dtype)
    rounded = 0 if info.bits >= 32 else max(float(info.eps) / 2 * abs(float(truth)), float(info.smallest_subnormal) / 2)
    error = abs(Fraction(updated(old, new, momentum, dtype)) - truth)
    assert error <= computed + rounded * (1 + 1e-6) + 2 * float(wide.tiny)


@pytest.mark.few(2)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("dtype", DTYPES)
@given(momentum=st.floats(0, 1), value=st.floats(-6e4, 6e4))
def test_an_average_of_equal_values_is_that_value(dtype, momentum, value):
    """So a constant is what the average of a constant settles at: rounded weights that do not sum to 1 move it."""
    value = float(jnp.asarray(value, dtype)) + 0.0
    if value == 0 or abs(value) > 4 * float(jnp.finfo(jnp.float32).tiny):
        assert updated(value, value, momentum, dtype, dtype) == value


@pytest.mark.few(3)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("momentum", [0.999, np.float64(0.999), np.array(0.999), Fraction(999, 1000)])
def test_a_momentum_that_is_known_is_exact(momentum, compiled):
    """Where it is an array it has been rounded, but 1 − momentum is exact."""

    def update(running, batch):
        return bnderiv.update_running_stats(running, batch, momentum=momentum)

    running = RunningStats(jnp.zeros(2, jnp.bfloat16), jnp.zeros(2, jnp.bfloat16), jnp.int32(0))
    new = (jax.jit(update) if compiled else update)(running, BATCH)
    np.testing.assert_array_equal(new.mean, (jnp.array([2.0, 4.0]) * 1e-3).astype(jnp.bfloat16))


@pytest.mark.few(3)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("momentum_dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_momentum_in_an_array_is_as_precise_as_its_dtype(momentum_dtype, dtype, compiled):
    update = jax.jit(bnderiv.update_running_stats) if compiled else bnderiv.update_running_stats
    momentum = jnp.asarray(0.99999, momentum_dtype)
    running = RunningStats(jnp.zeros(2, dtype), jnp.zeros(2, dtype), jnp.int32(0))
    batch = jax.tree.map(lambda a: a.astype(jnp.float32), BATCH)
    new = update(running, batch, momentum=momentum)
    np.testing.assert_allclose(
        np.asarray(new.mean, np.float64), np.array([2.0, 4.0]) * (1 - float(momentum)), rtol=float(jnp.finfo(dtype).eps)
    )


def test_a_traced_momentum_under_an_explicit_mesh():
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        running, batch = jax.device_put(
            (bnderiv.init_running_stats(2, jnp.float64)._replace(count=jnp.int32(0)), BATCH), NamedSharding(mesh, P())
        )
        new = jax.jit(bnderiv.update_running_stats)(running, batch, momentum=jnp.float32(0.75))
    np.testing.assert_array_equal(new.mean, [0.5, 1])


@pytest.mark.as_users_compile
def test_values_near_the_limits_of_the_dtype():
    big = float(jnp.finfo(jnp.float32).max)
    for momentum in (0.25, 0.75):
        for old, new in ((big, -big), (-big, big), (big, big)):
            truth = float(exact(old, new, momentum))
            np.testing.assert_allclose(updated(old, new, momentum, jnp.float32), truth, rtol=1e-6)
    assert updated(6e4, -6e4, 0.75, jnp.float16) == 3e4
    large = jnp.full(1, 1e38, jnp.float32)  # times its count it is no float32
    unbiased = bnderiv.update_running_stats(
        RunningStats(large, large, jnp.int32(0)), BatchStats(large, large, jnp.full(1, 5, jnp.float32)), momentum=0.0
    )
    np.testing.assert_allclose(unbiased.var, 1.25e38, rtol=1e-6)
    for momentum in (0.25, 0.75):
        assert updated(np.inf, 1, momentum, jnp.float32) == np.inf
        assert updated(1, -np.inf, momentum, jnp.float32) == -np.inf
        assert np.isnan(updated(np.inf, -np.inf, momentum, jnp.float32))
        assert np.isnan(updated(np.nan, 1, momentum, jnp.float32))


ODD = [1.0, -0.0, 1e-40, 6e4, np.inf, -np.inf, np.nan]


@pytest.mark.few(1, 5)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("how", ["eager", "compiled", "momentum traced"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_kept_values_are_kept_bit_for_bit(dtype, how):
    static = ("unbiased", "momentum") if how == "compiled" else ("unbiased",)
    update = jax.jit(bnderiv.update_running_stats, static_argnames=static)
    update = bnderiv.update_running_stats if how == "eager" else update
    old = RunningStats(jnp.array(ODD, dtype), jnp.array(ODD, dtype), jnp.int32(0))
    for other in (2.0, np.inf, np.nan):
        vector = jnp.full(len(ODD), other, jnp.float32)
        for momentum, count in ((1.0, 4), (1, 4), (0.9, 0), (0.0, 0)):
            new = update(old, BatchStats(vector, vector, jnp.full(len(ODD), count, jnp.float32)), momentum=momentum)
            chex.assert_trees_all_equal(bits(new[:2]), bits(old[:2]))
        replaced = update(
            RunningStats(vector, vector, jnp.int32(0)),
            BatchStats(*old[:2], jnp.full(len(ODD), 4, jnp.float32)),
            momentum=0.0,
            unbiased=False,
        )
        chex.assert_trees_all_equal(replaced.mean, old.mean.astype(jnp.float32))


def bits(tree):
    return jax.tree.map(lambda a: np.asarray(a).view(f"uint{8 * a.dtype.itemsize}"), tree)


def test_a_nan_that_does_not_count_reaches_no_gradient():
    running = RunningStats(jnp.ones(2), jnp.ones(2), jnp.int32(0))

    def loss(old, new, momentum):
        batch = BatchStats(new, new, jnp.array([0.0, 4.0]))
        out = bnderiv.update_running_stats(running._replace(mean=old, var=old), batch, momentum=momentum)
        return out.mean.sum() + out.var.sum()

    gradients = jax.grad(loss, (0, 1, 2))(running.mean, jnp.array([np.nan, 2.0]), jnp.float64(0.75))
    for gradient, expected in zip(gradients, ([2, 1.5], [0, 0.25 + 0.25 * 4 / 3], -1 - 5 / 3), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-14)


def test_half_precision_counts_are_exact_enough():
    """In bfloat16 300 − 1 is 300: Bessel's correction is taken in float32."""
    batch = BatchStats(*(jnp.full(1, a, jnp.bfloat16) for a in (0, 1, 3)))
    running = bnderiv.init_running_stats(1, jnp.float32)
    assert bnderiv.update_running_stats(running, batch, momentum=0.0).var[0] == np.float32(1.5)
    integers = batch._replace(count=jnp.array([3]))
    assert bnderiv.update_running_stats(running, integers, momentum=0.0).var[0] == np.float32(1.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("momentum", [0.999, 0.99999])
def test_the_reference_has_the_same_weights(dtype, momentum):
    running = RunningStats(jnp.zeros(2, dtype), jnp.zeros(2, dtype), jnp.int32(0))
    ours, reference = (
        layers.update_running_stats(running, BATCH, momentum=momentum) for layers in (bnderiv, bnderiv.reference)
    )
    chex.assert_trees_all_equal(ours, reference)


def test_the_number_of_batches_is_the_same_on_every_device():
    """It may leave a `shard_map` as one number, though each device has its own mean and variance."""
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P("i"), out_specs=((P("i"), P("i")), P()))
    def update(x):
        _, batch = bnderiv.batch_norm(x, jnp.ones(2), jnp.zeros(2))
        running = bnderiv.update_running_stats(bnderiv.init_running_stats(2), batch)
        return (running.mean, running.var), running.count

    assert update(jnp.ones((4, 2), jnp.float32))[1] == 1


def test_counts_on_an_explicit_mesh():
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    batch = jax.device_put(BATCH, NamedSharding(mesh, P("i")))
    mean, var = jax.device_put((jnp.zeros(2), jnp.ones(2)), NamedSharding(mesh, P("i")))
    running = RunningStats(mean, var, jnp.int32(0))
    for update in (bnderiv.update_running_stats, jax.jit(bnderiv.update_running_stats)):
        assert update(running, batch).count == 1


def test_an_update_is_serialized():
    running = bnderiv.init_running_stats(2, jnp.float64)
    program = jax.export.export(jax.jit(bnderiv.update_running_stats))(running, BATCH)
    found = jax.export.deserialize(program.serialize()).call(running, BATCH)
    chex.assert_trees_all_equal(found, bnderiv.update_running_stats(running, BATCH))


def test_it_does_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(running, batch):
        return bnderiv.update_running_stats(running, batch)

    running = bnderiv.init_running_stats(2, jnp.float64)
    for _ in range(3):
        running = step(running, BATCH)
    assert running.count == 3


def test_errors():
    running = bnderiv.init_running_stats(2)
    with pytest.raises(ValueError, match=r"running.var must have shape \(2,\)"):
        bnderiv.update_running_stats(running._replace(var=jnp.ones(1)), BATCH)
    nonsense: list[Any] = [None, "0.9"]
    for momentum in nonsense:
        with pytest.raises(TypeError, match=r"momentum must be a number in \[0, 1\], got "):
            bnderiv.update_running_stats(running, BATCH, momentum=momentum)
    for update in (bnderiv.update_running_stats, jax.jit(bnderiv.update_running_stats)):
        with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\]"):
            update(running, BATCH, momentum=jnp.full(2, 0.5))
    with pytest.raises(ValueError, match=r"momentum.*old.*1.5"):
        bnderiv.update_running_stats(running, BATCH, momentum=1.5)
    with pytest.raises(ValueError, match=r"batch.mean.*\(3,\)"):
        bnderiv.update_running_stats(bnderiv.init_running_stats(3), BATCH)
    update: Any = bnderiv.update_running_stats
    with pytest.raises(TypeError, match=r"running.*RunningStats.*tuple"):
        update(tuple(running), BATCH)
    with pytest.raises(TypeError, match=r"batch.*BatchStats.*RunningStats"):
        update(running, running)
    for name in ("mean", "var"):
        for value in ([0.0, 0.0], None, "0", jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.complex64)):
            with pytest.raises(TypeError, match=rf"running\.{name} must"):
                update(running._replace(**{name: value}), BATCH)
            with pytest.raises(TypeError, match=rf"batch\.{name} must"):
                update(running, BATCH._replace(**{name: value}))
    for value in ([0], None, "0", True, 0.0, jnp.zeros((), jnp.complex64), np.zeros((), object), np.bool_(0)):
        with pytest.raises(TypeError, match=r"running\.count must be an array of integer dtype, got "):
            update(running._replace(count=value), BATCH)
    for value in ([4.0, 5.0], None, "4", True, jnp.ones(2, bool), jnp.ones(2, jnp.complex64)):
        with pytest.raises(TypeError, match=r"batch\.count must be an array of integer or floating dtype, got "):
            update(running, BATCH._replace(count=value))
    with pytest.raises(ValueError, match=r"running\.count must have shape \(\)"):
        update(running._replace(count=jnp.zeros(2, jnp.int32)), BATCH)
    scalars: list[Any] = [0.0, 1.0, 0]
    with pytest.raises(ValueError, match=r"running\.mean must have rank 1"):
        update(RunningStats(*scalars), BatchStats(*scalars))
    with pytest.raises(ValueError, match=r"channels.*0"):
        bnderiv.init_running_stats(0)
    with pytest.raises(TypeError, match=r"dtype.*int32"):
        bnderiv.init_running_stats(2, jnp.int32)
