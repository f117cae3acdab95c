"""Several settings beside each other, each trained with several seeds: a table, a picture and a report.

    python -m experiments.lenet.compare experiments/lenet/settings/digits.toml
    python -m experiments.lenet.compare experiments/lenet/settings/mnist_3_epochs.toml --data FOLDER

A settings file has a table of options for each setting, and one called `common` for all; `beside` is a figure of others
that the table shows beside ours. Interrupted, the same command goes on where it stopped.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.lenet.compare")

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tyro.conf import Positional

from experiments import _report
from experiments.lenet import configuration, plots, results, run, training
from experiments.lenet.configuration import Configuration


@dataclasses.dataclass(frozen=True)
class Compare:
    """Trains every setting of a file with every seed."""

    settings: Positional[Path]
    """The file of settings, .toml."""
    data: str | None = None
    """A folder of IDX files; None takes the digits."""
    seeds: int = 5
    """Every setting is trained with the seeds 0, 1 and so on, so many."""
    out: Path | None = None
    """The folder of the results; None takes one in runs/, of the file's name."""
    seconds: str | None = None
    """The name of a setting of which one epoch is timed, for the table, and no more done. Run nothing beside it."""


@_command.command
def main(arguments: list[str] | None = None) -> None:
    command = tyro.cli(Compare, args=arguments, prog=f"python -m {__name__}", description=__doc__)
    out = command.out or run.RUNS / command.settings.stem
    settings, beside = read(command.settings, command.data)
    if command.seconds is not None:
        time_an_epoch(settings, command.seconds, out)
        return
    if command.seeds < 2:
        raise _command.Refused(f"seeds must be at least 2, got {command.seeds}")
    histories = {}
    for name, chosen in settings.items():
        histories[name] = []
        for seed in range(command.seeds):
            folder = out / "runs" / f"{_slug(name)}-{seed}"
            chosen = dataclasses.replace(chosen, seed=seed)
            histories[name].append(run.train(chosen, folder, title=f"{name}, seed {seed}", to_the_end=True))
    write(out, settings, histories, beside, command)


def read(file: Path, data: str | None) -> tuple[dict[str, Configuration], dict[str, str]]:
    """The configurations by name, and the figures of others."""
    tables = configuration.read_options(file)
    for name, table in tables.items():
        if not isinstance(table, dict):
            alone = _command.line("experiments.lenet.run", "train", "--config", file)
            raise _command.Refused(
                f"{file}: every entry must be a table of options, {name!r} is {table!r}. For one run: {alone}"
            )
    common = tables.pop("common", {})
    if not tables:
        raise _command.Refused(f"{file}: no setting but what is common to all")
    beside = {name: str(table.pop("beside", "")) for name, table in tables.items()}
    chosen = {
        name: configuration.from_options({"data": data} | common | table, f"{file}: {name}")
        for name, table in tables.items()
    }
    return chosen, beside


def time_an_epoch(settings: dict[str, Configuration], name: str, out: Path) -> None:
    """One epoch, nothing written but its seconds."""
    if name not in settings:
        raise _command.Refused(f"no setting {name!r}; there are {', '.join(map(repr, settings))}")
    chosen = dataclasses.replace(settings[name], epochs=1, warmup=0)
    data = run.load(chosen)
    state = training.start(data.image_shape, training.steps_per_epoch(len(data.train_labels), chosen), chosen)
    progress = training.Progress(training.new_history(state), 0.0)
    begun = time.perf_counter()
    _, progress = training.train(state, progress, data, chosen, lambda *_: None, title=name)
    (seconds,) = progress.history["seconds"]
    print(f"{seconds:.2f} s ({time.perf_counter() - begun:.1f} s with compilation and evaluation)")
    file = out / "seconds.json"
    known = _seconds(out)
    _report.write(file, _report.as_json({"seconds": known | {name: round(seconds, 3)}}))


def write(
    out: Path,
    settings: dict[str, Configuration],
    histories: dict[str, list[dict[str, Any]]],
    beside: dict[str, str],
    command: Compare,
) -> None:
    """The table, on the screen and in files, the picture, the numbers and the report."""
    timed = _seconds(out)
    of = "validation" if all(chosen.validation for chosen in settings.values()) else "test"
    columns = ["setting", f"{of} error, %", "best", "worst", "seconds an epoch"]
    if any(beside.values()):
        columns.append("SimpleNN")
    rows, numbers = [], {}
    for name, runs in histories.items():
        errors = np.array([100 * (1 - history["test_accuracy"][-1]) for history in runs])
        seconds = f"{timed[name]:.2f}" if name in timed else ""
        row = [
            name,
            f"{errors.mean():.2f} ± {errors.std(ddof=1):.2f}",
            f"{errors.min():.2f}",
            f"{errors.max():.2f}",
            seconds,
        ]
        rows.append(row + [beside[name]] * (len(columns) > 5))
        numbers[name] = {
            "mean_test_error_percent": round(float(errors.mean()), 4),
            "deviation": round(float(errors.std(ddof=1)), 4),
            "test_error_percent": [round(float(error), 4) for error in errors],
            "seconds_an_epoch": timed.get(name),
            "configuration": dataclasses.asdict(settings[name]),
            "histories": [results.rounded(history) for history in runs],
        }
    if not any(row[4] for row in rows):
        columns.pop(4)
        rows = [row[:4] + row[5:] for row in rows]
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
    print("\n" + "\n".join(lines))
    first = next(iter(settings.values()))
    losses = {chosen.loss for chosen in settings.values()}
    picture = plots.comparison(
        histories,
        plots.LOSSES[first.loss] if len(losses) == 1 else "loss of its own kind",
        f"{command.seeds} seeds: their mean, and the band from the best to the worst",
        of,
    )
    caption = f"Mean ± standard deviation over the seeds 0 to {command.seeds - 1}, after the last epoch (not the best)."
    page = _report.page(
        command.settings.stem.replace("_", " "),
        "; ".join(f"{row[0]}: {row[1]} % wrong" for row in rows) + ".",
        [
            _report.Table(f"{of.capitalize()} error", columns, rows, caption),
            _report.Picture(
                "How they learned", picture, "Lines: mean over the seeds. Bands: from the best to the worst."
            ),
        ],
        command=_command.line(
            "experiments.lenet.compare",
            f"experiments/lenet/settings/{command.settings.name}",
            *(["--data", command.data] if command.data else []),
            *(["--seeds", command.seeds] if command.seeds != Compare.seeds else []),
        ),
        configuration=dataclasses.asdict(first),
        facts={"seeds": f"0 to {command.seeds - 1}", "configuration below": f"that of {next(iter(settings))!r}"},
    )
    content = {"seeds": command.seeds, "settings": numbers}
    files = {
        "comparison.md": ("\n".join(lines) + "\n").encode(),
        "comparison.json": _report.as_json(content),
        "comparison.png": picture,
        "report.html": page,
    }
    print()
    _report.leave(out, files)


def _seconds(out: Path) -> dict[str, float]:
    file = out / "seconds.json"
    return json.loads(file.read_text())["seconds"] if file.exists() else {}


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
