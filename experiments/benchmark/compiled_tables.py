"""Tables, picture and page of what compilers make of the layers, from the numbers of `ahead_of_time.py`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments import _report
from experiments.benchmark.tables import OURS, number, table

DEVICES = {"v5e": "TPU v5e", "v6e": "TPU v6e", "v5p": "TPU v5p", "h100": "NVIDIA H100"}
PEER = "Flax"
LOOK = {"plain autodiff": ("#7f7f7f", "s"), PEER: ("#1f77b4", "o")}
COLUMNS = ("passes", "megacycles", "temporary MB", "kernels", "masks", "float32 convolutions", "passes aside")
COMPARED = ("megacycles", "passes", "temporary MB")
SAME, ROOM = 1.005, 2.0  # a ratio nearer to 1 is a tie, and so is a difference of temporary memory of 2 MB
HOW = """Nothing here is a measured time. Each case, forward and backward as in training, was compiled for one device,
and the compiled program counted. Caches, autotuning and cuDNN's choice of algorithm are not in the counts.

| | |
| --- | --- |
| passes | bytes that all kernels read and write, over those of the case's array; batch norm needs 8 |
| megacycles | the TPU compiler's own estimate; there is none for a GPU |
| temporary MB | memory beside arguments and results |
| masks | arrays of booleans that are written to memory |
| float32 convolutions | those with a float32 operand; in bfloat16 there should be none |
| passes aside | passes in branches for unusual data, where batch norm measures again |

The array of LeNet-5 is the output of its first convolution. What a TPU keeps in its vector memory is not moved, so that
batch norm of a small array takes fewer passes there."""


class Comparison(NamedTuple):
    """How much of something a peer takes, and ours."""

    target: str
    case: str
    what: str
    theirs: float
    ours: float

    @property
    def room(self) -> float:
        return ROOM if self.what == "temporary MB" else 0

    @property
    def worse(self) -> bool:
        """Ours is."""
        return self.ours > SAME * self.theirs + self.room

    @property
    def times(self) -> str:
        """How many times theirs, unless that is next to nothing."""
        return f"{self.ours / self.theirs:.2f}×" if self.theirs > self.room else ""


def comparisons(content: dict[str, Any]) -> Iterator[Comparison]:
    """Each case against Flax: cycles where there are some, passes, and temporary memory."""
    for target, case, found in _cases(content):
        ours, theirs = found.get(OURS, {}), found.get(PEER, {})
        for what in COMPARED:
            if ours.get(what) is not None and theirs.get(what) is not None:
                yield Comparison(target, case, what, theirs[what], ours[what])


def cost(target: str) -> str:
    """What decides for a target."""
    return "passes" if target == "h100" else "megacycles"


def summary(content: dict[str, Any]) -> str:
    """How often ours takes no more than Flax, by what decides; and every case where it takes more of anything."""
    compared = list(comparisons(content))
    rows = []
    for target in content["targets"]:
        cells = []
        for what in (cost(target), "temporary MB"):
            these = [c for c in compared if c.target == target and c.what == what]
            cells.append(f"{sum(not c.worse for c in these)} of {len(these)}")
        rows.append((DEVICES[target], cost(target), *cells))
    columns = ("device", "cost is in", "cases where bnderiv costs no more", "and needs no more memory")
    lines = ["## Against Flax", table(columns, rows)]
    worse = [c for c in compared if c.worse]
    if worse:
        rows = [(DEVICES[c.target], c.case, c.what, number(c.ours), number(c.theirs), c.times) for c in worse]
        columns = ("device", "case", "what", "bnderiv", "Flax", "times Flax's")
        lines += ["## Where bnderiv takes more than Flax", table(columns, rows)]
    return "\n\n".join(lines)


def markdown(content: dict[str, Any]) -> str:
    """Everything that was counted."""
    parts = ["# By the compilers of TPU and GPU, without a device", HOW, summary(content)]
    for target, found in content["targets"].items():
        rows = []
        for case, libraries in found.items():
            for who, counts in libraries.items():
                cells = [_cell(counts, column) for column in COLUMNS]
                rows.append((case if who == OURS else "", who, *cells))
        parts.append(f"## {DEVICES[target]}\n\n{table(('case', 'library', *COLUMNS), rows)}")
    by = sorted({counts["by"] for *_, found in _cases(content) for counts in found.values()})
    return "\n\n".join([*parts, f"Compiled by {'; '.join(by)}."]) + "\n"


def draw(content: dict[str, Any]) -> Figure:
    """A column for each device, a row for each case, a mark for each peer."""
    found = content["targets"]
    names = list(dict.fromkeys(case for cases in found.values() for case in cases))
    figure, (row,) = plt.subplots(
        1,
        len(found),
        figsize=(5 + 2.4 * len(found), 1.8 + 0.27 * len(names)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    seen, drawn = {}, [0.6, 2.0]
    for axes, (target, cases) in zip(row, found.items(), strict=True):
        what = cost(target)
        for case, libraries in cases.items():
            ours = libraries.get(OURS, {}).get(what)
            for who, (color, marker) in LOOK.items():
                theirs = libraries.get(who, {}).get(what)
                if ours and theirs:
                    (seen[who],) = axes.plot(theirs / ours, names.index(case), marker, color=color, ms=6, zorder=3)
                    drawn.append(theirs / ours)
        for y in range(0, len(names), 2):
            axes.axhspan(y - 0.5, y + 0.5, color="black", alpha=0.035, zorder=0)
        axes.axvline(1, color="black", lw=1)
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
        unit = "bytes moved" if what == "passes" else "estimated cycles"
        axes.set_title(f"{DEVICES[target]}\n{unit}", fontsize=11)
        axes.set_xlabel("times bnderiv's")
    low, high = min(drawn) / 1.2, max(drawn) * 1.2
    at = [t for t in (0.1, 0.3, 0.5, 1, 2, 5, 10, 30, 100) if low <= t <= high]
    for axes in row:
        axes.axvspan(low, 1, color="#f6e3e3", zorder=0)
        axes.set(xscale="log", xlim=(low, high), ylim=(len(names) - 0.5, -0.5))
        axes.set_xticks(at, [f"{t:g}×" for t in at])
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.minorticks_off()
    figure.suptitle(
        "What the compilers count, without a device: how many times bnderiv's cost the others have\n"
        "(forward and backward; in the red area the others cost less)",
        fontsize=12,
    )
    figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def report(content: dict[str, Any], text: str, picture: bytes) -> bytes:
    """The page with picture and tables."""
    deciding = [c for c in comparisons(content) if c.what == cost(c.target)]
    return _report.page(
        "What do the compilers for TPU and GPU make of it?",
        f"In {sum(not c.worse for c in deciding)} of {len(deciding)} cases bnderiv's program costs no more than "
        "Flax's, by estimated cycles on TPUs and by bytes on the GPU. No device was used, no time measured.",
        [
            _report.Picture("In one picture", picture, "Left of 1 bnderiv costs more. A program that needs more memory "
                            "than the device has is not drawn."),
            _report.Markdown(text.split("\n", 1)[1]),
        ],
        command="python experiments/benchmark/ahead_of_time.py",
        configuration={"targets": ", ".join(DEVICES[target] for target in content["targets"])},
        facts={name: content[name] for name in ("date", "machine", "versions")},
    )  # fmt: skip


def _cases(content: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for target, cases in content["targets"].items():
        for case, found in cases.items():
            yield target, case, found


def _cell(counts: dict[str, Any], column: str) -> str:
    if "absent" in counts:
        return "does not compile" if column == COLUMNS[0] else ""
    value = counts[column]
    return "" if value is None else number(value)
