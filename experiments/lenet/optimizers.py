"""optax's optimizers and schedules by the configuration's names."""

import functools
from typing import Any

import jax
import optax

from experiments.lenet.configuration import Configuration


@functools.cache  # one object for a configuration: a static argument of jit
def optimizer(configuration: Configuration, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps, decay and schedule in it."""
    rate, decay, momentum = schedule(configuration, steps), configuration.decay, configuration.momentum
    name = configuration.optimizer
    if name in ("adamw", "lamb", "lion"):  # these subtract the decay themselves
        return getattr(optax, name)(rate, weight_decay=decay, mask=kernels)
    if name in ("momentum", "nesterov"):
        rule = optax.sgd(rate, momentum=momentum, nesterov=name == "nesterov")
    else:
        rule = getattr(optax, name)(rate)
    return optax.chain(optax.add_decayed_weights(decay, mask=kernels), rule) if decay else rule


def schedule(configuration: Configuration, steps: int) -> optax.Schedule:
    """The learning rate at each step."""
    highest = configuration.learning_rate
    rising = steps * configuration.warmup // configuration.epochs
    falling = steps - rising
    rate: optax.Schedule
    match configuration.schedule:
        case "cosine":
            rate = optax.cosine_decay_schedule(highest, falling)
        case "linear":
            rate = optax.linear_schedule(highest, 0.0, falling)
        case "steps":
            rate = optax.piecewise_constant_schedule(highest, {falling // 2: 0.1, falling * 3 // 4: 0.1})
        case "one_cycle":
            rate = optax.cosine_onecycle_schedule(steps, highest)
        case _:
            rate = optax.constant_schedule(highest)
    if not rising:
        return rate
    return optax.join_schedules([optax.linear_schedule(0.0, highest, rising), rate], [rising])


def kernels(params: Any) -> Any:
    """True for every kernel, False for γ, β and biases: what decays."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
