"""The network of Ioffe & Szegedy 2015, section 4.1, and its training: one pure function of a key and a learning rate.

    x (N, D) → dense 100 → [batch norm →] sigmoid    three times
             → dense K = logits

`train` is a `lax.scan` over the steps: `vmap` takes it over seeds and rates, and `jit` makes one program of the whole.
"""

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import bnderiv
from experiments._data import Data, epoch_order

HIDDEN = (100, 100, 100)
BATCH = 60
CLASSES = 10
PROBES = 1000  # test images of which the last sigmoid's input is noted
PERCENTILES = (15, 50, 85)
KINDS = {"with batch norm": True, "without batch norm": False}


class Curves(NamedTuple):
    """What is noted before the first step and then after every `every` steps; T times in all."""

    accuracy: jax.Array  # (T,) of the test images
    loss: jax.Array  # (T,) mean over the test images
    percentiles: jax.Array  # (T, 3, 100) over the probes, of each input to the last hidden layer's sigmoids


def init(key: jax.Array, features: int, deviation: float, batch_norm: bool) -> tuple[Any, Any]:
    """Kernels from N(0, deviation²). A layer with batch norm has γ = 1 and β = 0 in place of a bias."""
    shapes = list(pairwise((features, *HIDDEN, CLASSES)))
    params, state = [], []
    for i, (layer_key, shape) in enumerate(zip(jax.random.split(key, len(shapes)), shapes, strict=True)):
        layer = {"kernel": deviation * jax.random.normal(layer_key, shape, jnp.float32)}
        zeros = jnp.zeros(shape[1], jnp.float32)
        if batch_norm and i < len(HIDDEN):
            layer |= {"gamma": zeros + 1, "beta": zeros}
            state.append(bnderiv.init_running_stats(shape[1]))
        else:
            layer["bias"] = zeros
            state.append(None)
        params.append(layer)
    return params, state


def apply(params: Any, state: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any, jax.Array]:
    """Logits (N, K), the running statistics, and the input to the last hidden layer's sigmoids, (N, 100)."""
    *hidden, output = params
    state = list(state)
    y = x
    for i, layer in enumerate(hidden):
        y = bnderiv.dense(x, layer["kernel"], layer.get("bias"))
        if "gamma" in layer:
            if train:
                y, batch = bnderiv.batch_norm(y, layer["gamma"], layer["beta"])
                state[i] = bnderiv.update_running_stats(state[i], batch)
            else:
                y = bnderiv.batch_norm_inference(y, layer["gamma"], layer["beta"], state[i].mean, state[i].var)
        x = bnderiv.sigmoid(y)
    return bnderiv.dense(x, output["kernel"], output["bias"]), state, y


def train(
    key: jax.Array, rate: jax.Array, data: Data, *, batch_norm: bool, deviation: float, steps: int, every: int
) -> Curves:
    """Plain gradient descent on batches of 60, reshuffled every epoch; the images of `data` are rows, (N, D)."""
    init_key, order_key = jax.random.split(key)
    images = len(data.train_labels)
    params, state = init(init_key, data.train_images.shape[1], deviation, batch_norm)
    batches = images // BATCH  # the last images that fill no batch sit this epoch out
    epochs = jnp.arange(-(-steps // batches))
    order = jax.vmap(lambda epoch: epoch_order(order_key, epoch, images)[: batches * BATCH])(epochs)
    order = order.reshape(-1, BATCH)[:steps].reshape(steps // every, every, BATCH)

    def loss(params, state, x, labels):
        logits, state, _ = apply(params, state, x, train=True)
        return bnderiv.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    def step(network, rows):
        params, state = network
        x = data.standardized(data.train_images[rows])
        gradient, state = jax.grad(loss, has_aux=True)(params, state, x, data.train_labels[rows])
        return (jax.tree.map(lambda p, g: p - rate * g, params, gradient), state), None

    def note(params, state):
        logits, _, inputs = apply(params, state, data.standardized(data.test_images), train=False)
        losses = bnderiv.softmax_cross_entropy_with_integer_labels(logits, data.test_labels)
        percentiles = jnp.percentile(inputs[:PROBES], jnp.array(PERCENTILES, jnp.float32), axis=0)
        right = lax.argmax(logits, 1, data.test_labels.dtype) == data.test_labels
        return Curves(right.mean(dtype=jnp.float32), losses.mean(), percentiles)

    def interval(network, rows):
        noted = note(*network)
        return lax.scan(step, network, rows)[0], noted

    network, noted = lax.scan(interval, (params, state), order)
    return jax.tree.map(lambda a, last: jnp.concatenate([a, last[None]]), noted, note(*network))


@partial(jax.jit, static_argnames=("deviation", "steps", "every"))
def sweep(keys: jax.Array, rates: jax.Array, data: Data, *, deviation: float, steps: int, every: int):
    """Every key with every rate, with and without batch norm, in one program.

    Runs of one key share their batches, so the first layer of all its rates is a single product.

    Returns:
      Curves for each of `KINDS`, every array led by (keys, rates).
    """
    one = partial(train, data=data, deviation=deviation, steps=steps, every=every)
    ways = {name: partial(one, batch_norm=batch_norm) for name, batch_norm in KINDS.items()}
    return {name: jax.vmap(jax.vmap(way, (None, 0)), (0, None))(keys, rates) for name, way in ways.items()}
