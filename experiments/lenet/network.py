"""What a configuration names: the network, how its parameters are drawn, its loss; optax's optimizer and schedule."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.nn import initializers

import bnderiv
from bnderiv.models import lenet5, mlp
from experiments.lenet.configuration import Configuration

MODELS: dict[str, Any] = {"lenet5": lenet5, "mlp": mlp}
LAYERS = {"closed_form": bnderiv, "forward_mode": bnderiv.forward_mode, "autodiff": bnderiv.reference}


def init(key: jax.Array, image_shape: tuple[int, int, int], configuration: Configuration) -> tuple[Any, Any]:
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
    params: Any, running: Any, images: jax.Array, configuration: Configuration, *, train: bool
) -> tuple[jax.Array, Any]:
    """What the last layer gives, float32 (N, classes), before the output's function; the running statistics."""

    def cast(path: Any, a: jax.Array) -> jax.Array:
        """γ and β stay: batch norm computes in float32 whatever comes in."""
        return a if path[-1].key in ("gamma", "beta") else a.astype(configuration.dtype)

    _, rows, columns, channels = images.shape
    model = configuration.network((rows, columns, channels))
    params = jax.tree_util.tree_map_with_path(cast, params)
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


def optimizer(configuration: Configuration, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps, decay and schedule in it."""
    rate, decay, name = schedule(configuration, steps), configuration.decay, configuration.optimizer
    if name in ("adamw", "lamb", "lion"):  # these subtract the decay themselves
        return getattr(optax, name)(rate, weight_decay=decay, mask=kernels)
    if name in ("momentum", "nesterov"):
        rule = optax.sgd(rate, momentum=configuration.momentum, nesterov=name == "nesterov")
    else:
        rule = getattr(optax, name)(rate)
    return optax.chain(optax.add_decayed_weights(decay, mask=kernels), rule) if decay else rule


def schedule(configuration: Configuration, steps: int) -> optax.Schedule:
    """The learning rate at each step."""
    highest = configuration.learning_rate
    rising = steps * configuration.warmup // configuration.epochs
    falling = steps - rising
    rate = {
        "constant": optax.constant_schedule(highest),
        "cosine": optax.cosine_decay_schedule(highest, falling),
        "linear": optax.linear_schedule(highest, 0.0, falling),
        "steps": optax.piecewise_constant_schedule(highest, {falling // 2: 0.1, falling * 3 // 4: 0.1}),
        "one_cycle": optax.cosine_onecycle_schedule(steps, highest),
    }[configuration.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, highest, rising), rate], [rising]) if rising else rate


def kernels(params: Any) -> Any:
    """True for every kernel, False for γ, β and biases: what decays."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
