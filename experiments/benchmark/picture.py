"""One picture: how many times bnderiv's time the others take."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.benchmark.tables import LIMITS, OURS, TIMED, TITLES, best_of_torch

LOOK = {"plain autodiff": ("#7f7f7f", "s"), "Flax": ("#1f77b4", "o"), "PyTorch": ("#d62728", "D")}


def draw(content: dict[str, Any]) -> Figure | None:
    """A row for each case, a mark for each peer; nothing where nothing was timed."""
    groups = [
        (name, content["sections"][name]["cases"]) for name in TIMED if content["sections"].get(name, {}).get("cases")
    ]
    rows = sum(len(cases) + 1 for _, cases in groups)
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.3 * rows), layout="constrained")
    y, ticks, seen = 0, [], {}
    for name, cases in groups:
        axes.text(0.005, y, TITLES[name], transform=axes.get_yaxis_transform(), weight="bold", va="center", zorder=3)
        y += 1
        for case in cases:
            times = best_of_torch(case["times"])
            ours = times[OURS]["ms"][1]
            for full, entry in times.items():
                who = full.split(" (")[0]
                if who in LOOK and "ms" in entry:
                    color, marker = LOOK[who]
                    (seen[who],) = axes.plot(entry["ms"][1] / ours, y, marker, color=color, ms=7, zorder=3)
                elif who in LIMITS[:2] and "ms" in entry:
                    (mark,) = axes.plot(entry["ms"][1] / ours, y, "|", color="black", ms=11, mew=2)
                    seen["copies of x: 1 for a pool, 4 for batch norm"] = mark
            ticks.append((y, f"{case['case']}   bnderiv {ours:.2g} ms"))
            y += 1
    axes.set_xscale("log")
    low = min(axes.get_xlim()[0], 0.5)
    axes.set(ylim=(y - 0.5, -0.7), xlabel="time / bnderiv's time (medians)")
    axes.set_xlim(left=low)
    axes.axvspan(low, 1, color="#f6e3e3", zorder=0)
    axes.axvline(1, color="black", lw=1)
    at = [t for t in (0.25, 0.5, 1, 2, 3, 5, 10, 20) if low <= t <= axes.get_xlim()[1]]
    axes.set_xticks(at, [f"{t:g}×" for t in at])
    axes.minorticks_off()
    axes.set_yticks([t for t, _ in ticks], [label for _, label in ticks], fontsize=9)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    where = f"{content['machine']}; memory of large arrays {content['memory']}"
    figure.suptitle(
        f"How many times bnderiv's time the others take (in the red area they are faster)\n{where}", fontsize=12
    )
    figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure
