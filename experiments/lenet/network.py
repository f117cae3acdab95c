"""The network of a configuration: how its parameters are drawn, and what it makes of images."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

import bnderiv
from bnderiv.models import lenet5, mlp
from experiments.lenet.configuration import Configuration

Tree = Any

MODELS: dict[str, Any] = {"lenet5": lenet5, "mlp": mlp}
LAYERS = {"closed_form": bnderiv, "forward_mode": bnderiv.forward_mode, "autodiff": bnderiv.reference}


def init(key: jax.Array, image_shape: tuple[int, int, int], configuration: Configuration) -> tuple[Tree, Tree]:
    """Parameters and running statistics, float32."""
    model = dataclasses.replace(configuration, dtype="float32").network(image_shape)
    params, running = MODELS[configuration.model].init(key, model)
    if configuration.initializer == "model":
        return params, running
    if configuration.initializer == "pytorch":
        draw = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    else:
        draw = getattr(initializers, configuration.initializer)()
    layers = [layer for layer in params if "kernel" in params[layer]]
    for layer, layer_key in zip(layers, jax.random.split(key, len(layers)), strict=True):
        params[layer]["kernel"] = draw(layer_key, params[layer]["kernel"].shape, jnp.float32)
    return params, running


def apply(
    params: Tree, running: Tree, images: jax.Array, configuration: Configuration, *, train: bool
) -> tuple[jax.Array, Tree]:
    """What the last layer gives, float32 (N, classes), before the output's function; the running statistics."""
    _, rows, columns, channels = images.shape
    model = configuration.network((rows, columns, channels))
    if configuration.dtype != "float32":  # γ and β stay: batch norm computes in float32 whatever comes in
        params = {
            layer: {name: a if name in ("gamma", "beta") else a.astype(configuration.dtype) for name, a in part.items()}
            for layer, part in params.items()
        }
    z, running = MODELS[configuration.model].apply(params, running, images, model, train=train)
    return z.astype(jnp.float32), running


def losses(z: jax.Array, labels: jax.Array, configuration: Configuration) -> jax.Array:
    """The loss of each example, (N,)."""
    bn = LAYERS[configuration.attachment]
    if configuration.loss == "cross_entropy":
        return bn.softmax_cross_entropy_with_integer_labels(z, labels)
    targets = jax.nn.one_hot(labels, configuration.classes, dtype=z.dtype)
    return bn.squared_error(output(z, configuration), targets)


def output(z: jax.Array, configuration: Configuration) -> jax.Array:
    """The network's answer, (N, classes): the class is where it is largest."""
    return getattr(LAYERS[configuration.attachment], configuration.output)(z)
