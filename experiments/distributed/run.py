"""LeNet-5 trained by all devices of all processes together, its batch spread over them.

    python -m experiments.distributed.run                                   the devices of this process
    python -m experiments.distributed.run --cluster                         one process of many: Slurm, a TPU pod
    python -m experiments.distributed.run --coordinator-address HOST:PORT --num-processes 2 --process-id 0

Whatever the number of devices and processes, the batches are the same, and so is the loss of every step, to rounding.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.distributed.run")

import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import matplotlib.pyplot as plt
import numpy as np

from bnderiv.models import lenet5
from experiments import _data, _options, _report
from experiments._options import AtLeastOne, Positive, Seed
from experiments.distributed import training


class Settings(_options.WithData):
    """What is trained, and over which processes. The first process writes the results."""

    OTHERWISE_THE_SAME = (*_options.Results.OTHERWISE_THE_SAME, "compare", "coordinator_address", "process_id")

    cluster: bool = False
    """This is one of many processes, and JAX finds the others by itself: Slurm, Open MPI, a TPU pod."""
    coordinator_address: str | None = None
    """This is one of many processes, and the first one has this host and port."""
    num_processes: int | None = None
    """The number of processes."""
    process_id: int | None = None
    """The number of this process, from 0."""
    group: Annotated[int, ">= 0"] = 0
    """The devices that share the statistics of batch norm: 0 for all (synchronized), 1 for none (ghost batches)."""
    batch_size: AtLeastOne = 64
    """The images of a step, over all devices."""
    epochs: AtLeastOne = 3
    """The passes over the training images."""
    rate: Positive = 0.03
    """The learning rate is constant; the momentum is 0.9, without Nesterov's look ahead."""
    dtype: Literal["float32", "float64"] = "float32"
    """The dtype of everything."""
    seed: Seed = 0
    """The seed of the parameters and of the order of the images."""
    compare: Path | None = None
    """The run.json of another run: both losses and their difference are drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        by_hand = (self.coordinator_address, self.num_processes, self.process_id)
        if any(a is None for a in by_hand) and any(a is not None for a in by_hand):
            raise _command.Refused("coordinator_address, num_processes and process_id come together")
        if self.cluster and self.coordinator_address:
            raise _command.Refused("cluster finds the other processes by itself: no coordinator_address with it")
        if self.compare is not None and not self.cluster and not self.process_id:  # the first process alone reads it
            other_run(self.compare)  # to be refused before hours of training, not after


def other_run(path: Path) -> dict[str, Any]:
    """The run.json of another run."""
    errors = (OSError, ValueError, KeyError, TypeError)
    with _command.refusing(f"compare must be the run.json of another run, got {path}", path, errors=errors):
        other = json.loads(path.read_text())
        if not isinstance(other["losses"], list) or not isinstance(other["name"], str):
            raise TypeError("it has no losses or no name")
        return other


def join(settings: Settings) -> None:
    """Before anything else of JAX: from here on jax.devices() are those of all processes."""
    if settings.cluster:
        jax.distributed.initialize()
    elif settings.coordinator_address:
        jax.distributed.initialize(settings.coordinator_address, settings.num_processes, settings.process_id)


def train(settings: Settings, data: _data.Data, devices: list[Any]) -> dict[str, Any]:
    """The loss of every step and the test accuracy; the same in every process."""
    images, size, first = len(data.train_labels), settings.batch_size, jax.process_index() == 0
    if size % len(devices):
        raise _command.Refused(f"batch_size must be a multiple of the number of devices, {len(devices)}, got {size}")
    if images < size:
        raise _command.Refused(f"batch_size must be at most the number of images, {images}, got {size}")
    in_epoch = images // size
    if settings.compare and first:
        _as_many(other_run(settings.compare)["losses"], in_epoch * settings.epochs)
    mesh = training.mesh_of(devices, settings.group)
    try:
        config = lenet5.Config(image_shape=data.image_shape, dtype=settings.dtype)
    except ValueError as error:
        raise _command.Refused(f"{settings.data}: {error}") from error
    init_key, order_key = jax.random.split(jax.random.key(settings.seed))
    network = training.init(init_key, config, mesh)
    step = training.make_step(config, mesh, settings.rate)
    losses, start = [], time.perf_counter()
    if first:
        _command.say("compiling a step of training …")
    for epoch in range(settings.epochs):
        order = np.asarray(_data.epoch_order(order_key, epoch, images))  # drawn by every process, the same in all
        for rows in order[: in_epoch * size].reshape(in_epoch, size):
            # Each process takes from its own copy of the images the rows of its own devices.
            batch = data.standardized(data.train_images[rows]), data.train_labels[rows]
            network, loss = step(network, *(training.spread(a, mesh) for a in batch))
            # Waited for, so that processes on CPUs never have messages of more than one step under way.
            losses.append(float(loss))
        if first:
            print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}", flush=True)
    seconds = time.perf_counter() - start
    accuracy = training.evaluate(network, config, data)
    return {"losses": losses, "test_accuracy": accuracy, "seconds": round(seconds, 1)}


def differences(losses: list[float], others: list[float]) -> np.ndarray:
    """|a − b| / |b| for each step."""
    _as_many(others, len(losses))
    a, b = np.array(losses), np.array(others)
    return np.abs(a - b) / np.abs(b)


def _as_many(others: list[float], steps: int) -> None:
    if len(others) != steps:
        raise _command.Refused(f"compare: that run has {len(others)} steps, this one {steps}")


def draw(curves: dict[str, list[float]]) -> bytes:
    """The loss of each step; with two runs also how far they are apart."""
    size = (_report.WIDTH, 2.8 * len(curves) + 0.6)
    figure, axes = plt.subplots(len(curves), figsize=size, squeeze=False, sharex=True)
    losses, axes = list(curves.values()), axes[:, 0]
    steps = np.arange(1, len(losses[0]) + 1)
    for (name, values), (style, width) in zip(curves.items(), (("-", 1.2), ("--", 2.5)), strict=False):
        axes[0].plot(steps, values, style, lw=width, label=name, alpha=0.8)
    axes[0].set(ylabel="loss of the batch", yscale="log", title="Training LeNet-5 with batch norm")
    axes[0].legend()
    if len(curves) > 1:
        apart = differences(*losses)
        drawn = apart > 0  # 0 has no place on a scale of logarithms
        axes[1].plot(steps[drawn], apart[drawn], ".", ms=5, color="C3")
        same = f" ({len(apart) - drawn.sum()} steps: not at all)" if not drawn.all() else ""
        axes[1].set(ylabel="difference / loss", yscale="log", title=f"How far the two are apart{same}")
    axes[-1].set_xlabel("step")
    return _report.png(figure)


def name_of(processes: int, devices: int, group: int) -> str:
    """Such as "2 processes, 4 devices each"."""
    each, many = devices // processes, processes > 1
    words = f"{processes} process{'es' * many}, {each} device{'s' * (each > 1)}{' each' * many}"
    return words + (f", statistics of {group}" if group not in (0, devices) else "")


def present(content: dict[str, Any]) -> _report.Report:
    """The page with the picture."""
    name, other = content["name"], content["comparison"]
    curves = {name: content["losses"]}
    summary = f"{name}: {100 * content['test_accuracy']:.2f} % of the test images recognized."
    if other:
        curves[other["with"]] = other["losses"]
        summary += (
            f" Losses against {other['with']}: {other['first_step']:.1e} apart at the first step, "
            f"{other['median']:.1e} in the median, {other['largest']:.1e} at most."
        )
    caption = "The loss of every step" + bool(other) * ", and the relative difference of the two runs" + "."
    return _report.Report(
        f"LeNet-5 on {name}",
        summary,
        [_report.Picture("Loss", "losses.png", draw(curves), caption)],
        facts={"images": content["images"], "seconds": content["seconds"]},
    )


def numbers(settings: Settings, result: dict[str, Any], data: _data.Data) -> dict[str, Any]:
    """What the first process writes."""
    devices, processes = jax.device_count(), jax.process_count()
    content = {
        "name": name_of(processes, devices, settings.group),
        "images": f"{len(data.train_labels)} training images, {len(data.test_labels)} test images",
        "processes": processes,
        "devices": devices,
        "comparison": None,
        **result,
    }
    if settings.compare:
        other = other_run(settings.compare)
        apart = differences(result["losses"], other["losses"])
        found = {"first_step": apart[0], "median": np.median(apart), "largest": apart.max()}
        content["comparison"] = {"with": other["name"], **found, "losses": other["losses"]}
    if settings.coordinator_address:  # a line for each process
        words = [*settings.anonymous().arguments(), "--coordinator-address", "HOST:PORT", "--process-id"]
        lines = (_command.line(type(settings).__module__, *words, i) for i in range(processes))
        content["command"] = "\n".join(lines)
    return content


@_command.command
def main(arguments: list[str] | None = None) -> None:
    settings = _options.parse(Settings, arguments)
    file = settings.folder() / "run.json"
    if not settings.redraw:
        jax.config.update("jax_enable_x64", settings.dtype == "float64")
        join(settings)
        first = jax.process_index() == 0
        if first:
            _command.make(file.parent)
        data = _data.load(settings.data, memory=settings.memory)
        result = train(settings, data, jax.devices())
        if not first:
            return
        _report.keep(file, numbers(settings, result, data), settings)
    _report.show(file, present)
