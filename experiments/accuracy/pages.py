"""The tables, the picture and the report, from the numbers of `accuracy.json` alone."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments import _report
from experiments.accuracy.cases import MEANS, SCALES
from experiments.accuracy.judgment import QUANTITIES, Outcome, badness, shown, summary


def median_and_worst(outcomes: list[Outcome]) -> str:
    median, worst = (shown(value) for value in summary(outcomes))
    return median if median == worst else f"{median} ({worst})"


def worst_pair(outcomes: dict[str, list[Outcome]]) -> str:
    y, dx = (shown(summary(outcomes[name])[1]) for name in ("y", "dx"))
    return y if y == dx and not y[0].isdigit() else f"{y} / {dx}"


def standing(rows: list[dict[str, Any]], quantity: str) -> list[str]:
    """Where bnderiv stands among the libraries in this quantity, by medians: the losses as well as the wins."""
    ratios = []
    for row in rows:
        medians = {library: summary(outcomes[quantity])[0] for library, outcomes in row["outcomes"].items()}
        ours = medians["bnderiv"]
        best = min(medians, key=lambda library: badness(medians[library]))
        lowest = medians[best]
        if isinstance(ours, float) and isinstance(lowest, float):
            ratio = 1.0 if ours == lowest else ours / max(lowest, 1e-30)
        else:
            ratio = 1.0 if badness(ours) == badness(lowest) else np.inf
        ratios.append((ratio, f"{shown(ours)}, {best} {shown(lowest)}: {row['case']}, {_report.by(row['shape'])}"))
    values = [ratio for ratio, _ in ratios]
    within = [sum(ratio <= most for ratio in values) for most in (1, 1.5, 2)]
    furthest = max(ratios)
    return [*(f"{count} of {len(rows)}" for count in within), "none" if furthest[0] == 1 else furthest[1]]


def tables(content: dict[str, Any]) -> list[_report.Part]:
    """Everything that was measured."""
    libraries, rows = content["libraries"], content["rows"]
    seeds = "one seed" if len(content["seeds"]) == 1 else f"{len(content['seeds'])} seeds"

    def detail(title: str, quantity: str, chosen: list[dict[str, Any]]) -> _report.Table:
        cells = {}
        for row in chosen:
            outcomes = {library: median_and_worst(row["outcomes"][library][quantity]) for library in libraries}
            cells[f"{row['case']}, {_report.by(row['shape'])}"] = outcomes
        return _report.grid(title, cells, first="input")

    brief = {
        row["case"]: {library: worst_pair(row["outcomes"][library]) for library in libraries}
        for row in rows
        if row["shape"] == rows[0]["shape"] or row["group"] in ("many", "degenerate")
    }
    degenerate = [row for row in rows if row["group"] == "degenerate"]
    columns = ("", "lowest error (or tied)", "within 1.5 × the lowest", "within 2 ×", "furthest behind")
    standings = [[symbol, *standing(rows, name)] for name, symbol in QUANTITIES.items()]
    return [
        *(_report.Text("", f"Not installed, left out: {name}.") for name in content["absent"]),
        _report.grid(f"y and dx (y / dx), worst of {seeds}, {_report.by(rows[0]['shape'])}", brief, first="input"),
        _report.Table("Where bnderiv stands among all of them, by the median", columns, standings),
        *(
            detail(f"{symbol}, every shape: median (worst) of {seeds}", name, rows)
            for name, symbol in QUANTITIES.items()
        ),
        detail("Running statistics after one step from mean 0, variance 1", "running", degenerate),
    ]


OTHER_NAMES = {"plain jnp": "plain autodiff"}
NOTHING = 1e8  # the height at which an outcome without a number is drawn


def draw(content: dict[str, Any]) -> bytes:
    """The worst error of the seeds against the mean, y and dx; and dx against the scale."""
    rows = [row for row in content["rows"] if row["shape"] == content["rows"][0]["shape"]]
    by_name = {row["case"]: row["outcomes"] for row in rows}
    means, scales = [f"mean {mean}" for mean in MEANS], ["mean 0", *(f"scale {scale}" for scale in SCALES)]
    figure, axes = plt.subplots(2, 2, figsize=(_report.WIDTH, 7.6), sharey=True)
    (y, dx), (scaled, legend) = axes
    for panel, names, quantity in ((y, means, "y"), (dx, means, "dx"), (scaled, scales, "dx")):
        for library in content["libraries"]:
            worst = [summary(by_name[name][library][quantity])[1] for name in names]
            heights = [math.nan if isinstance(w, str) else max(w, 1e-9) for w in worst]
            look = _report.LOOKS[OTHER_NAMES.get(library) or library]
            panel.plot(heights, label=library, **look)
            lost = [NOTHING if isinstance(w, str) else math.nan for w in worst]
            panel.plot(lost, **look | {"linestyle": "none"})
        panel.axhspan(NOTHING / 30, NOTHING * 1000, color="tab:red", alpha=0.12, linewidth=0)
        panel.axhline(2.0**-24, color="gray", linewidth=1)
        panel.axhspan(1, NOTHING * 1000, color="tab:red", alpha=0.08, linewidth=0)
        panel.set(yscale="log", ylim=(2e-9, NOTHING * 1000), yticks=[10.0**k for k in range(-8, 6, 2)])
    for panel, title in ((y, "The output y"), (dx, "The gradient dx"), (scaled, "The gradient dx, mean 0")):
        panel.set_title(title)
    for panel in (y, dx):
        panel.set(xlabel="mean of x (deviation 1)", xticks=range(len(means)), xticklabels=MEANS)
    scaled.set(xlabel="deviation of x", xticks=range(len(scales)), xticklabels=("1", *SCALES))
    for panel in (y, scaled):
        panel.set_ylabel("relative error")
    legend.axis("off")
    legend.legend(*y.get_legend_handles_labels(), loc="upper left", fontsize=11)
    words = "Dark red: no number at all (NaN),\nor x̂ lost (y = β, dx = 0).\nLight red: no digit is right.\n"
    legend.text(0.03, 0.02, words + "Gray line: one rounding of a float32.", transform=legend.transAxes, va="bottom")
    of = f"{_report.by(rows[0]['shape'])}, worst of {len(content['seeds'])} seeds"
    figure.suptitle(f"Batch norm in float32, {of}: lower is better", fontsize=12)
    return _report.png(figure)


def present(content: dict[str, Any]) -> _report.Report:
    """The page with all of it."""
    rows, parts = len(content["rows"]), tables(content)
    within = standing(content["rows"], "y")[1], standing(content["rows"], "dx")[1]
    caption = f"One of the shapes, and the worst of the seeds, as in the first table; all {rows} rows are below."
    brief = next(part for part in parts if isinstance(part, _report.Table))
    return _report.Report(
        "How many digits of batch norm are right?",
        "Relative errors against a truth in long double. In the median over the seeds, that of bnderiv is within "
        f"1.5 × the lowest of all libraries in {within[0]} rows for y, in {within[1]} for dx.",
        [_report.Picture("Error against mean and scale", "accuracy.png", draw(content), caption), *parts],
        tables="accuracy.md",
        said=_report.markdown([brief]),
    )
