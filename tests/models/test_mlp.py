"""The multilayer perceptron: its parameters, what it computes, what it refuses."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv.models import mlp
from tests.case import random_like
from tests.compiling import fast_jit
from tests.contract import near

compiled_init = fast_jit(mlp.init, static_argnums=1)
compiled_apply = fast_jit(mlp.apply, static_argnames=("config", "train"))

SMALL = mlp.Config(hidden=(7, 5), features=12, classes=3, dtype=jnp.float64)


def _shapes(config):
    return jax.eval_shape(lambda: mlp.init(jax.random.key(0), config))


def _network(config):
    """Random parameters: none hides behind a 0 or a 1."""
    params, state = _shapes(config)
    fresh = {name: bnderiv.init_running_stats(running.mean.size, running.mean.dtype) for name, running in state.items()}
    return random_like(params, 1), fresh


def _rows(count=6, features=12):
    return jnp.asarray(np.random.default_rng(3).standard_normal((count, features)))


def test_parameters():
    params, state = _shapes(mlp.Config())
    assert jax.tree.map(lambda a: a.shape, params) == {
        "dense1": {"kernel": (784, 500)},
        "bn1": {"gamma": (500,), "beta": (500,)},
        "dense2": {"kernel": (500, 150)},
        "bn2": {"gamma": (150,), "beta": (150,)},
        "output": {"kernel": (150, 10), "bias": (10,)},
    }
    assert {name: running.var.shape for name, running in state.items()} == {"bn1": (500,), "bn2": (150,)}
    params, state = _shapes(mlp.Config(batch_norm=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 784 * 500 + 500 + 500 * 150 + 150 + 150 * 10 + 10
    assert state == {}


def test_initial_values():
    """Glorot & Bengio's before tanh and sigmoid: uniform, variance 2 / (fan in + fan out)."""
    for activation in ("tanh", "sigmoid"):
        config = mlp.Config(hidden=(300,), features=200, activation=activation)
        params, _ = compiled_init(jax.random.key(0), config)
        kernel = params["dense1"]["kernel"]
        np.testing.assert_allclose(kernel.var(), 2 / 500, rtol=0.05)
        assert float(abs(kernel).max()) <= (6 / 500) ** 0.5


def test_the_output_layer_keeps_the_variance():
    """No activation follows it, so its kernel has the variance 1 / fan in."""
    params, _ = compiled_init(jax.random.key(0), mlp.Config(hidden=(), features=300, classes=200))
    np.testing.assert_allclose(params["output"]["kernel"].var(), 1 / 300, rtol=0.05)


def test_running_statistics_of_half_precision_are_float32():
    config = mlp.Config(hidden=(5,), features=6, dtype=jnp.bfloat16)
    params, state = jax.eval_shape(lambda: mlp.init(jax.random.key(0), config))
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert state["bn1"].mean.dtype == state["bn1"].var.dtype == jnp.float32


def test_options_at_the_ends_of_their_ranges():
    both = mlp.Config(momentum=0, eps=0)
    assert (both.momentum, both.eps, mlp.Config(momentum=1.0).momentum) == (0, 0, 1)


def test_each_layer_is_drawn_by_a_key_of_its_own():
    """Kernels of one shape, the output's too, have nothing in common."""
    params, _ = compiled_init(jax.random.key(0), mlp.Config(hidden=(60, 60), features=60, classes=60))
    kernels = [np.ravel(params[name]["kernel"]) for name in ("dense1", "dense2", "output")]
    assert abs(np.corrcoef(kernels) - np.eye(3)).max() < 5 / 60


def test_no_hidden_layer_is_a_linear_classifier():
    config = dataclasses.replace(SMALL, hidden=())
    params, state = _network(config)
    logits, _ = compiled_apply(params, state, _rows(), config, train=True)
    output = jax.tree.map(np.asarray, params["output"])
    near(logits, np.asarray(_rows()) @ output["kernel"] + output["bias"], 1e-12)


def test_numbers_against_numpy():
    """Affine → batch norm → activation, twice. The variance is the biased one, and ε is the config's."""
    config = dataclasses.replace(SMALL, activation="sigmoid", eps=0.3)
    params, state = _network(config)
    a = np.asarray(_rows())
    for i in (1, 2):
        z = a @ np.asarray(params[f"dense{i}"]["kernel"])
        z_hat = (z - z.mean(0)) / np.sqrt(z.var(0) + 0.3)
        gamma, beta = (np.asarray(params[f"bn{i}"][name]) for name in ("gamma", "beta"))
        a = 1 / (1 + np.exp(-(gamma * z_hat + beta)))
    expected = a @ np.asarray(params["output"]["kernel"]) + np.asarray(params["output"]["bias"])
    near(compiled_apply(params, state, _rows(), config, train=True)[0], expected, 1e-11)


def test_evaluation_against_numpy():
    """By the running statistics, with an ε that is not the layer's default."""
    config = dataclasses.replace(SMALL, hidden=(7,), activation="sigmoid", eps=0.3)
    params, _ = _network(config)
    mean, var = np.linspace(-1, 1, 7), np.linspace(0.5, 2, 7)
    state = {"bn1": bnderiv.RunningStats(jnp.asarray(mean), jnp.asarray(var), jnp.int32(1))}
    z = np.asarray(_rows()) @ np.asarray(params["dense1"]["kernel"])
    gamma, beta = (np.asarray(params["bn1"][name]) for name in ("gamma", "beta"))
    a = 1 / (1 + np.exp(-(gamma * (z - mean) / np.sqrt(var + 0.3) + beta)))
    expected = a @ np.asarray(params["output"]["kernel"]) + np.asarray(params["output"]["bias"])
    near(compiled_apply(params, state, _rows(), config, train=False)[0], expected, 1e-11)


def test_halves_of_a_batch_share_its_statistics():
    config = dataclasses.replace(SMALL, hidden=(7,))
    params, state = _network(config)

    @fast_jit
    @partial(jax.vmap, axis_name="halves", out_axes=(0, None))
    def by_halves(x):
        return mlp.apply(params, state, x, config, train=True, axis_name="halves")

    logits, stats = by_halves(_rows().reshape(2, 3, 12))
    near((logits.reshape(6, 3), stats), compiled_apply(params, state, _rows(), config, train=True), 1e-11)


@pytest.mark.few(2, 2)
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_gradient_equals_autodiff(activation, batch_norm):
    config = dataclasses.replace(SMALL, activation=activation, batch_norm=batch_norm)
    params, state = _network(config)

    def vjp(gradients):
        network = dataclasses.replace(config, gradients=gradients)

        @fast_jit
        def run(params, x):
            out, pull_back = jax.vjp(lambda p, x: mlp.apply(p, state, x, network, train=True)[0], params, x)
            return out, pull_back(random_like(out, 5))

        return run(params, _rows())

    near(vjp("closed_form"), vjp("autodiff"), 1e-10)


def test_images_are_flattened_and_evaluation_leaves_the_state():
    params, state = _network(SMALL)
    rows = _rows()
    logits, same = mlp.apply(params, state, rows.reshape(6, 2, 3, 2), SMALL, train=False)
    near(logits, mlp.apply(params, state, rows, SMALL, train=False)[0], 0)
    assert same is state
    _, new = compiled_apply(params, state, rows, SMALL, train=True)
    assert [int(running.count) for running in new.values()] == [1, 1]


@pytest.mark.slow
def test_learns():
    config = dataclasses.replace(SMALL, dtype=jnp.float32)
    params, state = compiled_init(jax.random.key(0), config)
    labels = jnp.array([0, 1, 2, 0, 1, 2])

    @fast_jit
    def step(params, state):
        def loss(params):
            logits, new = mlp.apply(params, state, _rows(), config, train=True)
            return bnderiv.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), new, value

    losses = []
    for _ in range(40):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow
def test_an_ensemble_is_a_vmap():
    """Over `init`'s keys and over `apply`'s parameters and statistics."""
    keys = jax.random.split(jax.random.key(0), 3)
    params, state = fast_jit(jax.vmap(lambda key: mlp.init(key, SMALL)))(keys)
    together = fast_jit(jax.vmap(lambda p, s: mlp.apply(p, s, _rows(), SMALL, train=True)))(params, state)
    for i, key in enumerate(keys):
        alone = compiled_init(key, SMALL)
        near(jax.tree.map(lambda a, i=i: a[i], (params, state)), alone, 1e-14)
        near(jax.tree.map(lambda a, i=i: a[i], together), compiled_apply(*alone, _rows(), SMALL, train=True), 1e-11)


def test_config_is_a_value():
    from_json = mlp.Config(**json.loads('{"hidden": [500, 150]}'))
    assert from_json == mlp.Config()
    assert hash(from_json) == hash(mlp.Config())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": (500, 0)}, r"hidden\[1\] must be at least 1, got 0"),
        ({"hidden": 500}, "hidden must be a tuple of numbers of units, got 500"),
        ({"hidden": np.int64(5)}, r"hidden must be a tuple of numbers of units, got np\.int64\(5\)"),
        ({"hidden": None}, "hidden must be a tuple of numbers of units, got None"),
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"activation": "max"}, "activation must be one of"),
        ({"eps": jnp.float32(1e-5)}, "eps must be finite and at least 0, a Python number, got Array"),  # does not hash
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        mlp.Config(**options)


@pytest.mark.parametrize("shape", [(4, 11), (4, 3, 5), (12,)])
def test_refused_examples(shape):
    params, state = _network(SMALL)
    with pytest.raises(ValueError, match=r"x must have (12 features an example|rank 2)"):
        mlp.apply(params, state, jnp.zeros(shape), SMALL, train=False)


def test_one_feature_is_still_an_axis():
    config = dataclasses.replace(SMALL, features=1)
    with pytest.raises(ValueError, match="x must have rank 2 or more"):
        mlp.apply(*_network(config), jnp.ones(6), config, train=False)


def test_the_input_is_cast_to_the_dtype_of_the_config():
    params, state = _network(SMALL)
    rows = jnp.asarray(_rows(), jnp.float32)
    logits, _ = compiled_apply(params, state, rows, SMALL, train=False)
    near(logits, compiled_apply(params, state, rows.astype(jnp.float64), SMALL, train=False)[0], 0)
