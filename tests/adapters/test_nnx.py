"""`bnderiv.nnx.BatchNorm` against `flax.nnx.BatchNorm`, module against module."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

nnx = pytest.importorskip("flax.nnx", reason="needs the extra flax")

from flax import serialization

import bnderiv.nnx
from tests.adapters.alike import NEAR_1, alike, averages, nearest, normal, sgd
from tests.compiling import fast_jit

OURS: Any = bnderiv.nnx.BatchNorm
THEIRS: Any = nnx.BatchNorm
RANDOM = {"scale_init": nnx.initializers.normal(1.0), "bias_init": nnx.initializers.normal(1.0)}
FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def wide(layer):
    """The layer with float64 statistics: Flax leaves them float32, rounding whatever enters."""
    features = layer.mean[...].shape
    layer.mean = nnx.BatchStat(jnp.zeros(features, jnp.float64))
    layer.var = nnx.BatchStat(jnp.ones(features, jnp.float64))
    return layer


class Network(nnx.Module):
    """Two dense layers with batch norm and ReLU between them."""

    def __init__(self, batch_norm, seed=0, **options):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(6, 8, use_bias=False, rngs=rngs, **FLOAT64)
        self.norm = wide(batch_norm(8, momentum=0.9, rngs=rngs, **RANDOM, **FLOAT64, **options))
        self.second = nnx.Linear(8, 5, rngs=rngs, **FLOAT64)

    def __call__(self, x):
        return self.second(nnx.relu(self.norm(self.first(x))))


def state(model):
    """Names and arrays of all variables."""
    return nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def loss(model, x, target):
    return jnp.square(model(x) - target).mean()


@nnx.jit
def step(model, x, target):
    gradient = nnx.grad(loss)(model, x, target)
    nnx.update(model, sgd(nnx.state(model, nnx.Param), gradient))


def data():
    return normal(0, (16, 6), jnp.float64), normal(1, (16, 5), jnp.float64)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Flax's statistics are float32 at first, whatever enters them."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
def test_ten_steps_of_training_then_inference():
    x, target = data()
    ours, theirs = Network(OURS), Network(THEIRS)
    alike(state(ours), state(theirs), 0)
    start = np.asarray(theirs.norm.scale[...])
    for model in (ours, theirs):
        for _ in range(10):
            step(model, x, target)
    assert not np.allclose(theirs.norm.scale[...], start)
    alike(state(ours), state(theirs))
    for model in (ours, theirs):
        model.eval()
    alike(ours(x), theirs(x))


@pytest.mark.slow
def test_checkpoints_of_each_continue_in_the_other():
    x, target = data()
    for first, second in ((OURS, THEIRS), (THEIRS, OURS)):
        whole, half, other = Network(second), Network(first), Network(second, seed=1)
        for _ in range(3):
            step(whole, x, target)
            step(half, x, target)
        saved = serialization.to_bytes(state(half))
        nnx.update(other, nnx.State(serialization.from_bytes(state(other), saved)))
        for model in (whole, other):
            step(model, x, target)
        alike(state(other), state(whole))


@pytest.mark.few(0, 4)
@pytest.mark.slow
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("options", [{}, {"param_dtype": jnp.bfloat16}, {"use_scale": False, "use_bias": False}])
def test_every_dtype_is_flax_s(x_dtype, dtype, options):
    x = normal(0, (32, 5), scale=4).astype(x_dtype)
    ours, theirs = (module(5, dtype=dtype, rngs=nnx.Rngs(0), **options) for module in (OURS, THEIRS))
    alike(state(ours), state(theirs), 0)
    alike(ours(x), theirs(x), 0.02)
    alike(state(ours), state(theirs), 0.02)
    for model in (ours, theirs):
        model.eval()
    alike(ours(x), theirs(x), 0.02)


def test_the_running_statistics_have_no_gradient():
    def after(x):
        layer = OURS(3, rngs=nnx.Rngs(0))
        layer(x)
        return layer.mean[...].sum() + layer.var[...].sum()

    np.testing.assert_array_equal(fast_jit(jax.grad(after))(normal(0, (4, 3))), np.zeros((4, 3)))


def test_inference_in_half_precision_keeps_the_statistics_digits():
    """Flax rounds a mean of 1003.7 to bfloat16, which is 1004, before it subtracts it."""
    model = OURS(1, dtype=jnp.bfloat16, use_running_average=True, rngs=nnx.Rngs(0))
    model.mean[...] = jnp.full(1, 1003.7, jnp.float32)
    x = jnp.full((2, 1), 1000.0, jnp.bfloat16)
    np.testing.assert_allclose(np.asarray(model(x), np.float64), np.full((2, 1), -3.7), rtol=1e-2)


@pytest.mark.slow
def test_a_promotion_of_the_user_s_own_is_obeyed():
    seen = []

    def promote(arrays, dtype):
        seen.append((len(arrays), dtype))
        return tuple(None if a is None else 2 * a for a in arrays)

    options = {"promote_dtype": promote, "use_running_average": True, "dtype": jnp.float32, "use_bias": False}
    ours, theirs = (
        module(4, rngs=nnx.Rngs(0), **options, scale_init=RANDOM["scale_init"]) for module in (OURS, THEIRS)
    )
    alike(ours(normal(0, (8, 4))), theirs(normal(0, (8, 4))))
    assert seen == [(5, jnp.float32)] * 2


def test_masks_and_axis():
    x = normal(0, (8, 4, 6), jnp.float64)
    mask = jnp.asarray(np.random.default_rng(2).random((8, 1, 6)) < 0.7)
    ours, theirs = (wide(module(4, axis=1, rngs=nnx.Rngs(0), **FLOAT64)) for module in (OURS, THEIRS))
    alike(ours(x, mask=mask), theirs(x, mask=mask))
    alike(state(ours), state(theirs))


def test_train_eval_and_view():
    x = normal(0, (8, 4), jnp.float64)
    model = OURS(4, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="use_running_average must be given"):
        model(x)
    before = state(model)
    nnx.view(model, use_running_average=True)(x)
    model(x, use_running_average=True)
    alike(state(model), before, 0)
    nnx.view(model, use_running_average=False)(x)  # shares its variables
    assert not np.allclose(model.mean[...], before["mean"])
    assert isinstance(model, THEIRS)


@pytest.mark.slow
def test_relu_within_the_rule():
    x = normal(0, (16, 4), jnp.float64)
    fused = OURS(4, activation="relu", rngs=nnx.Rngs(0), **RANDOM, **FLOAT64)
    separate = OURS(4, rngs=nnx.Rngs(0), **RANDOM, **FLOAT64)
    for average in (False, True):
        alike(fused(x, average), nnx.relu(separate(x, average)))


@pytest.mark.slow
def test_a_residual_within_the_rule():
    x, z, delta = (normal(seed, (16, 4), jnp.float64) for seed in range(3))

    def run(module, average, apply, **options):
        def product(model, x, z):
            return jnp.vdot(delta, apply(model, x, z, average))

        model = wide(module(4, rngs=nnx.Rngs(0), **RANDOM, **FLOAT64, **options))
        return nnx.value_and_grad(product, argnums=(0, 1, 2))(model, x, z), state(model)

    for average in (False, True):
        ours = run(OURS, average, lambda m, x, z, average: m(x, average, residual=z), activation="relu")
        theirs = run(THEIRS, average, lambda m, x, z, average: nnx.relu(m(x, average) + z))
        alike(jax.tree.leaves(ours), jax.tree.leaves(theirs))
        with pytest.raises(ValueError, match='residual must come with activation="relu"'):
            OURS(4, rngs=nnx.Rngs(0))(x, average, residual=z)


# --- Transforms ---


@pytest.mark.slow
def test_scan_over_layers_with_rematerialization():
    def deep(batch_norm):
        @nnx.vmap(in_axes=0)
        def create(rngs):
            return Block(batch_norm, rngs)

        layers = create(nnx.Rngs(0).split(4))

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def forward(x, layer):
            return layer(x)

        @nnx.jit
        def gradient(layers, x):
            return nnx.grad(lambda m: jnp.square(forward(x, m)).mean())(layers)

        result = gradient(layers, normal(0, (10, 6), jnp.float64))
        return nnx.to_pure_dict(result), state(layers)

    class Block(nnx.Module):
        def __init__(self, batch_norm, rngs):
            self.dense = nnx.Linear(6, 6, use_bias=False, rngs=rngs, **FLOAT64)
            self.norm = wide(batch_norm(6, rngs=rngs, **RANDOM, **FLOAT64))

        def __call__(self, x):
            return nnx.relu(self.norm(self.dense(x)))

    alike(deep(OURS), deep(THEIRS))


@pytest.mark.slow
def test_vmap_over_an_ensemble():
    x = normal(0, (3, 8, 4), jnp.float64)

    def ensemble(batch_norm):
        models = nnx.vmap(lambda rngs: wide(batch_norm(4, rngs=rngs, **RANDOM, **FLOAT64)))(nnx.Rngs(0).split(3))
        y = nnx.vmap(lambda model, x: model(x))(models, x)
        return y, state(models)

    alike(ensemble(OURS), ensemble(THEIRS))


@pytest.mark.slow
def test_shard_map():
    x, target = data()
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    whole, spread = Network(OURS), Network(OURS, axis_name="batch")
    graph, variables = nnx.split(spread)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=(P(), P()))
    def across(variables, x, target):
        model = nnx.merge(graph, variables)
        gradient = nnx.grad(lambda m: jax.lax.pmean(loss(m, x, target), "batch"))(model)
        return nnx.to_pure_dict(gradient), state(model)

    alike(across(variables, x, target), (nnx.to_pure_dict(nnx.grad(loss)(whole, x, target)), state(whole)))


@pytest.mark.few(1)
@pytest.mark.parametrize(("dtype", "momentum"), NEAR_1)
def test_a_momentum_near_1_leaves_the_batch_its_weight(dtype, momentum):
    old, new = averages(0, dtype)
    layer = OURS(64, momentum=momentum, param_dtype=dtype, rngs=nnx.Rngs(0))
    layer.mean, layer.var = nnx.BatchStat(old), nnx.BatchStat(jnp.ones(64, dtype))
    layer(jnp.broadcast_to(new, (4, 64)), use_running_average=False)
    nearest(layer.mean[...], momentum, old, new)


def test_errors():
    with pytest.raises(ValueError, match='activation must be None or "relu"'):
        OURS(4, activation="tanh", rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="x must be real, got complex64"):
        OURS(4, rngs=nnx.Rngs(0))(jnp.ones((2, 4), jnp.complex64))
    for dtype in (">f4", "object"):
        with pytest.raises(TypeError, match=rf"^x must have .*got {dtype}\[2, 4\]"):
            OURS(4, rngs=nnx.Rngs(0))(np.ones((2, 4), dtype))
