"""LeNet-5 trained by all devices of all processes together, its batch spread over them.

    python experiments/distributed/run.py                                   the devices of this process
    python experiments/distributed/run.py --cluster                         one process of many: Slurm, a TPU pod
    python experiments/distributed/run.py --coordinator-address HOST:PORT --num-processes 2 --process-id 0

Whatever the number of devices and processes, the batches are the same, and so is the loss of every step, to rounding.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

from bnderiv.models import lenet5
from experiments import _command, _data, _report
from experiments.distributed import training

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained, and over which processes."""

    cluster: bool = False
    """One of many processes, where JAX finds the others by itself: Slurm, Open MPI, a TPU pod."""
    coordinator_address: str | None = None
    """One of many processes: host and port of the first one."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    group: int = 0
    """Devices that share the statistics of batch norm; 0 for all (synchronized), 1 for none (ghost batches)."""
    data: Path | None = None
    """Folder of IDX files (see experiments/_data.py); without it, scikit-learn's digits."""
    batch_size: int = 64
    """Images of a step, over all devices."""
    epochs: int = 3
    rate: float = 0.03
    """Learning rate, constant; Nesterov-free momentum of 0.9."""
    dtype: Literal["float32", "float64"] = "float32"
    seed: int = 0
    """Draws the parameters and the order of the images."""
    compare: Path | None = None
    """run.json of another run: draws both losses and their difference."""
    out: Path = RESULTS / "here"
    """Folder of the results, written by the first process."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate}")
        if self.group < 0:
            raise ValueError(f"group must be at least 0, got {self.group}")
        by_hand = (self.coordinator_address, self.num_processes, self.process_id)
        if any(a is None for a in by_hand) and any(a is not None for a in by_hand):
            raise ValueError("coordinator_address, num_processes and process_id come together")
        if self.cluster and self.coordinator_address:
            raise ValueError("cluster finds the other processes by itself: no coordinator_address with it")
        if self.compare is not None and not self.cluster and not self.process_id:  # the first process alone reads it
            other_run(self.compare)  # to be refused before hours of training, not after


def other_run(path: Path) -> dict[str, Any]:
    """The run.json of another run."""
    try:
        other = json.loads(path.read_text())
        if not isinstance(other["losses"], list) or not isinstance(other["name"], str):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"compare must be the run.json of another run, got {path} ({error!r})") from None
    return other


def join(settings: Settings) -> None:
    """Before anything else of JAX: from here on jax.devices() are those of all processes."""
    if settings.cluster:
        jax.distributed.initialize()
    elif settings.coordinator_address:
        jax.distributed.initialize(settings.coordinator_address, settings.num_processes, settings.process_id)


def train(settings: Settings, data: _data.Data, devices: list[Any]) -> dict[str, Any]:
    """The loss of every step and the test accuracy; the same in every process."""
    if settings.batch_size % len(devices):
        raise ValueError(
            f"batch_size must be a multiple of the number of devices, {len(devices)}, got {settings.batch_size}"
        )
    images = len(data.train_labels)
    if images < settings.batch_size:
        raise ValueError(f"batch_size must be at most the number of images, {images}, got {settings.batch_size}")
    if settings.compare and jax.process_index() == 0:
        _as_many(other_run(settings.compare)["losses"], images // settings.batch_size * settings.epochs)
    mesh = training.mesh_of(devices, settings.group)
    config = lenet5.Config(image_shape=data.image_shape, dtype=settings.dtype)
    init_key, order_key = jax.random.split(jax.random.key(settings.seed))
    network = training.init(init_key, config, mesh)
    step = training.make_step(config, mesh, settings.rate)
    losses, start = [], time.perf_counter()
    for epoch in range(settings.epochs):
        order = np.asarray(_data.epoch_order(order_key, epoch, images))  # drawn by every process, the same in all
        batches = order[: images // settings.batch_size * settings.batch_size].reshape(-1, settings.batch_size)
        for rows in batches:
            # Each process takes from its own copy of the images the rows of its own devices.
            batch = (training.spread(a[rows], mesh) for a in (data.train_images, data.train_labels))
            network, loss = step(network, *batch)
            # Waited for, so that processes on CPUs never have messages of more than one step under way.
            losses.append(float(loss))
        if jax.process_index() == 0:
            print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}", flush=True)
    seconds = time.perf_counter() - start
    accuracy = training.evaluate(network, config, data.test_images, data.test_labels)
    return {"losses": losses, "test_accuracy": accuracy, "seconds": round(seconds, 1)}


def differences(losses: list[float], others: list[float]) -> np.ndarray:
    """|a − b| / |b| for each step."""
    _as_many(others, len(losses))
    a, b = np.array(losses), np.array(others)
    return np.abs(a - b) / np.abs(b)


def _as_many(others: list[float], steps: int) -> None:
    if len(others) != steps:
        raise ValueError(f"compare: that run has {len(others)} steps, this one {steps}")


def draw(curves: dict[str, list[float]]) -> bytes:
    """The loss of each step; with two runs also how far they are apart."""
    figure, axes = plt.subplots(
        len(curves), 1, figsize=(8, 2.6 * len(curves) + 0.6), layout="constrained", squeeze=False
    )
    (names, losses), axes = zip(*curves.items(), strict=True), axes[:, 0]
    steps = np.arange(1, len(losses[0]) + 1)
    for name, values, (style, width) in zip(names, losses, (("-", 1.2), ("--", 2.5)), strict=False):
        axes[0].plot(steps, values, style, lw=width, label=name, alpha=0.8)
    axes[0].set(ylabel="loss of the batch", yscale="log", title="Training LeNet-5 with batch norm")
    axes[0].legend()
    if len(curves) > 1:
        axes[1].plot(steps, np.maximum(differences(*losses), 1e-17), ".", ms=4, color="C3")
        axes[1].set(ylabel="difference / loss", yscale="log", title="How far the two are apart")
    for each in axes:
        each.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    return _report.png(figure)


def name_of(processes: int, devices: int, group: int) -> str:
    """Such as "2 processes, 4 devices each"."""
    each = devices // processes
    words = f"{processes} process{'es' if processes > 1 else ''}, {each} device{'s' if each > 1 else ''}"
    words += " each" if processes > 1 else ""
    return words + (f", statistics of {group}" if group and group != devices else "")


def write(settings: Settings, result: dict[str, Any], data: _data.Data) -> None:
    """The numbers, the picture and the report."""
    devices, processes = jax.device_count(), jax.process_count()
    name = name_of(processes, devices, settings.group)
    curves = {name: result["losses"]}
    summary = f"{name}: {100 * result['test_accuracy']:.2f} % of the test images recognized."
    comparison = {}
    if settings.compare:
        other = other_run(settings.compare)
        apart = differences(result["losses"], other["losses"])
        curves[other["name"]] = other["losses"]
        comparison = {
            "with": other["name"],
            "first_step": float(apart[0]),
            "median": float(np.median(apart)),
            "largest": float(apart.max()),
        }
        summary += (
            f" Losses against {other['name']}: {apart[0]:.1e} apart at the first step, {np.median(apart):.1e} in the "
            f"median, {apart.max():.1e} at most."
        )
    configuration = dataclasses.asdict(settings) | {"data": "IDX files" if settings.data else None}
    for elsewhere in ("out", "compare", "coordinator_address", "process_id"):
        del configuration[elsewhere]
    words = (
        f" --{field.name.replace('_', '-')}" + (f" {configuration[field.name]}" if field.type is not bool else "")
        for field in dataclasses.fields(settings)
        if field.name in configuration and getattr(settings, field.name) != field.default
    )
    content = {
        "name": name,
        "date": _report.today(),
        "machine": _report.machine(),
        "versions": _report.versions(),
        "images": f"{len(data.train_labels)} training images, {len(data.test_labels)} test images",
        "processes": processes,
        "devices": devices,
        "configuration": configuration,
        "comparison": comparison or None,
        **result,
    }
    picture = draw(curves)
    report = _report.page(
        f"LeNet-5 on {name}",
        summary,
        [_report.Picture("Loss", picture, "The loss of every step, and the relative difference of two runs.")],
        command="python experiments/distributed/run.py"
        + "".join(words).replace("IDX files", "FOLDER")
        + (", in each process its own --process-id" if settings.coordinator_address else ""),
        configuration=configuration,
        facts={"seconds": result["seconds"]},
    )
    files = {"run.json": (json.dumps(content) + "\n").encode(), "losses.png": picture, "report.html": report}
    for file, what in files.items():
        _report.write(settings.out / file, what)
    print(summary, *(settings.out / file for file in files), sep="\n")


def main(arguments: list[str] | None = None) -> None:
    settings = tyro.cli(Settings, description=__doc__, args=arguments)
    jax.config.update("jax_enable_x64", settings.dtype == "float64")
    try:
        join(settings)
        if jax.process_index() == 0:
            _command.make(settings.out)
        data = _data.load(settings.data)
        result = train(settings, data, jax.devices())
        if jax.process_index() == 0:
            write(settings, result, data)
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    _command.run(main)
