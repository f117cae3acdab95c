"""Tables, picture and page of what compilers make of the layers, from the numbers of `ahead_of_time.py`."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments._report import Part, Picture, Report, Table, Text, grid, markdown
from experiments.benchmark import picture
from experiments.benchmark.tables import OURS, number

DEVICES = {"v5e": "TPU v5e", "v6e": "TPU v6e", "v5p": "TPU v5p", "h100": "NVIDIA H100"}
COST = {target: "passes" if target == "h100" else "megacycles" for target in DEVICES}  # what decides
PEER = "Flax"
COLUMNS = {
    "passes": "bytes that all kernels read and write, over those of the case's array; batch norm needs 8",
    "megacycles": "the TPU compiler's own estimate; there is none for a GPU",
    "temporary MB": "memory beside arguments and results",
    "kernels": "those that are launched",
    "masks": "arrays of booleans that are written to memory",
    "float32 convolutions": "those with a float32 operand; in bfloat16 there should be none",
    "passes aside": "passes in branches for unusual data, where batch norm measures again",
}
COMPARED = ("megacycles", "passes", "temporary MB")
SAME, ROOM = 1.005, {"temporary MB": 2.0}  # a ratio nearer to 1 is a tie, and so is a difference of 2 MB
HOW = (
    "Nothing here is a measured time. Each case was compiled for one device, and the compiled program counted: forward "
    "and backward as in training, or the forward alone if the name says so. Caches, autotuning and cuDNN's choice of "
    "algorithm are not in the counts. The array of LeNet-5 is the output of its first convolution. What a TPU keeps in "
    "its vector memory is not moved, so that batch norm of a small array takes fewer passes there."
)


# The heading under which a case is drawn.
KIND = re.compile(
    r"^(batch norm \+ relu|[a-z]+ norm|[a-z]+ pool|softmax|cross entropy|bottleneck block|[\w-]+'s step),? "
)


class Comparison(NamedTuple):
    """How much of something a peer takes, and ours."""

    target: str
    case: str
    what: str
    theirs: float
    ours: float

    @property
    def worse(self) -> bool:
        """Ours is."""
        return self.ours > SAME * self.theirs + ROOM.get(self.what, 0)

    @property
    def times(self) -> str:
        """How many times theirs, unless that is next to nothing."""
        return f"{self.ours / self.theirs:.2f}×" if self.theirs > ROOM.get(self.what, 0) else ""


def comparisons(content: dict[str, Any]) -> Iterator[Comparison]:
    """Each case against Flax: cycles where there are some, passes, and temporary memory."""
    for target, cases in content["targets"].items():
        for case, found in cases.items():
            for what in COMPARED:
                theirs, ours = (found.get(who, {}).get(what) for who in (PEER, OURS))
                if theirs is not None and ours is not None:
                    yield Comparison(target, case, what, theirs, ours)


def summary(content: dict[str, Any]) -> list[Part]:
    """How often ours takes no more than Flax, by what decides; and every case where it takes more of anything."""
    compared = list(comparisons(content))
    rows = {}
    for target in content["targets"]:
        cells = {"cost is in": COST[target]}
        columns = {"cases where bnderiv costs no more": COST[target], "and needs no more memory": "temporary MB"}
        for column, what in columns.items():
            better = [not c.worse for c in compared if (c.target, c.what) == (target, what)]
            cells[column] = f"{sum(better)} of {len(better)}"
        rows[DEVICES[target]] = cells
    parts: list[Part] = [grid("Against Flax", rows, first="device")]
    worse = [
        (DEVICES[c.target], c.case, c.what, number(c.ours), number(c.theirs), c.times) for c in compared if c.worse
    ]
    columns = ("device", "case", "what", "bnderiv", "Flax", "times Flax's")
    return [*parts, Table("Where bnderiv takes more than Flax", columns, worse)] if worse else parts


def tables(content: dict[str, Any]) -> list[Part]:
    """Everything that was counted."""
    counted, by = [], set()
    for target, cases in content["targets"].items():
        rows = []
        for case, libraries in cases.items():
            for who, counts in libraries.items():
                rows.append((case if who == OURS else "", who, *(_cell(counts, column) for column in COLUMNS)))
                by.add(counts["by"])
        counted.append(Table(DEVICES[target], ("case", "library", *COLUMNS), rows))
    return [
        Text("By the compilers of TPU and GPU, without a device", HOW),
        Table("", ("", ""), list(COLUMNS.items())),
        *summary(content),
        *counted,
        Text("The compilers", "; ".join(sorted(by)) + "."),
    ]


def draw(content: dict[str, Any]) -> bytes:
    """A column for each device, a row for each case, a mark for each peer."""
    targets = content["targets"]
    groups: dict[str, dict[str, list[dict[str, float]]]] = {}
    for case in dict.fromkeys(case for cases in targets.values() for case in cases):
        ratios = []
        for target, cases in targets.items():
            costs = {who: counts.get(COST[target]) for who, counts in cases.get(case, {}).items()}
            ours = costs.pop(OURS, None)
            ratios.append({who: theirs / ours for who, theirs in costs.items() if ours and theirs})
        kind = KIND.match(case)
        groups.setdefault(kind[1] if kind else "", {})[KIND.sub("", case)] = ratios
    units = {"passes": "bytes", "megacycles": "cycles"}
    panels = [f"{DEVICES[target].split()[1]}, {units[COST[target]]}" for target in targets]
    title = "Counted by compilers, without a device; in the red area the others cost less"
    return picture.draw(groups, panels, "times bnderiv's cost", title)


def present(content: dict[str, Any]) -> Report:
    """The page with picture and tables."""
    deciding = [c for c in comparisons(content) if c.what == COST[c.target]]
    caption = "Left of 1 bnderiv costs more. A program that needs more memory than the device has is not drawn."
    return Report(
        "What do the compilers for TPU and GPU make of it?",
        f"In {sum(not c.worse for c in deciding)} of {len(deciding)} cases bnderiv's program costs no more than "
        "Flax's, by estimated cycles on TPUs and by bytes on the GPU. No device was used, no time measured.",
        [Picture("In one picture", "ahead_of_time.png", draw(content), caption), *tables(content)],
        file="ahead_of_time.html",
        tables="ahead_of_time.md",
        said=markdown(summary(content)),
    )


def _cell(counts: dict[str, Any], column: str) -> str:
    if "absent" in counts:
        return "does not compile" if column == "passes" else ""
    value = counts[column]
    return "" if value is None else number(value)
