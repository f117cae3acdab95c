"""One picture: how many times bnderiv's cost the others have."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt

from experiments import _report

Ratios = Mapping[str, float]  # by peer
# What is no library: a mark that is a line.
LIMIT = {"color": "black", "marker": "|", "markersize": 11, "markeredgewidth": 2}


def draw(groups: Mapping[str, Mapping[str, Sequence[Ratios]]], panels: Sequence[str], xlabel: str, title: str) -> bytes:
    """Rows in groups, each with a mark for each peer: by heading and by label, the ratios in each of the panels."""
    rows = sum(1 + len(group) for group in groups.values())
    figure, (row,) = plt.subplots(
        1, len(panels), figsize=(_report.WIDTH, 1.4 + 0.25 * rows), sharex=True, sharey=True, squeeze=False
    )
    marks: dict[str, Any] = {}
    labels: list[tuple[str, bool]] = []
    drawn = [0.6, 2.0]
    for heading, group in groups.items():
        labels.append((heading, True))
        for label, ratios in group.items():
            for axes, found in zip(row, ratios, strict=True):
                for who, ratio in found.items():
                    look = _report.LOOKS.get(who, LIMIT) | {"linestyle": "none"}
                    (marks[who],) = axes.plot(ratio, len(labels), **look)
                    drawn.append(ratio)
            labels.append((label, False))
    low, high = min(drawn) / 1.2, max(drawn) * 1.2 ** len(panels)  # half a mark is wider in a narrow panel
    at = [t for t in ((0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if len(panels) == 1 else (0.1, 1, 10)) if low <= t <= high]
    for axes, name in zip(row, panels, strict=True):
        axes.axvspan(low, 1, color="#f6e3e3", zorder=0)
        axes.axvline(1, color="black", lw=1)
        axes.grid(axis="y", visible=False)
        axes.set(xscale="log", xlim=(low, high), ylim=(len(labels) - 0.5, -0.7))
        axes.set_title(name, fontsize=10)
        axes.set_xticks(at, [f"{t:g}×" for t in at])
        axes.minorticks_off()
        axes.tick_params(axis="y", length=0)
    row[0].set_yticks(range(len(labels)), [label for label, _ in labels], fontsize=9)
    for tick, (_, is_heading) in zip(row[0].get_yticklabels(), labels, strict=True):
        tick.set_fontweight("bold" if is_heading else "normal")
    row[len(row) // 2].set_xlabel(xlabel)
    figure.suptitle(title, fontsize=11)
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=3 if len(marks) < 4 else 2)
    return _report.png(figure)
