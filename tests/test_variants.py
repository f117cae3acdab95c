"""A small network of all kinds of layers, its gradient compiled or not."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from tests.case import random_like
from tests.contract import near


def _loss(layers, params, x, labels):
    a, batch = layers.batch_norm_relu(layers.conv2d(x, params["conv"], padding=1), params["gamma"], params["beta"])
    a = layers.tanh(layers.avg_pool(layers.max_pool(a, 2), 2, strides=1))
    logits = layers.dense(layers.flatten(a), params["dense"])
    return layers.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + (batch.mean * batch.var).sum()


def _arguments():
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 2, 4), "gamma": (4,), "beta": (4,), "dense": (2 * 2 * 4, 3)}
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return params, rng.standard_normal((5, 6, 6, 2)), rng.integers(0, 3, 5)


variants: Any = chex.variants  # its stub has no call


@pytest.mark.slow
class TestNetwork(chex.TestCase):
    @variants(with_jit=True, without_jit=True)
    def test_gradient_equals_the_reference(self):
        def gradient(layers):
            return lambda *arguments: jax.grad(lambda p, x, y: _loss(layers, p, x, y))(*arguments)

        expected = jax.jit(gradient(bnderiv.reference))(*_arguments())
        for layers in (bnderiv, bnderiv.forward_mode):
            near(self.variant(gradient(layers))(*_arguments()), expected, 1e-12)


def test_one_trace_serves_every_call_of_one_shape():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, x, labels):
        return jax.grad(lambda p: _loss(bnderiv, p, x, labels))(params)

    params, x, labels = _arguments()
    first, *others = (step(params, jnp.asarray(scale * x), labels) for scale in (1.0, 2.0, 3.0))
    assert all((g["conv"] != first["conv"]).any() for g in others)


@pytest.mark.slow
def test_a_gradient_has_the_precision_of_its_forward():
    """Though the context is left when the backward is traced, as for autodiff."""
    params, x, labels = _arguments()

    def loss(layers, params):
        with jax.default_matmul_precision("highest"):
            return _loss(layers, params, x, labels)

    for layers in (bnderiv.reference, bnderiv, bnderiv.forward_mode):
        program = str(jax.make_jaxpr(jax.grad(partial(loss, layers)))(params))
        assert program.count("precision=(Precision.HIGHEST") >= 5  # a convolution and a product; back, one and two
        assert "precision=None" not in program


@pytest.mark.slow
def test_a_gradient_has_the_dtypes_of_its_forward():
    """Though x64 is off where it is taken: as for autodiff."""
    arguments = _arguments()
    expected = jax.grad(partial(_loss, bnderiv.reference))(*arguments)

    def loss(layers, *arguments):
        with jax.enable_x64(True):
            return _loss(layers, *arguments)

    arguments = jax.tree.map(jnp.asarray, arguments)
    with jax.enable_x64(False):
        found = jax.grad(partial(loss, bnderiv))(*arguments)
    near(found, expected, 1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # of JAX's own, outside of the layers
@pytest.mark.parametrize(
    ("layers", "name", "others"),
    [
        (bnderiv, "conv2d", ((3, 3, 3, 2),)),
        (bnderiv, "layer_norm", ((3,), (3,))),
        # Of the others JAX transposes a `lax.pad`, in the dtypes of the context.
        (bnderiv.forward_mode, "relu", ()),
    ],
)
def test_a_second_derivative_has_the_dtypes_of_its_forward(layers, name, others):
    """The same of the derivatives that a rule's own operations have."""
    x, *others = (random_like(np.zeros(shape), i) for i, shape in enumerate([(2, 6, 6, 3), *others]))

    def loss(layers, x):
        with jax.enable_x64(True):
            return (getattr(layers, name)(x, *others) ** 3).sum()

    expected = jax.jvp(jax.grad(partial(loss, bnderiv.reference)), (x,), (x,))[1]
    with jax.enable_x64(False):
        found = jax.jvp(jax.grad(partial(loss, layers)), (x,), (x,))[1]
    assert found.dtype == jnp.float64
    near(found, expected, 1e-12)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_a_gradient_has_the_dtypes_of_its_arguments():
    """Though x64 is off where the forward is traced, and on where the gradient is taken: as for autodiff."""
    x, kernel = jnp.ones((3, 4), jnp.float64), jnp.ones((4, 2), jnp.float64)

    def loss(layers, *arguments):
        with jax.enable_x64(False):
            return layers.dense(*arguments).sum()

    for layers in (bnderiv.reference, bnderiv):
        assert all(g.dtype == jnp.float64 for g in jax.grad(partial(loss, layers), (0, 1))(x, kernel))
