"""LeNet-5 by hand: every gradient of the chain is that of automatic differentiation."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv import steps
from bnderiv.models import lenet5
from tests.compiling import fast_jit
from tests.contract import near
from tests.test_steps import differs

pytestmark = pytest.mark.slow

LOSSES = ("cross_entropy", "squared_error")


def _network(count=3, **options):
    """A network in float64 whose every parameter is random, images and labels."""
    config = lenet5.Config(dtype=jnp.float64, gradients="autodiff", **options)
    params, state = jax.eval_shape(lambda: lenet5.init(jax.random.key(0), config))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(0.1 * rng.standard_normal(a.shape)), params)
    state = jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 2, a.shape)).astype(a.dtype), state)
    x = jnp.asarray(rng.standard_normal((count, *config.image_shape)))
    return config, params, state, x, jnp.asarray(rng.integers(0, config.classes, count))


def _loss(logits, labels, loss):
    if loss == "cross_entropy":
        return bnderiv.reference.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return bnderiv.reference.squared_error(jnp.tanh(logits), targets).mean()


@pytest.mark.few(0, 1)
@pytest.mark.parametrize(
    ("pool", "activation", "batch_norm"),
    list(itertools.product(("max", "avg"), ("relu", "tanh", "sigmoid"), (True, False))),
)
def test_equals_automatic_differentiation(pool, activation, batch_norm):
    config, params, state, x, labels = _network(pool=pool, activation=activation, batch_norm=batch_norm)

    def run(params, state, x):
        def losses(params, x):
            logits, new = lenet5.apply(params, state, x, config, train=True)
            return [_loss(logits, labels, loss) for loss in LOSSES], (logits, new)

        values, pull_back, (logits, new) = jax.vjp(losses, params, x, has_aux=True)
        expected = [pull_back([jnp.float64(1), jnp.float64(0)]), pull_back([jnp.float64(0), jnp.float64(1)])]
        by_hand = [steps.lenet5(params, state, x, labels, config, loss=loss) for loss in LOSSES]
        return values, logits, new, expected, by_hand

    values, logits, new, expected, by_hand = fast_jit(run)(params, state, x)
    for value, gradients, s in zip(values, expected, by_hand, strict=True):
        near((s.loss, s.z5), (value, logits), 1e-12)
        assert jax.tree.structure(s.gradients) == jax.tree.structure(gradients[0])
        near((s.gradients, s.dx), gradients, 1e-10)
        assert jax.tree.structure(s.state) == jax.tree.structure(new)
        near(s.state, new, 1e-12)
        assert (s.mu1 is None) == (not batch_norm)
        assert (s.d_bias1 is None) == batch_norm
        assert (s.winner2 is None) == (pool == "avg")


def test_every_delta_is_the_gradient_by_its_z():
    """A constant added to z of one layer: the gradient of the loss by it, at 0, is δ of that layer."""
    config, params, state, x, labels = _network(pool="avg", activation="tanh", batch_norm=False)

    def run(x):
        s = steps.lenet5(params, state, x, labels, config, loss="cross_entropy")

        def head(z2):
            p2 = bnderiv.reference.avg_pool(jnp.tanh(z2), 2)
            a3 = jnp.tanh(bnderiv.reference.dense(p2.reshape(3, -1), **params["dense3"]))
            a4 = jnp.tanh(bnderiv.reference.dense(a3, **params["dense4"]))
            return _loss(bnderiv.reference.dense(a4, **params["output"]), labels, "cross_entropy")

        return s.delta2, jax.grad(head)(s.z2)

    mine, right = fast_jit(run)(x)
    near(mine, right, 1e-11)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_no_automatic_differentiation_in_the_path(loss, activation):
    config, *arguments = _network(activation=activation)
    jaxpr = str(jax.make_jaxpr(lambda *args: steps.lenet5(*args, config=config, loss=loss))(*arguments))
    assert not re.search("custom_(vjp|jvp)|transpose_jvp", jaxpr)


def test_other_shapes_and_dtypes():
    for shape, dtype in (((32, 32, 3), jnp.float32), ((29, 40, 2), jnp.bfloat16)):
        config = lenet5.Config(image_shape=shape, classes=3, dtype=dtype)

        def run(x, config=config):
            params, state = lenet5.init(jax.random.key(0), config)
            s = steps.lenet5(params, state, x, jnp.arange(2), config, loss="squared_error")
            return params, state, s

        params, state, s = jax.eval_shape(run, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
        shapes = [jax.tree.map(lambda a: a.shape, tree) for tree in (params, s.gradients)]
        assert shapes[0] == shapes[1]
        assert {leaf.dtype for leaf in jax.tree.leaves(s.gradients)} == {jnp.dtype("float32")}
        assert jax.tree.map(lambda a: (a.shape, a.dtype), s.state) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
        assert "delta1" in str(s)


def test_which_step_of_the_chain_is_wrong():
    config, *arguments = _network(image_shape=(28, 28, 1))
    run = fast_jit(lambda *args: steps.lenet5(*args, config=config))
    s = run(*arguments)
    assert steps.first_difference(s, s) is None
    assert steps.first_difference(s._asdict(), s) is None
    z2 = np.asarray(s.z2)
    for mine, step, words in (
        ({"delta5": 3 * s.delta5}, "delta5", "missing 1/N"),
        ({"var2": z2.var((0, 1, 2), ddof=1), "delta1": s.delta1}, "var2", "unbiased"),
        ({"mu2": z2.sum((0, 1, 2)) / 3}, "mu2", "wrong m: .* N = 3, must be N·H·W = 300"),
        ({"d_kernel2": s.d_kernel2[::-1, ::-1]}, "d_kernel2", "flipped kernel"),
        ({"delta1": s.delta1, "d_var1": -s.d_var1, "d_a4": s.d_a4}, "d_var1", "sign"),
        ({"d_kernel3": s.d_kernel3 / 3, "d_bias5": s.d_bias5}, "d_kernel3", "divided by N = 3"),
    ):
        found = differs(mine, s)
        assert found.step == step
        assert re.search(words, found.slip), found.slip
    with pytest.raises(ValueError, match="unknown steps"):
        steps.first_difference({"d_bias1": np.zeros(6)}, s)  # batch norm cancels that bias: there is no such step


def test_errors():
    config, params, state, x, labels = _network()
    with pytest.raises(ValueError, match="loss must be 'cross_entropy' or 'squared_error', got 'mse'"):
        steps.lenet5(params, state, x, labels, config, loss="mse")
    with pytest.raises(ValueError, match="x must have shape"):
        steps.lenet5(params, state, x, labels, dataclasses.replace(config, image_shape=(32, 32, 1)))
    with pytest.raises(TypeError, match="labels must have an integer dtype"):
        jax.eval_shape(lambda labels: steps.lenet5(params, state, x, labels, config), labels.astype(jnp.float32))
