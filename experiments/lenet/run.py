"""LeNet-5 with batch norm learns handwritten digits, every gradient derived by hand.

    python -m experiments.lenet.run                      trains on scikit-learn's digits; nothing is downloaded
    python -m experiments.lenet.run train --help         every option of a training
    python -m experiments.lenet.run train --config FILE  options from a file, .toml or .json
    python -m experiments.lenet.run resume RUN           goes on where a run stopped, killed or not
    python -m experiments.lenet.run test RUN             the accuracy of a run's last checkpoint
    python -m experiments.lenet.run plot RUN             draws its pictures and its report again

RUN is the folder of a run, printed when it begins: configuration, checkpoints and results are in it.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.lenet.run")

import argparse
import contextlib
import dataclasses
import datetime
import functools
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from tyro.conf import Positional, arg, subcommand

from experiments import _data, _options, _report
from experiments.lenet import checkpoints, configuration, results, training
from experiments.lenet.configuration import Configuration
from experiments.lenet.training import Progress, State

RUNS = Path(__file__).parent / "runs"
CONFIGURATION = "configuration.json"


class Train(_options.Options):
    """Trains a network in a folder of its own."""

    configuration: Annotated[Configuration, arg(name="")] = dataclasses.field(default_factory=Configuration)
    config: Path | None = None
    """A file of options, .toml or .json. Options on the command line come before those in it."""
    out: Path | None = None
    """The folder of the run. None takes a new one in runs/, named by the time; a folder of the same run goes on."""
    checkpoint_every: int = 0
    """The steps between two checkpoints, besides the checkpoint after every epoch; 0 for none besides."""


class OfRun(_options.Options):
    """A run that there is."""

    run: Positional[Path]
    """The folder of the run."""
    data: str | None = None
    """The folder of the run's images, if they were moved; test takes other images, too."""


class Resume(OfRun):
    """Goes on with a run from its last checkpoint, to the bits it would have ended with."""

    checkpoint_every: int = 0
    """The steps between two checkpoints, besides the checkpoint after every epoch; 0 for none besides."""


class Test(OfRun):
    """Prints loss and accuracy of a run's last checkpoint."""


class Plot(OfRun):
    """Draws a run's pictures and its report from its last checkpoint, trained to the end or not."""


@_command.command
def main(arguments: list[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "train")
    match command := _parse(words):
        case Train():
            out = command.out or RUNS / f"{datetime.datetime.now():%Y-%m-%d_%H%M%S}"
            train(command.configuration, out, every=command.checkpoint_every)
        case Resume():
            chosen = _configuration_of(command)
            if not checkpoints.Checkpoints(command.run).steps():
                train_again = _command.again(__name__, "train", *chosen.arguments(), "--out", command.run)
                raise _command.Refused(f"{command.run}: no checkpoint to go on from; train again: {train_again}")
            train(chosen, command.run, every=command.checkpoint_every)
        case Test():
            test(command)
        case Plot():
            plot(command)


def train(
    chosen: Configuration, out: Path, *, every: int = 0, title: str = "", to_the_end: bool = False
) -> dict[str, Any]:
    """Trains, or goes on, in the folder `out`; writes the results and prints what came of it; returns the history."""
    if every < 0:
        raise _command.Refused(f"checkpoint_every must be at least 0, got {every}")
    data = load(chosen)
    _check_devices(chosen)
    _check_claim(out, chosen)
    kept = checkpoints.Checkpoints(out)
    with _command.alone(kept.folder):
        _report.write(out / CONFIGURATION, configuration.as_json(chosen))
        fingerprint, state = data.fingerprint(), _first_state(chosen, data)
        progress = Progress(training.new_history(state), 0.0)
        if kept.steps():
            state, progress = kept.restore(state, chosen, fingerprint)
        if len(progress.history["seconds"]) == chosen.epochs and (out / "report.html").exists():
            _command.say(f"{out} is finished; to draw it again: {_command.again(__name__, 'plot', out)}")
            return progress.history
        resume = f"to go on: {_command.again(__name__, 'resume', out)}"
        _command.say(f"goes on from step {int(state.step)} in {out}" if kept.steps() else f"run {out}; {resume}")
        save = functools.partial(kept.save, configuration=chosen, fingerprint=fingerprint)
        _command.if_interrupted(lambda: resume if kept.steps() else "There is no checkpoint yet to go on from")
        title = title or results.MODELS[chosen.model]
        state, progress = training.train(
            state, progress, data, chosen, save, every=every, title=title, to_the_end=to_the_end
        )
        if at := int(state.diverged):
            _command.say(f"{title}: the loss diverged at step {at}")
        _finish(out, state, progress, data, chosen)
        return progress.history


def test(command: Test) -> None:
    """Prints loss and accuracy over the test images."""
    chosen = _configuration_of(command)
    data = load(chosen)
    theirs = data.fingerprint() if command.data is None else None
    state, _ = checkpoints.Checkpoints(command.run).restore(_first_state(chosen, data), chosen, theirs)
    found = training.answers(state, data.test_images, data.test_labels, data.levels, chosen)
    wrong, images = (found.classes != data.test_labels).sum(), len(data.test_labels)
    print(f"step {int(state.step)}: test accuracy {found.accuracy:.2%} ({wrong} of {images} images wrong)")
    print(f"loss {found.loss:.4f}")


def plot(command: Plot) -> None:
    """Writes a run's files again."""
    chosen = _configuration_of(command)
    data = load(chosen)
    kept = checkpoints.Checkpoints(command.run)
    state, progress = kept.restore(_first_state(chosen, data), chosen, data.fingerprint())
    if not progress.history["test_loss"]:
        raise _command.Refused(f"{command.run}: no epoch is finished yet, there is nothing to draw")
    _finish(command.run, state, progress, data, chosen)


def _parse(words: list[str]) -> Train | Resume | Test | Plot:
    """The command. What a file says is the default of what the command line says."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?", const="")
    file = parser.parse_known_args(words)[0].config
    if file == "":
        raise _command.Refused("--config must name a file, .toml or .json")
    default = Train(configuration=configuration.read(Path(file)) if file else Configuration())
    return tyro.cli(  # type: ignore[call-overload]
        Annotated[Train, subcommand("train", default=default)]
        | Annotated[Resume, subcommand("resume")]
        | Annotated[Test, subcommand("test")]
        | Annotated[Plot, subcommand("plot")],
        args=words,
        prog=f"python -m {__name__}",
        description=__doc__,
    )


def load(chosen: Configuration) -> _data.Data:
    data = _data.load(chosen.data, classes=chosen.classes, validation=chosen.validation, memory=chosen.memory)
    try:
        chosen.network(data.image_shape)  # LeNet-5 refuses images that are too small
    except ValueError as error:
        raise _command.Refused(f"{chosen.data}: {error}; --model mlp takes any") from error
    return data


def _check_devices(chosen: Configuration) -> None:
    if chosen.devices > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # too late, JAX has begun
            jax.config.update("jax_num_cpu_devices", chosen.devices)  # a CPU stands in for several devices
    if chosen.devices > len(there := jax.devices()):
        kind = there[0].device_kind
        raise _command.Refused(f"devices is {chosen.devices}, but JAX sees {len(there)} of kind {kind}")


def _check_claim(out: Path, chosen: Configuration) -> None:
    """Whether `out` can be the folder of this run. One that holds another run, or anything else, is left as it is."""
    file, advice = out / CONFIGURATION, "Choose another --out"
    with _command.refusing(f"{out} cannot be read", out, f". {advice}"):
        if file.exists():
            if different := configuration.read(file).differences(chosen):
                raise _command.Refused(f"{out} holds a run of another configuration: {'; '.join(different)}. {advice}")
        elif out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {"checkpoints"}):
            raise _command.Refused(f"{out} exists and is no run's folder ({CONFIGURATION} is not in it). {advice}")


def _configuration_of(command: OfRun) -> Configuration:
    run = command.run
    with _command.refusing(f"{run} cannot be read", run):
        if not (run / CONFIGURATION).exists():
            raise _command.Refused(f"{run}: no run's folder ({CONFIGURATION} is not in it)")
    found = configuration.read(run / CONFIGURATION)
    return found if command.data is None else dataclasses.replace(found, data=command.data)


def _first_state(chosen: Configuration, data: _data.Data) -> State:
    """The state before the first step, and the template of a restored one."""
    _command.say("making the first state …")
    steps = training.steps_per_epoch(len(data.train_labels), chosen) * chosen.epochs
    return training.start(data.image_shape, steps, chosen)


def _finish(out: Path, state: State, progress: Progress, data: _data.Data, chosen: Configuration) -> None:
    """Writes the results and prints what came of it."""
    try:
        results.save(out, state, progress, data, chosen)
    except _command.Refused as error:
        raise _command.Refused(
            f"{error}. The checkpoints are complete: make room, then {_command.again(__name__, 'resume', out)}"
        ) from error
