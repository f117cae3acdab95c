"""A run's checkpoints: whole or not at all, the one before kept until the next is complete.

A checkpoint is `checkpoints/<step>.npz` with the arrays of the state, and as JSON the configuration, the fingerprint of
the images and the history; the format has a checksum for each. What does not fit is refused, and nothing is deleted.
"""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import _command, _report
from experiments.lenet.configuration import Configuration, from_options
from experiments.lenet.training import Progress, State

KEPT = 2  # the last, and the one before in case the last is damaged


class Checkpoints:
    """The checkpoints of the run in a folder."""

    def __init__(self, run: Path) -> None:
        self.folder = run.absolute() / "checkpoints"

    def file(self, step: int) -> Path:
        return self.folder / f"{step}.npz"

    def steps(self) -> list[int]:
        """Of the complete checkpoints, in order."""
        with _command.refusing(f"{self.folder} cannot be read", self.folder), contextlib.suppress(FileNotFoundError):
            return sorted(int(path.stem) for path in self.folder.iterdir() if re.fullmatch(r"\d+\.npz", path.name))
        return []

    def save(self, state: State, progress: Progress, configuration: Configuration, fingerprint: str) -> None:
        """Writes a checkpoint beside the last one, then removes all but the last two; `fingerprint` is the images'."""
        step, last, then = int(state.step), "there is none before it", "start the run again"
        if kept := self.steps():
            last = f"that of step {kept[-1]} is complete"
            then = _command.again("experiments.lenet.run", "resume", self.folder.parent)
        about = {
            "configuration": dataclasses.asdict(configuration),
            "fingerprint": fingerprint,
            "step": step,
            "history": progress.history,
            "seconds": progress.seconds,
        }
        content = _report.npz(about=json.dumps(about), **_report.named(state))
        what = f"{self.folder}: the checkpoint of step {step} cannot be written"
        advice = f"; {last}. Make room on the disk, then {then}"
        with _command.uninterrupted(), _command.refusing(what, self.folder, advice):
            _report.replace(self.file(step), content)
            for unfinished in self.folder.glob("*.unfinished"):  # of a run that was killed while it wrote
                unfinished.unlink()
            for old in self.steps()[:-KEPT]:
                self.file(old).unlink()

    def restore(self, template: State, configuration: Configuration, fingerprint: str | None) -> tuple[State, Progress]:
        """The last state, of shapes and dtypes as in `template`, and its progress; `fingerprint` is None where the
        images may be others."""
        steps = self.steps()
        if not steps:
            raise _command.Refused(f"{self.folder}: no checkpoint")
        path = self.file(steps[-1])
        before = f"; delete that file to go on from step {steps[-2]}" if len(steps) > 1 else ""
        damaged = f"{path}: damaged, or not a checkpoint of this experiment{before}"
        # Damage shows in many ways.
        with _command.refusing(damaged, path, errors=Exception), path.open("rb") as file, np.load(file) as content:
            arrays = dict(content)
            about = json.loads(str(arrays.pop("about")))
            found, theirs = from_options(about["configuration"], "checkpoint"), about["fingerprint"]
            progress = Progress(about["history"], about["seconds"])
            if about["step"] != steps[-1]:
                raise ValueError(f"it says that it is of step {about['step']}")
        if different := found.differences(configuration):
            raise _command.Refused(f"{self.folder}: of another configuration: {'; '.join(different)}")
        if fingerprint not in (None, theirs):
            raise _command.Refused(f"{self.folder}: of other images (their fingerprint is {theirs}, not {fingerprint})")
        wanted = _report.named(template)
        if _shapes(arrays) != _shapes(wanted):
            raise _command.Refused(f"{damaged} (its arrays have other names, shapes or dtypes)")
        return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in wanted]), progress


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (a.shape, a.dtype) for name, a in arrays.items()}
