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
import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional

from experiments import _options, _report
from experiments.lenet import configuration, results, run
from experiments.lenet.configuration import Configuration


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
    found = {}
    for name, chosen in settings.items():
        runs = []
        for seed in range(command.seeds):
            folder = "-".join([*re.findall(r"[^\W_]+", name.lower()), str(seed)])
            title, seeded = f"{name}, seed {seed}", dataclasses.replace(chosen, seed=seed)
            runs.append(run.train(seeded, command.folder() / "runs" / folder, title=title, to_the_end=True))
        errors = np.array([100 * (1 - history["test_accuracy"][-1]) for history in runs])
        found[name] = {
            "mean_test_error_percent": round(float(errors.mean()), 4),
            "deviation": round(float(errors.std(ddof=1)), 4),
            "test_error_percent": _report.rounded(errors),
            "seconds_an_epoch": float(np.median([history["seconds"] for history in runs]).round(3)),
            "beside": beside[name],
            "configuration": chosen.anonymous().shown(),
            "histories": _report.rounded(runs, 6),
        }
    words = ["--data", "FOLDER"] * bool(command.data) + ["--seeds", command.seeds] * (command.seeds != Compare.seeds)
    return {
        "command": _command.line(__name__, f"experiments/lenet/settings/{command.settings.name}", *words),
        "configuration": next(iter(settings.values())).anonymous().shown(),
        "title": command.settings.stem.replace("_", " "),
        "seeds": command.seeds,
        "settings": found,
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


def present(content: dict[str, Any]) -> _report.Report:
    """The page with table and picture."""
    names, settings, seeds = list(content["settings"]), list(content["settings"].values()), content["seeds"]
    of = "validation" if all(each["configuration"]["validation"] for each in settings) else "test"
    seconds = [each["seconds_an_epoch"] for each in settings]
    columns = {
        "setting": names,
        f"{of} error, %": [f"{each['mean_test_error_percent']:.2f} ± {each['deviation']:.2f}" for each in settings],
        "best": [f"{min(each['test_error_percent']):.2f}" for each in settings],
        "worst": [f"{max(each['test_error_percent']):.2f}" for each in settings],
        "seconds an epoch": ["" if each is None else f"{each:.2f}" for each in seconds],
        "SimpleNN": [each["beside"] for each in settings],
    }
    filled = {title: cells for title, cells in columns.items() if any(cells)}
    table = _report.Table(
        f"{of.capitalize()} error",
        list(filled),
        list(zip(*filled.values(), strict=True)),
        f"Mean ± standard deviation over the seeds 0 to {seeds - 1}, after the last epoch (not the best).",
    )
    losses = {each["configuration"]["loss"] for each in settings}
    loss = results.LOSSES[losses.pop()] if len(losses) == 1 else "loss of its own kind"
    histories = {name: each["histories"] for name, each in zip(names, settings, strict=True)}
    best = min(range(len(names)), key=lambda i: settings[i]["mean_test_error_percent"])
    summary = f"{names[best]}: {columns[f'{of} error, %'][best]} % wrong"
    return _report.Report(
        content["title"],
        summary + bool(names[1:]) * f", the least of {len(names)} settings" + ".",
        [table, results.comparison(histories, loss, of, seeds)],
        facts={"seeds": f"0 to {seeds - 1}", "configuration below": f"that of {names[0]!r}"},
        tables="comparison.md",
        said=_report.table(table.columns, table.rows),
    )


main = _report.experiment(Compare, "comparison.json", measure, present)
