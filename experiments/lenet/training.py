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
from tqdm import tqdm

from experiments import _data
from experiments.lenet import network, optimizers
from experiments.lenet.configuration import Configuration

CHUNK = 512  # images evaluated at once


class State(NamedTuple):
    """Everything that decides how a run goes on."""

    params: Any
    running: Any
    optimizer: Any
    key: jax.Array  # key data: the orders and the shifts are drawn from it
    norms: dict[str, jax.Array]  # of the gradient of each layer's kernel, summed over the steps of this epoch
    step: jax.Array  # steps taken, int32 ()


class Progress(NamedTuple):
    """What a run has shown so far."""

    history: dict[str, Any]  # a number for each epoch: losses, accuracies, seconds, gradient norms by layer
    seconds: float  # of the epoch under way


class Answers(NamedTuple):
    """A network's answer to each image."""

    losses: np.ndarray  # (N,)
    outputs: np.ndarray  # (N, classes)

    def classes(self) -> np.ndarray:
        return self.outputs.argmax(-1)

    def loss(self) -> float:
        return float(self.losses.mean(dtype=np.float64))

    def accuracy(self, labels: np.ndarray) -> float:
        return float((self.classes() == labels).mean())


def steps_per_epoch(images: int, configuration: Configuration) -> int:
    """Steps of an epoch, the last of which has the images left over."""
    return math.ceil(images / configuration.batch_size)


def start(image_shape: tuple[int, int, int], steps: int, configuration: Configuration) -> State:
    """The state before the first of `steps` steps."""
    drawn, later = jax.random.split(jax.random.key(configuration.seed))
    params, running = network.init(drawn, image_shape, configuration)
    norms = {layer: jnp.zeros((), jnp.float32) for layer in params if "kernel" in params[layer]}
    optimizer = optimizers.optimizer(configuration, steps).init(params)
    return State(params, running, optimizer, jax.random.key_data(later), norms, jnp.zeros((), jnp.int32))


def train(
    state: State,
    progress: Progress,
    data: _data.Data,
    configuration: Configuration,
    save: Callable[[State, Progress], None],
    *,
    every: int = 0,
    title: str = "",
) -> tuple[State, Progress]:
    """Takes the steps that are left.

    Args:
      state, progress: of a new run, or as they were saved.
      data: the images.
      configuration: the run's.
      save: called after every epoch with all that is needed to go on.
      every: call it after every so many steps as well.
      title: of the progress bar.
    """
    history, earlier = progress
    count, size = len(data.train_labels), configuration.batch_size
    in_epoch = steps_per_epoch(count, configuration)
    total = in_epoch * configuration.epochs
    take = _compiled_step(configuration, total)
    state, images, labels = jax.device_put(
        (state, data.train_images, data.train_labels), _placement(configuration.devices)
    )

    def rows_of(step: int, order: np.ndarray) -> jax.Array:
        rows = order[step * size : (step + 1) * size]
        return jax.device_put(rows, _placement(configuration.devices, len(rows)))

    taken = int(state.step)
    if taken < total:  # both sizes of batch are compiled before the clock starts
        for i in {0, in_epoch - 1}:
            take(jax.tree.map(jnp.copy, state), images, labels, rows_of(i, np.arange(count)))
    with tqdm(total=total, initial=taken, desc=title, unit="step", dynamic_ncols=True) as bar:
        for epoch in range(taken // in_epoch, configuration.epochs):
            begun = time.perf_counter() - earlier
            order = np.asarray(_data.epoch_order(jax.random.wrap_key_data(state.key), epoch, count))
            for i in range(taken % in_epoch, in_epoch):
                state = take(state, images, labels, rows_of(i, order))
                taken += 1
                bar.update()
                if every and taken % every == 0 and taken % in_epoch:
                    jax.block_until_ready(state)
                    save(state, Progress(history, time.perf_counter() - begun))
            jax.block_until_ready(state)
            _note(history, state, in_epoch, time.perf_counter() - begun, data, configuration)
            state, earlier = state._replace(norms=jax.tree.map(jnp.zeros_like, state.norms)), 0.0
            save(state, Progress(history, 0.0))
            shown = "loss {training_loss:.4f}, accuracy {training_accuracy:.1%}, test {test_accuracy:.1%}"
            bar.set_postfix_str(shown.format(**{name: history[name][-1] for name in CURVES}))
    return state, Progress(history, 0.0)


CURVES = ("training_loss", "training_accuracy", "test_loss", "test_accuracy")


def new_history(state: State) -> dict[str, Any]:
    """No epoch yet."""
    return {name: [] for name in (*CURVES, "seconds")} | {"gradient_norms": {layer: [] for layer in state.norms}}


def answers(state: State, images: np.ndarray, labels: np.ndarray, configuration: Configuration) -> Answers:
    """The network as it is used, normalized by the running statistics. One program, for chunks of one size."""
    params, running = jax.device_get((state.params, state.running))
    found = []
    for first in range(0, len(labels), CHUNK):
        rows = np.minimum(np.arange(first, first + CHUNK), len(labels) - 1)  # the last chunk repeats the last image
        chunk = jax.device_get(_answer(params, running, images[rows], labels[rows], configuration))
        found.append([a[: len(labels) - first] for a in chunk])
    return Answers(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _step(
    state: State, images: jax.Array, labels: jax.Array, rows: jax.Array, configuration: Configuration, steps: int
) -> State:
    """One step of `steps`, on the images of these rows, (n,)."""
    batch, targets = images[rows], labels[rows]
    if configuration.shift:
        key = jax.random.split(jax.random.wrap_key_data(state.key))[0]
        batch = _data.shifted(jax.random.fold_in(key, state.step), batch, configuration.shift)

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
        z, running = network.apply(params, state.running, batch, configuration, train=True)
        return network.losses(z, targets, configuration).mean(), running

    gradient, running = jax.grad(mean_loss, has_aux=True)(state.params)
    norms = {layer: norm + jnp.linalg.norm(gradient[layer]["kernel"]) for layer, norm in state.norms.items()}
    changes, optimizer = optimizers.optimizer(configuration, steps).update(gradient, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, changes), running, optimizer, state.key, norms, state.step + 1)


@functools.cache
def _compiled_step(configuration: Configuration, steps: int) -> Callable[..., State]:
    step = functools.partial(_step, configuration=configuration, steps=steps)
    return jax.jit(step, donate_argnums=0, out_shardings=_placement(configuration.devices))


@functools.partial(jax.jit, static_argnums=4)
def _answer(params: Any, running: Any, images: jax.Array, labels: jax.Array, configuration: Configuration) -> Any:
    z, _ = network.apply(params, running, images, configuration, train=False)
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
        found = answers(state, images, labels, configuration)
        history[f"{name}_loss"].append(found.loss())
        history[f"{name}_accuracy"].append(found.accuracy(labels))
    history["seconds"].append(seconds)
    for layer, norm in state.norms.items():
        history["gradient_norms"][layer].append(float(norm) / steps)
