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
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional

from experiments import _options, _report
from experiments.lenet import configuration, plots, run
from experiments.lenet.configuration import Configuration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(_options.Measured):
    """Trains every setting of a file with every seed."""

    settings: Positional[Path]
    """The file of settings, .toml."""
    data: str | None = None
    """A folder of IDX files; None takes the digits."""
    seeds: Annotated[int, ">= 2"] = 5
    """The number of seeds, 0, 1 and so on; every setting is trained with each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.redraw:
            read(self.settings, self.data)  # to be refused before anything is written

    def folder(self) -> Path:
        return self.out or run.RUNS / self.settings.stem


def measure(command: Compare) -> dict[str, Any]:
    """Trains, or goes on; what came of it."""
    settings, beside = read(command.settings, command.data)
    histories = {}
    for name, chosen in settings.items():
        histories[name] = []
        for seed in range(command.seeds):
            folder = command.folder() / "runs" / f"{_slug(name)}-{seed}"
            chosen = dataclasses.replace(chosen, seed=seed)
            histories[name].append(run.train(chosen, folder, title=f"{name}, seed {seed}", to_the_end=True))
    words = ["--data", "FOLDER"] * bool(command.data) + ["--seeds", command.seeds] * (command.seeds != Compare.seeds)
    return {
        "command": _command.line(__name__, f"experiments/lenet/settings/{command.settings.name}", *words),
        "configuration": next(iter(settings.values())).anonymous().shown(),
        "title": command.settings.stem.replace("_", " "),
        "seeds": command.seeds,
        "settings": numbers(settings, histories, beside),
    }


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


def numbers(
    settings: dict[str, Configuration],
    histories: dict[str, list[dict[str, Any]]],
    beside: dict[str, str],
) -> dict[str, Any]:
    """What came of each setting."""
    found = {}
    for name, runs in histories.items():
        errors = np.array([100 * (1 - history["test_accuracy"][-1]) for history in runs])
        found[name] = {
            "mean_test_error_percent": round(float(errors.mean()), 4),
            "deviation": round(float(errors.std(ddof=1)), 4),
            "test_error_percent": [round(float(error), 4) for error in errors],
            "seconds_an_epoch": float(np.median([history["seconds"] for history in runs]).round(3)),
            "beside": beside[name],
            "configuration": settings[name].anonymous().shown(),
            "histories": _report.rounded(runs, 6),
        }
    return found


def present(content: dict[str, Any]) -> _report.Report:
    """The page with table and picture."""
    settings = content["settings"]
    of = "validation" if all(each["configuration"]["validation"] for each in settings.values()) else "test"
    columns = ["setting", f"{of} error, %", "best", "worst", "seconds an epoch", "SimpleNN"]
    rows = [
        [
            name,
            f"{each['mean_test_error_percent']:.2f} ± {each['deviation']:.2f}",
            f"{min(each['test_error_percent']):.2f}",
            f"{max(each['test_error_percent']):.2f}",
            "" if each["seconds_an_epoch"] is None else f"{each['seconds_an_epoch']:.2f}",
            each["beside"],
        ]
        for name, each in settings.items()
    ]
    filled = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    losses = {each["configuration"]["loss"] for each in settings.values()}
    picture = plots.comparison(
        {name: each["histories"] for name, each in settings.items()},
        plots.LOSSES[losses.pop()] if len(losses) == 1 else "loss of its own kind",
        of,
    )
    table = _report.Table(
        f"{of.capitalize()} error",
        [columns[i] for i in filled],
        [[row[i] for i in filled] for row in rows],
        f"Mean ± standard deviation over the seeds 0 to {content['seeds'] - 1}, after the last epoch (not the best).",
    )
    best = min(rows, key=lambda row: settings[row[0]]["mean_test_error_percent"])
    summary = f"{best[0]}: {best[1]} % wrong" + bool(rows[1:]) * f", the least of {len(rows)} settings"
    caption = f"Lines: mean over {content['seeds']} seeds. Bands: from the best to the worst."
    return _report.Report(
        content["title"],
        f"{summary}.",
        [table, _report.Picture("How they learned", "comparison.png", picture, caption)],
        facts={"seeds": f"0 to {content['seeds'] - 1}", "configuration below": f"that of {next(iter(settings))!r}"},
        tables="comparison.md",
        said=_report.table(table.columns, table.rows),
    )


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


@_command.command
def main(arguments: list[str] | None = None) -> None:
    _report.run(Compare, arguments, "comparison.json", measure, present)
