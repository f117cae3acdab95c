"""A run's checkpoints, written by Orbax: whole or not at all, the one before kept until the next is complete.

A checkpoint is `checkpoints/<step>/` with the arrays of the state, and beside them the configuration, the fingerprint
of the images, the history and a checksum of the arrays. What does not fit is refused, and nothing is deleted.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import shutil
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import _command
from experiments.lenet.configuration import Configuration, from_options
from experiments.lenet.training import Progress, State

with warnings.catch_warnings():  # of its own dependencies
    warnings.simplefilter("ignore")
    import orbax.checkpoint as ocp

KEPT = 2  # the last, and the one before in case the last is damaged


class Checkpoints:
    """The checkpoints of the run in a folder."""

    def __init__(self, run: Path) -> None:
        self.folder = run.absolute() / "checkpoints"

    def steps(self) -> list[int]:
        """Of the complete checkpoints, in order."""
        with _command.refusing(f"{self.folder} cannot be read", self.folder), contextlib.suppress(FileNotFoundError):
            return sorted(int(path.name) for path in self.folder.iterdir() if path.is_dir() and path.name.isdecimal())
        return []

    def save(self, state: State, progress: Progress, configuration: Configuration, fingerprint: str) -> None:
        """Writes a checkpoint beside the last one, then removes all but the last two; `fingerprint` is the images'."""
        tree = _tree(state)
        step = int(state.step)
        about = {
            "configuration": dataclasses.asdict(configuration),
            "fingerprint": fingerprint,
            "step": step,
            "epoch": len(progress.history["seconds"]),
            "history": progress.history,
            "seconds": progress.seconds,
            "checksum": _checksum(tree),
        }
        items = ocp.args.Composite(state=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(about))
        try:
            with _command.uninterrupted(), _silent(), self._manager(writing=True) as manager:
                manager.save(step, args=items, force=True)
                manager.wait_until_finished()
        except Exception as error:  # of Orbax, TensorStore or the system: all mean that it is not written
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            last, then = "there is none before it", "start the run again"
            if kept := self.steps():
                last = f"that of step {kept[-1]} is complete"
                then = _command.again("experiments.lenet.run", "resume", self.folder.parent)
            raise _command.Refused(
                f"{self.folder}: the checkpoint of step {step} cannot be written ({_short(error)}); {last}. "
                f"Make room on the disk, then {then}"
            ) from error

    def restore(self, template: State, configuration: Configuration, fingerprint: str | None) -> tuple[State, Progress]:
        """The last state, of shapes and dtypes as in `template`, and its progress; `fingerprint` is None where the
        images may be others."""
        about = self._about(configuration, fingerprint)
        step, tree = about["step"], _tree(template)
        try:
            with _silent(), self._manager() as manager:
                restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(tree)))["state"]
        except Exception as error:  # the same
            raise self._unreadable(step, error) from error
        if _checksum(restored) != about["checksum"]:
            raise self._unreadable(step, ValueError("its checksum is another"))
        state = jax.tree.unflatten(jax.tree.structure(template), jax.tree.leaves(restored))
        return state, Progress(about["history"], about["seconds"])

    def _about(self, configuration: Configuration, fingerprint: str | None) -> dict[str, Any]:
        """What is written beside the last state, which must be of this configuration and of these images."""
        steps = self.steps()
        if not steps:
            raise _command.Refused(f"{self.folder}: no checkpoint")
        try:
            with _silent(), self._manager() as manager:
                about = manager.restore(steps[-1], args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
            found = from_options(about["configuration"], "checkpoint")
            if missing := {"fingerprint", "history", "seconds", "checksum"} - about.keys():
                raise ValueError(f"without {', '.join(sorted(missing))}")
            if about["step"] != steps[-1]:
                raise ValueError(f"it says that it is of step {about['step']}")
        except Exception as error:  # damage shows in many ways
            raise self._unreadable(steps[-1], error) from error
        if different := found.differences(configuration):
            raise _command.Refused(f"{self.folder}: of another configuration: {'; '.join(different)}")
        if fingerprint not in (None, theirs := about["fingerprint"]):
            raise _command.Refused(f"{self.folder}: of other images (their fingerprint is {theirs}, not {fingerprint})")
        return about

    def _manager(self, *, writing: bool = False) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT if writing else None,
            create=writing,
            cleanup_tmp_directories=writing,  # of a run that was killed while it wrote
            enable_async_checkpointing=False,
            read_only=not writing,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _unreadable(self, step: int, error: Exception) -> _command.Refused:
        steps = self.steps()
        before = f"; delete that folder to go on from step {steps[-2]}" if len(steps) > 1 else ""
        what = f"damaged, or not a checkpoint of this experiment{before} ({_short(error)})"
        return _command.Refused(f"{self.folder / str(step)}: {what}")


def _tree(state: State) -> dict[str, Any]:
    """The leaves by number and path: a plain tree, whatever containers the optimizer uses."""
    leaves = enumerate(jax.tree_util.tree_leaves_with_path(jax.device_get(state)))
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return {f"{i:04d}.{name(path)}": np.asarray(a) for i, (path, a) in leaves}


def _checksum(tree: dict[str, Any]) -> str:
    crc = 0
    for name in sorted(tree):
        crc = zlib.crc32(np.asarray(tree[name]).tobytes(), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Orbax's threads log and print an array that cannot be written or read, with a traceback each."""
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = threading.excepthook = lambda _: None
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    except Exception:
        time.sleep(0.3)  # until they are done
        # It reports a task that failed when this is collected, at any time.
        logging.getLogger("asyncio").disabled = True
        raise
    finally:
        sys.unraisablehook, threading.excepthook = hooks
        logging.disable(before)


def _short(error: Exception) -> str:
    """The error in a few words: the system's own where they are in it."""
    text = " ".join(str(error).split())
    for known in map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)):
        if known in text:
            return known
    return f"{type(error).__name__}: {text[:200]}"
