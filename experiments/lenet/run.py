"""LeNet-5 with batch norm learns handwritten digits, every gradient derived by hand.

    python experiments/lenet/run.py                      trains on scikit-learn's digits; nothing is downloaded
    python experiments/lenet/run.py train --help         every option of a training
    python experiments/lenet/run.py train --config FILE  options from a file, .toml or .json
    python experiments/lenet/run.py resume RUN           goes on where a run stopped, killed or not
    python experiments/lenet/run.py test RUN             the accuracy of a run's last checkpoint
    python experiments/lenet/run.py plot RUN             draws its pictures and its report again

RUN is the folder of a run, printed when it begins: configuration, checkpoints and results are in it.
"""

import contextlib
import dataclasses
import datetime
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from tyro.conf import Positional, arg, subcommand

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

from experiments import _command, _data, _report
from experiments.lenet import checkpoints, configuration, results, training
from experiments.lenet.configuration import Configuration

RUNS = Path(__file__).parent / "runs"
CONFIGURATION = "configuration.json"


class Refused(Exception):
    """The command cannot be done; the message says why."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains a network in a folder of its own."""

    configuration: Annotated[Configuration, arg(name="")] = dataclasses.field(default_factory=Configuration)
    config: Path | None = None
    """File of options, .toml or .json; those on the command line come before those in it."""
    out: Path | None = None
    """Folder of the run. None: a new one, named by the time. In a folder of the same run, goes on with it."""
    checkpoint_every: int = 0
    """Write a checkpoint after every so many steps; 0: after every epoch only."""


@dataclasses.dataclass(frozen=True)
class Resume:
    """Goes on with a run from its last checkpoint, to the bits it would have ended with."""

    run: Positional[Path]
    """Its folder."""
    data: str | None = None
    """Where the run's images lie, if they were moved."""
    checkpoint_every: int = 0
    """As of train."""


@dataclasses.dataclass(frozen=True)
class Test:
    """Prints loss and accuracy of a run's last checkpoint."""

    run: Positional[Path]
    """Its folder."""
    data: str | None = None
    """Images of another folder in place of the run's; or where these lie, if they were moved."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draws a run's pictures and its report from its last checkpoint, trained to the end or not."""

    run: Positional[Path]
    """Its folder."""
    data: str | None = None
    """Where the run's images lie, if they were moved."""


def main(arguments: list[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "train")
    try:
        command = _parse(words)
        match command:
            case Train():
                out = command.out or RUNS / f"{datetime.datetime.now():%Y-%m-%d_%H%M%S}"
                train(command.configuration, out, every=command.checkpoint_every)
            case Resume():
                chosen = _configuration_of(command.run, command.data)
                if not checkpoints.Checkpoints(command.run).steps():
                    raise Refused(f"{command.run}: no checkpoint to go on from; train again, with --out {command.run}")
                train(chosen, command.run, every=command.checkpoint_every)
            case Test():
                test(command.run, command.data)
            case Plot():
                plot(command.run, command.data)
    except (Refused, checkpoints.CheckpointError) as error:
        sys.exit(f"{error}")


def train(chosen: Configuration, out: Path, *, every: int = 0, title: str = "") -> dict[str, Any]:
    """Trains, or goes on, in the folder `out`; writes the results and prints what came of it; returns the history."""
    if every < 0:
        raise Refused(f"checkpoint_every must be at least 0, got {every}")
    data = load(chosen)
    _check_devices(chosen)
    _claim(out, chosen)
    state, progress, kept = _state(chosen, data, out)
    steps = training.steps_per_epoch(len(data.train_labels), chosen) * chosen.epochs
    if int(state.step) == steps and (out / "report.html").exists():
        print(f"{out} is finished; python experiments/lenet/run.py plot {out} draws it again", file=sys.stderr)
        return progress.history
    if kept.steps():
        print(f"goes on from step {int(state.step)} in {out}", file=sys.stderr)
    else:
        print(f"run {out}: if it stops, python experiments/lenet/run.py resume {out}", file=sys.stderr)
    fingerprint = data.fingerprint()

    def save(state: training.State, progress: training.Progress) -> None:
        kept.save(state, progress, chosen, fingerprint)

    state, progress = training.train(
        state, progress, data, chosen, save, every=every, title=title or results.MODELS[chosen.model]
    )
    _finish(out, state, progress, data, chosen)
    return progress.history


def test(run: Path, data_source: str | None) -> None:
    """Prints loss and accuracy over the test images."""
    chosen = _configuration_of(run, data_source)
    data = load(chosen)
    state, *_ = _state(chosen, data, run, must_exist=True, any_images=data_source is not None)
    found = training.answers(state, data.test_images, data.test_labels, chosen)
    accuracy, images = found.accuracy(data.test_labels), len(data.test_labels)
    wrong = round((1 - accuracy) * images)
    print(f"step {int(state.step)}: test accuracy {accuracy:.2%} ({wrong} of {images} images wrong)")
    print(f"loss {found.loss():.4f}")


def plot(run: Path, data_source: str | None) -> None:
    """Writes a run's files again."""
    chosen = _configuration_of(run, data_source)
    data = load(chosen)
    state, progress, _ = _state(chosen, data, run, must_exist=True)
    if not progress.history["test_loss"]:
        raise Refused(f"{run}: no epoch is finished yet, there is nothing to draw")
    _finish(run, state, progress, data, chosen)


def _parse(words: list[str]) -> Train | Resume | Test | Plot:
    """The command. What a file says is the default of what the command line says."""
    files = [
        word.partition("=")[2] or following
        for word, following in zip(words, [*words[1:], ""], strict=True)
        if word == "--config" or word.startswith("--config=")
    ]
    try:
        start = configuration.read(Path(files[-1])) if files and files[-1] else Configuration()
        return tyro.cli(  # type: ignore[call-overload]
            Annotated[Train, subcommand("train", default=Train(start))]
            | Annotated[Resume, subcommand("resume")]
            | Annotated[Test, subcommand("test")]
            | Annotated[Plot, subcommand("plot")],
            args=words,
            prog="run.py",
            description=__doc__,
        )
    except ValueError as error:
        raise Refused(str(error)) from error


def load(chosen: Configuration) -> _data.Data:
    try:
        data = _data.load(chosen.data, classes=chosen.classes, validation=chosen.validation)
        chosen.network(data.image_shape)  # LeNet-5 refuses images that are too small
    except ValueError as error:
        raise Refused(str(error)) from error
    return data


def _check_devices(chosen: Configuration) -> None:
    if chosen.devices == 1:
        return
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # too late, JAX has begun
            jax.config.update("jax_num_cpu_devices", chosen.devices)  # a CPU stands in for several devices
    if chosen.devices > (there := len(jax.devices())):
        raise Refused(f"devices is {chosen.devices}, but JAX sees {there} of kind {jax.devices()[0].device_kind}")


def _claim(out: Path, chosen: Configuration) -> None:
    """Makes `out` the folder of this run. One that holds another run, or anything else, is left as it is."""
    file = out / CONFIGURATION
    if file.exists():
        found = _read(file)
        if different := found.differences(chosen):
            raise Refused(f"{out} holds a run of another configuration: {'; '.join(different)}. Choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} exists and is no run's folder ({CONFIGURATION} is not in it). Choose another --out")
    try:
        _report.write(file, configuration.as_json(chosen))
    except OSError as error:
        raise Refused(f"{file}: cannot be written ({error.strerror})") from error


def _configuration_of(run: Path, data_source: str | None) -> Configuration:
    file = run / CONFIGURATION
    if not file.exists():
        raise Refused(f"{run}: no run's folder ({CONFIGURATION} is not in it)")
    found = _read(file)
    return found if data_source is None else dataclasses.replace(found, data=data_source)


def _read(file: Path) -> Configuration:
    try:
        return configuration.read(file)
    except ValueError as error:
        raise Refused(str(error)) from error


def _state(
    chosen: Configuration, data: _data.Data, run: Path, *, must_exist: bool = False, any_images: bool = False
) -> tuple[training.State, training.Progress, checkpoints.Checkpoints]:
    """The last checkpoint's state, or a new one."""
    kept = checkpoints.Checkpoints(run)
    steps = training.steps_per_epoch(len(data.train_labels), chosen) * chosen.epochs
    state = training.start(data.image_shape, steps, chosen)
    progress = training.Progress(training.new_history(state), 0.0)
    if kept.steps() or must_exist:
        state, progress = kept.restore(state, chosen, None if any_images else data.fingerprint())
    return state, progress, kept


def _finish(
    out: Path, state: training.State, progress: training.Progress, data: _data.Data, chosen: Configuration
) -> None:
    """Writes the results and prints the last line and the files."""
    try:
        files = results.save(out, state, progress, data, chosen)
    except OSError as error:
        raise Refused(
            f"{out}: the results cannot be written ({error.strerror}); the checkpoints are complete"
        ) from error
    history = progress.history
    images = len(data.test_labels)
    wrong = round((1 - history["test_accuracy"][-1]) * images)
    print(
        f"test accuracy {history['test_accuracy'][-1]:.2%} ({wrong} of {images} images wrong),"
        f" trained in {sum(history['seconds']):.0f} s"
    )
    for what, path in files.items():
        print(f"{what:<13} {path}")


if __name__ == "__main__":
    _command.run(main)
