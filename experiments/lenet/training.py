"""Training: a compiled step, and a loop that can stop anywhere and go on as if it had not.

One program for a step, called in a loop, rather than a scan over the epoch: a step is then the same program
wherever a run is resumed. Neither is faster: 3.0 ms a step of LeNet-5 with batches of 32, on two CPU cores.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from experiments import _command, _data
from experiments.lenet import network
from experiments.lenet.configuration import Configuration

CHUNK = 512  # images evaluated at once
ABSURD = 1e6  # a mean loss no training comes back from; with batch norm it need not become infinite


class State(NamedTuple):
    """Everything that decides how a run goes on."""

    params: Any
    running: Any
    optimizer: Any
    key: jax.Array  # key data: the orders and the shifts are drawn from it
    norms: dict[str, jax.Array]  # of the gradient of each layer's kernel, summed over the steps of this epoch
    step: jax.Array  # steps taken, int32 ()
    diverged: jax.Array  # the first step at which the loss was absurd or no number, int32 (); 0 for none


class Progress(NamedTuple):
    """What a run has shown so far."""

    history: dict[str, Any]  # a number for each epoch: losses, accuracies, seconds, gradient norms by layer
    seconds: float  # of the epoch under way


class Answers(NamedTuple):
    """A network's answer to each image."""

    losses: np.ndarray  # (N,)
    outputs: np.ndarray  # (N, classes)
    classes: np.ndarray  # (N,)
    loss: float
    accuracy: float


def steps_per_epoch(images: int, configuration: Configuration) -> int:
    """Steps of an epoch, the last of which has the images left over."""
    return math.ceil(images / configuration.batch_size)


def start(image_shape: tuple[int, int, int], steps: int, configuration: Configuration) -> State:
    """The state before the first of `steps` steps."""
    drawn, later = jax.random.split(jax.random.key(configuration.seed))
    params, running = network.init(drawn, image_shape, configuration)
    norms = {layer: jnp.zeros((), jnp.float32) for layer in params if "kernel" in params[layer]}
    optimizer = network.optimizer(configuration, steps).init(params)
    step, diverged = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # both, as a step is given their memory
    return State(params, running, optimizer, jax.random.key_data(later), norms, step, diverged)


def train(
    state: State,
    progress: Progress,
    data: _data.Data,
    configuration: Configuration,
    save: Callable[[State, Progress], None],
    *,
    every: int = 0,
    title: str = "",
    to_the_end: bool = False,
) -> tuple[State, Progress]:
    """Takes the steps that are left from a state and progress, of a new run or as they were saved.

    Args:
      save: called after every epoch, and after `every` steps, with all that is needed to go on.
      title: of the progress bar.
      to_the_end: go on where the loss has diverged, as a comparison does.

    Raises:
      Refused: the loss has diverged; what was saved before is as it was.
    """
    history, earlier = progress
    count, size = len(data.train_labels), configuration.batch_size
    in_epoch = steps_per_epoch(count, configuration)
    total = in_epoch * configuration.epochs
    take = _compiled_step(configuration, total)
    state, there = jax.device_put((state, data), _placement(configuration.devices))

    def rows_of(step: int, order: np.ndarray) -> jax.Array:
        rows = order[step * size : (step + 1) * size]
        return jax.device_put(rows, _placement(configuration.devices, len(rows)))

    def check(state: State) -> None:
        if (at := int(state.diverged)) and not to_the_end:
            raise _command.Refused(
                f"diverged: from step {at} on, in epoch {1 + (at - 1) // in_epoch}, the loss is above {ABSURD:g} or no "
                f"number. Take a lower --learning-rate than {configuration.learning_rate:g}, or --warmup"
            )

    taken = int(state.step)
    if taken < total:  # both sizes of batch are compiled before the clock starts
        _command.say("compiling a step of training …")
        for i in {0, in_epoch - 1}:
            take(jax.tree.map(jnp.copy, state), there, rows_of(i, np.arange(count)))
        _command.say("compiling the evaluation …")
        answers(state, data.test_images[:1], data.test_labels[:1], data.levels, configuration)
    with _command.bar(total=total, initial=taken, desc=title, unit="step") as bar:
        for epoch in range(taken // in_epoch, configuration.epochs):
            begun = time.perf_counter() - earlier
            order = np.asarray(_data.epoch_order(jax.random.wrap_key_data(state.key), epoch, count))
            for i in range(taken % in_epoch, in_epoch):
                state = take(state, there, rows_of(i, order))
                taken += 1
                bar.update()
                if every and taken % every == 0 and taken % in_epoch:
                    check(jax.block_until_ready(state))
                    save(state, Progress(history, time.perf_counter() - begun))
            check(jax.block_until_ready(state))
            _note(history, state, in_epoch, time.perf_counter() - begun, data, configuration)
            if not history["training_loss"][-1] < ABSURD and not int(state.diverged):  # its last step was too far
                state = state._replace(diverged=jnp.copy(state.step))
                check(state)
            state, earlier = state._replace(norms=jax.tree.map(jnp.zeros_like, state.norms)), 0.0
            save(state, Progress(history, 0.0))
            shown = "loss {training_loss:.4f}, accuracy {training_accuracy:.1%}, test {test_accuracy:.1%}"
            bar.set_postfix_str(shown.format(**{name: history[name][-1] for name in CURVES}))
    return state, Progress(history, 0.0)


CURVES = ("training_loss", "training_accuracy", "test_loss", "test_accuracy")


def new_history(state: State) -> dict[str, Any]:
    """No epoch yet."""
    return {name: [] for name in (*CURVES, "seconds")} | {"gradient_norms": {layer: [] for layer in state.norms}}


def answers(
    state: State, images: np.ndarray, labels: np.ndarray, levels: np.ndarray, configuration: Configuration
) -> Answers:
    """The network as it is used, normalized by the running statistics. One program, for chunks of one size."""
    params, running = jax.device_get((state.params, state.running))
    found = []
    for first in range(0, len(labels), CHUNK):
        rows = np.minimum(np.arange(first, first + CHUNK), len(labels) - 1)  # the last chunk repeats the last image
        chunk = jax.device_get(_answer(params, running, images[rows], labels[rows], levels, configuration))
        found.append([a[: len(labels) - first] for a in chunk])
    losses, outputs = (np.concatenate(parts) for parts in zip(*found, strict=True))
    classes = outputs.argmax(-1)
    return Answers(losses, outputs, classes, float(losses.mean(dtype=np.float64)), float((classes == labels).mean()))


def _step(state: State, data: Any, rows: jax.Array, configuration: Configuration, steps: int) -> State:
    """One step of `steps`, on the training images of these rows, (n,)."""
    batch, targets = data.train_images[rows], data.train_labels[rows]
    if configuration.shift:
        key = jax.random.split(jax.random.wrap_key_data(state.key))[0]
        batch = _data.shifted(jax.random.fold_in(key, state.step), batch, configuration.shift)

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
        z, running = network.apply(params, state.running, data.levels[batch], configuration, train=True)
        return network.losses(z, targets, configuration).mean(), running

    (loss, running), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    norms = {layer: norm + jnp.linalg.norm(gradient[layer]["kernel"]) for layer, norm in state.norms.items()}
    changes, optimizer = network.optimizer(configuration, steps).update(gradient, state.optimizer, state.params)
    params, step = optax.apply_updates(state.params, changes), state.step + 1
    lost = (state.diverged == 0) & ~(loss < ABSURD)
    return State(params, running, optimizer, state.key, norms, step, jnp.where(lost, step, state.diverged))


@functools.cache
def _compiled_step(configuration: Configuration, steps: int) -> Callable[..., State]:
    step = functools.partial(_step, configuration=configuration, steps=steps)
    return jax.jit(step, donate_argnums=0, out_shardings=_placement(configuration.devices))


@functools.partial(jax.jit, static_argnums=5)
def _answer(
    params: Any, running: Any, images: jax.Array, labels: jax.Array, levels: jax.Array, configuration: Configuration
) -> Any:
    z, _ = network.apply(params, running, levels[images], configuration, train=False)
    return network.losses(z, labels, configuration), network.output(z, configuration)


def _placement(devices: int, rows: int = 0) -> Sharding:
    """Where arrays lie: rows of a batch spread evenly, where that can be done; all else on every device."""
    if devices == 1:
        return SingleDeviceSharding(jax.devices()[0])
    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))
    return NamedSharding(mesh, P("batch") if rows and rows % devices == 0 else P())


def _note(history: dict, state: State, steps: int, seconds: float, data: _data.Data, configuration: Configuration):
    """Adds an epoch to the history."""
    sets = {"training": (data.train_images, data.train_labels), "test": (data.test_images, data.test_labels)}
    for name, (images, labels) in sets.items():
        found = answers(state, images, labels, data.levels, configuration)
        history[f"{name}_loss"].append(found.loss)
        history[f"{name}_accuracy"].append(found.accuracy)
    history["seconds"].append(seconds)
    for layer, norm in state.norms.items():
        history["gradient_norms"][layer].append(float(norm) / steps)
