"""What the models accept as `params` and `state`, and how they refuse the rest: by the entry's name."""

from types import MappingProxyType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv.models import lenet5, mlp

MLP = mlp.Config(hidden=(5, 4), features=6, classes=3)
PLAIN = mlp.Config(hidden=(5,), features=6, classes=3, batch_norm=False)
LENET = lenet5.Config(classes=3)
X = {"mlp": np.ones((2, 6), jnp.float32), "lenet5": np.ones((2, 28, 28, 1), jnp.float32)}
MODELS: dict[str, Any] = {"mlp": (mlp, MLP, "dense1"), "lenet5": (lenet5, LENET, "conv1")}


def start(model, config):
    """Parameters and state of ones, of the shapes that `init` makes."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), config))
    return jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes)


def changed(tree, value, *path):
    """The tree with `value` at `path`; without what is there if it is `...`."""
    key, *rest = path
    value = changed(tree[key], value, *rest) if rest else value
    return {**{k: v for k, v in tree.items() if k != key}, **({} if value is ... else {key: value})}


@pytest.mark.parametrize("name", ["mlp", pytest.param("lenet5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("train", [True, False])
def test_numpy_arrays_and_other_mappings(name, train):
    model, config, _ = MODELS[name]
    params, state = start(model, config)
    expected = model.apply(params, state, X[name], config, train=train)
    numpy, numpy_state = jax.tree.map(np.asarray, (params, state))
    frozen = MappingProxyType({layer: MappingProxyType(entries) for layer, entries in numpy.items()})
    given = MappingProxyType(numpy_state)
    ours = model.apply(frozen, given, np.asarray(X[name]), config, train=train)
    chex.assert_trees_all_equal(ours[0], expected[0])
    chex.assert_trees_all_equal(dict(ours[1]), expected[1])
    assert train or ours[1] is given


def test_a_bias_before_batch_norm_is_used():
    params, state = start(mlp, MLP)
    with_bias = changed(params, jnp.full(5, 7.0, jnp.float32), "dense1", "bias")
    plain, biased = (mlp.apply(p, state, X["mlp"], MLP, train=False)[0] for p in (params, with_bias))
    assert not np.allclose(plain, biased)


@pytest.mark.fast
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("train", [True, False])
def test_the_wrong_entry_is_named(name, train):
    model, config, first = MODELS[name]
    params, state = start(model, config)

    def refused(error, match, params=params, state=state, config=config):
        with pytest.raises(error, match=match):
            model.apply(params, state, X[name], config, train=train)

    for wrong in (None, [params], 3.0, jnp.ones(3)):
        refused(TypeError, "params must be a dict, as init returns it, got", wrong)
        refused(TypeError, "state must be a dict, as init returns it, got", state=wrong)
        refused(TypeError, rf"params\['{first}'\] must be a dict, got", changed(params, wrong, first))
        refused(TypeError, r"state\['bn1'\] must be a RunningStats, got", state=changed(state, wrong, "bn1"))
    refused(TypeError, r"state\['bn2'\] must be a RunningStats, got tuple", state=changed(state, (1, 2, 3), "bn2"))
    for layer in (first, "bn1", "output"):
        refused(ValueError, f"params must have the key '{layer}', got the keys", changed(params, ..., layer))
        for entry in params[layer]:
            key = rf"params\['{layer}'\]\['{entry}'\]"
            refused(ValueError, rf"params\['{layer}'\] must have the keys", changed(params, ..., layer, entry))
            for wrong in ([0.0], None, "0", np.ones(3, int)):
                refused(TypeError, f"{key} must", changed(params, wrong, layer, entry))
            for wrong in (0.0, np.ones(2), jnp.ones((7, 7))):
                refused(ValueError, f"{key} must have shape", changed(params, wrong, layer, entry))
    refused(ValueError, r"params\['output'\] must.*got.*'weight'", changed(params, 0.0, "output", "weight"))
    refused(ValueError, "state must have the key 'bn1', got the keys", state=changed(state, ..., "bn1"))
    for field in ("mean", "var"):
        for error, wrong in ((TypeError, [0.0]), (TypeError, None), (ValueError, 0.0), (ValueError, np.ones(2))):
            running = state["bn1"]._replace(**{field: wrong})
            refused(error, rf"state\['bn1'\]\.{field} must", state=changed(state, running, "bn1"))
    refused(TypeError, rf"config must be a {name}\.Config, got builtins\.dict", config={})


@pytest.mark.fast
@pytest.mark.parametrize("train", [True, False])
def test_the_entries_of_a_deeper_network(train):
    """The hidden layers that a shallower config leaves out fit as far as it looks: both outputs have five inputs."""
    deep, shallow = (mlp.Config(hidden=hidden, features=6, classes=3) for hidden in ((5, 5), (5,)))
    (params, state), (fitting, running) = start(mlp, deep), start(mlp, shallow)
    with pytest.raises(
        ValueError, match=r"params must have the keys \['dense1', 'bn1', 'output'\] and no others.*dense2"
    ):
        mlp.apply(params, running, X["mlp"], shallow, train=train)
    with pytest.raises(ValueError, match=r"state must have the keys \['bn1'\] and no others.*got \['bn1', 'bn2'\]"):
        mlp.apply(fitting, state, X["mlp"], shallow, train=train)
    mlp.apply(fitting, running, X["mlp"], shallow, train=train)


def test_without_batch_norm_a_bias_is_needed_and_no_state():
    params, state = start(mlp, PLAIN)
    mlp.apply(params, {}, X["mlp"], PLAIN, train=True)
    with pytest.raises(
        ValueError, match=r"params\['dense1'\] must have the keys \['kernel', 'bias'\], got \['kernel'\]"
    ):
        mlp.apply(changed(params, ..., "dense1", "bias"), state, X["mlp"], PLAIN, train=True)


def test_the_config_of_the_other_model():
    other: Any = MLP
    with pytest.raises(TypeError, match=r"config must be a lenet5\.Config, got bnderiv\.models\.mlp\.Config"):
        lenet5.init(jax.random.key(0), other)
    other = LENET
    with pytest.raises(TypeError, match=r"config must be a mlp\.Config, got bnderiv\.models\.lenet5\.Config"):
        mlp.init(jax.random.key(0), other)


def test_a_config_of_arrays():
    """It is static, so it must be hashable whatever the numbers of it were."""
    config = mlp.Config(hidden=np.array([5, 4]), features=jnp.asarray(6), classes=jnp.asarray(3))  # pyright: ignore
    assert hash(config) == hash(MLP)
    assert config == MLP


def test_a_momentum_near_1():
    """The running statistics of a bfloat16 model are float32; 0.99999 leaves the batch its weight."""
    config = mlp.Config(hidden=(5,), features=6, classes=3, dtype=jnp.bfloat16, momentum=0.99999)
    params, state = start(mlp, config)
    state = {"bn1": state["bn1"]._replace(mean=jnp.zeros(5, jnp.float32))}
    _, new = mlp.apply(params, state, X["mlp"], config, train=True)
    np.testing.assert_allclose(new["bn1"].mean, np.full(5, 6e-5), rtol=1e-6)  # six features of 1
