"""What the experiments' commands share: where their results go, and how they end when they are interrupted."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def run(main: Callable[[], None]) -> None:
    """Runs a script's main. Ctrl-C ends it with a word in place of a traceback, and the exit status of a shell."""
    try:
        main()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def folder(experiment: Path, chosen: Mapping[str, Any]) -> Path:
    """Of an experiment's results where none is named: what is committed is for the default options alone.

    Args:
      experiment: the folder of the experiment.
      chosen: the options that are not the defaults; they name a folder under its `runs`.
    """
    if not chosen:
        return experiment / "results"
    return experiment / "runs" / "_".join(f"{name}-{value}" for name, value in chosen.items())


def make(folder: Path) -> None:
    """Makes the folder of the results, before the work that they come from; one line where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"{folder} cannot be a folder of results: {error.strerror}") from None
