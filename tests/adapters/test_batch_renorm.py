"""`BatchRenorm` of `bnderiv.linen` and `bnderiv.nnx`: against the paper's loop, and with other people's checkpoints."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

nn = pytest.importorskip("flax.linen", reason="needs the extra flax")

from flax import nnx, serialization

import bnderiv
import bnderiv.linen
import bnderiv.nnx
from tests.compiling import fast_jit
from tests.contract import near

OPTIONS: dict[str, Any] = {
    "momentum": 0.8,
    "r_max": 1.5,
    "d_max": 0.7,
    "warmup_steps": 2,
    "dtype": jnp.float64,
    "param_dtype": jnp.float64,
}
RENORM: Any = bnderiv.linen.BatchRenorm
NNX: Any = bnderiv.nnx.BatchRenorm
REFERENCE: Any = bnderiv.reference.batch_renorm


def _batches(count=5, shape=(6, 3)):
    """Batches that drift, so that r and d are clipped in some and not in others."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(0.4 * i + (1 + 0.3 * i) * rng.standard_normal(shape)) for i in range(count)]


def _paper(batches, deltas, gamma, beta, *, momentum, r_max, d_max, warmup_steps, eps=1e-3, **_):
    """y and (dx, dγ, dβ) of each step, and the running statistics at the end."""
    mean, var, steps = np.zeros(3), np.ones(3), []
    for i, (x, delta) in enumerate(zip(map(np.asarray, batches), map(np.asarray, deltas), strict=True)):
        own, running = np.sqrt(x.var(0) + eps), np.sqrt(var + eps)
        r, d = np.ones(3), np.zeros(3)
        if i >= warmup_steps:
            r, d = np.clip(own / running, 1 / r_max, r_max), np.clip((x.mean(0) - mean) / running, -d_max, d_max)
        x_hat = (x - x.mean(0)) / own
        dx = gamma * r / own * (delta - delta.mean(0) - x_hat * (delta * x_hat).mean(0))
        steps.append((gamma * (x_hat * r + d) + beta, (dx, (delta * (x_hat * r + d)).sum(0), delta.sum(0))))
        mean, var = (momentum * old + (1 - momentum) * new for old, new in ((mean, x.mean(0)), (var, x.var(0))))
    return steps, (mean, var)


def _problem():
    batches = _batches()
    rng = np.random.default_rng(1)
    deltas = [jnp.asarray(rng.standard_normal(x.shape)) for x in batches]
    gamma, beta = rng.standard_normal((2, 3))
    steps, statistics = _paper(batches, deltas, gamma, beta, **OPTIONS)
    return batches, deltas, {"scale": jnp.asarray(gamma), "bias": jnp.asarray(beta)}, steps, statistics


@pytest.mark.slow
def test_linen_follows_the_paper():
    batches, deltas, params, expected, (mean, var) = _problem()
    model = RENORM(use_running_average=False, **OPTIONS)
    stats = model.init(jax.random.key(0), batches[0])["batch_stats"]
    assert {name: a.tolist() for name, a in stats.items()} == {
        "mean": [0, 0, 0],
        "var": [1, 1, 1],
        "steps": 0,
        "r_max": 1.5,
        "d_max": pytest.approx(0.7),
    }
    stats |= {name: stats[name].astype(jnp.float64) for name in ("mean", "var")}
    stats["d_max"] = jnp.float64(0.7)  # not rounded

    @fast_jit
    def step(stats, x, delta):
        def apply(x, params):
            y, updated = model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
            return y, updated["batch_stats"]

        y, pull_back, stats = jax.vjp(apply, x, params, has_aux=True)
        dx, gradient = pull_back(delta)
        return (y, (dx, gradient["scale"], gradient["bias"])), stats

    for x, delta, right in zip(batches, deltas, expected, strict=True):
        actual, stats = step(stats, x, delta)
        near(actual, right, 1e-12)
    near((stats["mean"], stats["var"]), (mean, var), 1e-12)
    assert stats["steps"].tolist() == 5
    # Evaluation is batch norm's, and moves nothing.
    evaluated = RENORM(use_running_average=True, **OPTIONS)
    y, updated = evaluated.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    near(
        y,
        bnderiv.batch_norm_inference(x, params["scale"], params["bias"], stats["mean"], stats["var"], eps=1e-3),
        1e-12,
    )
    assert updated["batch_stats"]["steps"].tolist() == 5


def test_a_residual_is_added_before_the_relu():
    x, z = _batches(2)
    plain, fused = (RENORM(use_running_average=False, activation=a, **OPTIONS) for a in (None, "relu"))
    variables = plain.init(jax.random.key(0), x)
    y, y_relu = (
        model.apply(variables, x, mutable=["batch_stats"], **given)[0]
        for model, given in ((plain, {}), (fused, {"residual": z}))
    )
    near(y_relu, jnp.maximum(y + z, 0), 1e-12)


def test_nnx_follows_the_paper():
    batches, deltas, params, expected, (mean, var) = _problem()
    layer = NNX(3, rngs=nnx.Rngs(0), **OPTIONS)
    layer.scale[...], layer.bias[...] = params["scale"], params["bias"]
    layer.mean, layer.var = nnx.BatchStat(jnp.zeros(3)), nnx.BatchStat(jnp.ones(3))  # float64: Flax has float32

    @nnx.jit
    def step(layer, x, delta):
        def product(layer, x):
            y = layer(x, use_running_average=False)
            return (y * delta).sum(), y

        by_layer, dx = nnx.grad(product, argnums=(0, 1), has_aux=True)(layer, x)[0]
        return dx, by_layer["scale"][...], by_layer["bias"][...]

    for x, delta, (y, gradient) in zip(batches, deltas, expected, strict=True):
        near(nnx.clone(layer)(x, use_running_average=False), y, 1e-12)
        near(step(layer, x, delta), gradient, 1e-12)
    near((layer.mean[...], layer.var[...]), (mean, var), 1e-12)
    assert layer.steps[...].tolist() == 5
    assert layer.steps[...].dtype == jnp.int32
    near(
        layer(x, use_running_average=True),
        bnderiv.batch_norm_inference(x, params["scale"], params["bias"], layer.mean[...], layer.var[...], eps=1e-3),
        1e-12,
    )
    assert layer.steps[...].tolist() == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "stored", [int, np.float32, np.asarray], ids=["as_initialized", "after_a_mean_over_devices", "arrays"]
)
def test_a_checkpoint_of_the_layer_people_copy_goes_on(stored):
    """Its limits and its counter are Python integers at first."""
    x = _batches(1)[0].astype(jnp.float32)
    model = RENORM(use_running_average=False)
    variables = model.init(jax.random.key(0), x)
    theirs = {
        "params": {"scale": np.full(3, 2, np.float32), "bias": np.ones(3, np.float32)},
        "batch_stats": {
            "mean": np.full(3, 0.1, np.float32),
            "var": np.full(3, 1.2, np.float32),
            "r_max": stored(3),
            "d_max": stored(5),
            "steps": stored(100_000),
        },
    }
    loaded = serialization.from_bytes(variables, serialization.to_bytes(theirs))
    apply = lambda variables: model.apply(variables, x, mutable=["batch_stats"])  # noqa: E731
    for call in (apply, fast_jit(apply)):
        y, updated = call(loaded)
        near(y, 2 * (x - np.float32(0.1)) / np.sqrt(np.float32(1.201)) + 1, 1e-6)
        assert updated["batch_stats"]["steps"] == 100_001
        assert jax.tree.structure(updated["batch_stats"]) == jax.tree.structure(loaded["batch_stats"])


def test_a_restored_state_goes_on():
    x = _batches(1)[0].astype(jnp.float32)
    layer, target = NNX(3, rngs=nnx.Rngs(0)), NNX(3, rngs=nnx.Rngs(0))
    layer(x, use_running_average=False)
    pure = nnx.to_pure_dict(nnx.state(layer))
    assert set(pure) == {"mean", "var", "scale", "bias", "steps"}
    restored = jax.tree.map(jnp.asarray, serialization.from_bytes(pure, serialization.to_bytes(pure)))
    state = nnx.state(target)
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(target, state)
    near(target(x, use_running_average=False), layer(x, use_running_average=False), 0)
    assert (int(target.steps[...]), int(layer.steps[...])) == (2, 2)


def _ours(framework, x, mask=None, residual=None, **options):
    """y of the first batch after a warm-up of none, in float64."""
    options = {"warmup_steps": 0, "dtype": jnp.float64, **options}
    if framework == "nnx":
        features = x.shape[options.get("axis", -1)]
        layer = NNX(features, rngs=nnx.Rngs(0), **options)
        return layer(x, use_running_average=False, mask=mask, residual=residual)
    model = RENORM(use_running_average=False, **options)
    variables = model.init(jax.random.key(0), x)
    return model.apply(variables, x, mask=mask, residual=residual, mutable=["batch_stats"])[0]


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_options_of_batch_norm(framework):
    (x,) = _batches(1, (4, 3, 2))
    unit: Any = [jnp.ones(3), jnp.zeros(3), jnp.zeros(3), jnp.ones(3)]
    mask = jnp.asarray(np.arange(8).reshape(4, 1, 2) % 3 > 0)
    plain, _ = REFERENCE(x, *unit, channel_axis=1, eps=1e-3, where=mask)
    near(_ours(framework, x, mask, axis=1), plain, 1e-12)
    near(_ours(framework, x, mask, axis=1, activation="relu"), jnp.maximum(plain, 0), 1e-12)
    near(_ours(framework, x, mask, x, axis=1, activation="relu"), jnp.maximum(plain + x, 0), 1e-12)
    tangent = jax.jvp(lambda x: _ours(framework, x, axis=1, forward_mode=True), (x,), (x,))[1]
    expected = jax.jvp(lambda x: REFERENCE(x, *unit, channel_axis=1, eps=1e-3)[0], (x,), (x,))[1]
    near(tangent, expected, 1e-12)


@pytest.mark.slow
def test_several_feature_axes_and_devices():
    (x,) = _batches(1, (8, 3, 2))
    over_both = _ours("linen", x, axis=(1, 2))
    unit: Any = [jnp.ones(6), jnp.zeros(6), jnp.zeros(6), jnp.ones(6)]
    expected, _ = REFERENCE(x.reshape(8, 6), *unit, eps=1e-3)
    near(over_both.reshape(8, 6), expected, 1e-12)

    model = RENORM(use_running_average=False, axis=(1, 2), axis_name="devices", warmup_steps=0, dtype=jnp.float64)
    variables = model.init(jax.random.key(0), x)
    shards = x.reshape(4, 2, 3, 2)
    on_each = jax.vmap(lambda x: model.apply(variables, x, mutable=["batch_stats"]), axis_name="devices")
    y, updated = fast_jit(on_each)(shards)
    near(y.reshape(8, 6), expected, 1e-12)
    np.testing.assert_array_equal(updated["batch_stats"]["steps"], [1, 1, 1, 1])


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_errors(framework):
    (x,) = _batches(1)
    with pytest.raises(ValueError, match=r"r_max must be at least 1, got 0\.5"):
        _ours(framework, x, r_max=0.5)
    with pytest.raises(ValueError, match="d_max must be at least 0, got -1"):
        _ours(framework, x, d_max=-1)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\]"):
        _ours(framework, x, momentum=2)
