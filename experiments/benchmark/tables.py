"""The sections: what each measures, and its tables; the picture and the page, made from the numbers."""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from experiments._report import Part, Picture, Report, Table, Text, grid
from experiments.benchmark import convolutions, layers, memory, picture, steps
from experiments.benchmark.clock import Effort
from experiments.benchmark.torch_peer import Torch

OURS = "bnderiv"
HEADED = re.compile(r"^(batch norm( \+ relu)?|(max|avg) pool),? ")  # what of a case its section's title says
LIMITS = ("a copy of x", "4 copies", "4 copies in place")
LIMIT = "copies of x: 1 for a pool, 4 for batch norm"


def present(content: dict[str, Any], stem: str) -> Report:
    """The page of the numbers in `<stem>.json`: in which cases ours is not the faster one, and everything."""
    compared = [
        (ratio, case, who)
        for _, case, times in timed(content)
        for who, ratio in over_ours(times).items()
        if who not in (OURS, *LIMITS)
    ]
    slower = [(name, who, f"{ratio:.2f}") for ratio, name, who in sorted(compared) if ratio < 1]
    faster = f"In {len(compared) - len(slower)} of {len(compared)} comparisons"
    title, said = "Where bnderiv is slower", f"{faster} it is the faster one."
    parts: list[Part] = [Text(title, said)]
    if slower:
        said += " In the others the peer takes less time:"
        parts = [Table(title, ("case", "peer", "its time / bnderiv's"), slower, said)]
    if any(timed(content)):
        parts.insert(0, Picture("In one picture", f"{stem}.png", draw(content), "Left of 1 bnderiv is the slower one."))
    for name, section in SECTIONS.items():
        if numbers := content["sections"].get(name):
            parts += [Text(section.title, _about(numbers)), *section.tables(numbers)]
    return Report(
        "How fast is bnderiv, and how much does it keep?",
        f"{faster} with Flax, PyTorch and autodiff bnderiv is the faster one.",
        parts,
        facts={"backend": content["backend"]},
        file=f"{stem}.html",
        tables=f"{stem}.md",
        said=said if slower else "",
    )


def timed(content: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(title of the section, case, times) of what is timed against peers; PyTorch at its best."""
    for name, section in SECTIONS.items():
        if section.against_peers and name in content["sections"]:
            for case in content["sections"][name]["cases"]:
                yield section.title, case["case"], best_of_torch(case["times"])


def over_ours(times: dict[str, Any]) -> dict[str, float]:
    """The median of each that was timed, over ours."""
    return {who: entry["ms"][1] / times[OURS]["ms"][1] for who, entry in times.items() if "ms" in entry}


def draw(content: dict[str, Any]) -> bytes:
    """A row for each case, a mark for each peer."""
    groups: dict[str, dict[str, list[picture.Ratios]]] = {}
    for title, case, times in timed(content):
        ratios = over_ours(times)
        del ratios[OURS]
        ratios.pop(LIMITS[2], None)
        label = f"{HEADED.sub('', case)}   {times[OURS]['ms'][1]:.2g} ms"
        named = {LIMIT if who in LIMITS else who: ratio for who, ratio in ratios.items()}
        groups.setdefault(title, {})[label] = [named]
    title = f"{content['machine']}; in the red area the others are faster than bnderiv"
    return picture.draw(groups, ("",), "times bnderiv's time (medians)", title)


def best_of_torch(times: dict[str, Any]) -> dict[str, Any]:
    """With the fastest of PyTorch's contestants alone, which is named in its entry."""
    found = {who: entry for who, entry in times.items() if not who.startswith("PyTorch ")}
    torch = [entry | {"how": who.removeprefix("PyTorch ")} for who, entry in times.items() if who not in found]
    if torch:
        found["PyTorch"] = min(torch, key=lambda entry: entry["ms"][1] if "ms" in entry else math.inf)
    return found


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def time(entry: dict[str, Any]) -> str:
    """median (quartile–quartile)"""
    if "absent" in entry:
        return entry["absent"]
    low, median, high = map(number, entry["ms"])
    return f"{median} ({low}–{high})"


def times_ours(ratio: float, bold: bool = True) -> str:
    """How many times ours, bold where that is less."""
    return f"**{ratio:.2f}×**" if bold and ratio < 1 else f"{ratio:.2f}×"


# A section's texts and tables, from its numbers.


def _timed(section: dict[str, Any]) -> list[Part]:
    """Times of all, and beside those of the peers how many times ours they are; bold where that is less than 1."""
    if section.get("absent"):
        return [Text("", section["absent"])]
    rows = {}
    for case in section["cases"]:
        times = best_of_torch(case["times"])
        cells = {who: time(times[who]) for who in sorted(times, key=lambda who: (who != OURS, who in LIMITS))}
        for who, ratio in over_ours(times).items():
            if who != OURS:
                words = (cells[who], times_ours(ratio, who not in LIMITS), times[who].get("how"))
                cells[who] = ", ".join(filter(None, words))
        rows[case["case"]] = cells
    return [grid("", rows, "ms: median (quartiles), times bnderiv's; bold: bnderiv is slower.")]


def _geometries(section: dict[str, Any]) -> list[Part]:
    """The extremes of the ratios, and every case in which Flax is faster once compiled."""
    compared = [case for case in section["cases"] if "ms" in case["times"].get("Flax", {})]
    if not compared:
        return [Text("", "Flax was not measured.")]
    calls = [(case["case"], over_ours(case["times"])["Flax"]) for case in compared]
    first = [(case["case"], case["first call ms"]["Flax"] / case["first call ms"][OURS]) for case in compared]
    rows = {}
    for kind in ("max", "avg"):
        for what, ratios in (("a call", calls), ("the first call, compilation included", first)):
            own = sorted(ratio for case, ratio in ratios if case.startswith(kind))
            few = {"least": f"{own[0]:.2f}×", "median": f"{own[len(own) // 2]:.2f}×"}
            rows[f"{kind} pool, {what}"] = few | {"times bnderiv is slower": sum(ratio < 1 for ratio in own)}
    slower = [(case, times_ours(ratio)) for case, ratio in sorted(calls, key=lambda each: each[1]) if ratio < 1]
    caption = f"Forward and backward at {section['shape']}, Flax's time over bnderiv's:"
    return [grid("", rows, caption), *([Table("", ("slower once compiled", ""), slower)] if slower else [])]


def _lenet(section: dict[str, Any]) -> list[Part]:
    product = 2 * steps.MATRIX**3 / section["matrix product"]["ms"][1] / 1e6
    share = f"of a {steps.MATRIX}³ matrix product's {product:.0f}"
    rows = {}
    for case in section["cases"]:
        rate = case["flops"] / case["times"][OURS]["ms"][1] / 1e6
        rows[case["case"]] = {"GFLOP/s": f"{rate:.0f}", share: f"{100 * rate / product:.0f} %"}
    return [*_timed(section), grid("", rows, "Nominal work of the convolutions and dense layers per time:")]


def _memory(section: dict[str, Any]) -> list[Part]:
    residuals, stack = section["residuals"], section["stack"]
    kept = {case["case"]: {who: f"{k:.3g}" for who, k in case["of x"].items()} for case in residuals["cases"]}
    needs = {f"temporary memory, MiB, {case['case']}, {case['shape']}": case["temporary MiB"] for case in stack}
    takes = {
        f"time, ms, {case['case']}, {case['timed shape']}": {who: time(entry) for who, entry in case["times"].items()}
        for case in stack
        if "times" in case
    }
    return [
        grid("", kept, f"Saved between forward and backward, in units of x ({residuals['shape']}), exact:"),
        grid("", needs | takes, "Value and gradient of four times conv 3×3 → batch norm → ReLU, compiled:"),
    ]


def _convolution(section: dict[str, Any]) -> list[Part]:
    ways = dict.fromkeys(way for case in section["cases"] for way in case["times"])
    rows, right = {}, 0
    for case in section["cases"]:
        times = case["times"]
        loss = times[case["chosen"]]["ms"][1] / min(entry["ms"][1] for entry in times.values())
        right += loss < 1.05
        rows[f"{case['case']}, {case['layout']}"] = {
            "MFLOP": number(case["MFLOP"]),
            "size/k · C_out": case["size/k · C_out"],
            **{f"{way}, ms": time(times[way]) if way in times else "" for way in ways},
            "taken": case["chosen"],
            "fastest within 5 %": "yes" if loss < 1.05 else f"**no, {loss:.2f}×**",
        }
    said = f"Forward and both gradients. The way taken is the fastest, within 5 %, in {right} of {len(rows)} rows."
    return [grid("", rows, said)]


def _growth(section: dict[str, Any]) -> list[Part]:
    sizes = {}
    for case in section["sizes"]:
        size, cells = case["elements"], {}
        for name in ("batch_norm", "max_pool"):
            cells[f"{name}: ns"] = case.get("absent") or f"{case['times'][name]['ms'][1] * 1e6 / size:.2f}"
            for kind in (f"{name}: temporary bytes", f"{name}: saved bytes"):
                cells[kind] = "" if "absent" in case else f"{case[kind] / size:.2f}"
        sizes[f"{size:.0e}".replace("e+0", "e")] = cells
    compiling = {who: {part: time(entry) for part, entry in parts.items()} for who, parts in section["compile"].items()}
    imports = {what: {"ms": time(entry)} for what, entry in section["import"].items()}
    return [
        grid("", sizes, "Forward and backward, each divided by the number of elements:", "elements"),
        grid("", compiling, "A step of LeNet-5, batch 32, from Python to a program, ms:"),
        grid("", imports, "In fresh processes:"),
    ]


def _overhead(section: dict[str, Any]) -> list[Part]:
    rows = {}
    for case in section["cases"]:
        cells = {who: number(entry["ms"][1] * 1e3) for who, entry in case["times"].items()}
        rows[case["case"]] = cells | {"times bnderiv's": times_ours(over_ours(case["times"])["plain jnp"])}
    return [grid("", rows, "One call outside of `jax.jit`, µs:")]


def _about(section: dict[str, Any]) -> str:
    names = ", ".join(f"{name} {version or 'absent'}" for name, version in section["versions"].items())
    return f"{section['date']}, {section['processor']}, {section['seconds']} s; {names}."


class Section(NamedTuple):
    """A part of the benchmark."""

    title: str
    measure: Callable[[Effort, Torch], dict[str, Any] | Iterator[dict[str, Any]]]  # its numbers, or the cases they are
    tables: Callable[[dict[str, Any]], list[Part]] = _timed
    against_peers: bool = True  # in the picture, and in the count of comparisons


SECTIONS = {
    "lenet": Section("A step of LeNet-5", steps.measure, _lenet),
    "epoch": Section("Steps of LeNet-5 in one call", steps.epochs),
    "max_pool": Section("Max pool", partial(layers.pools, "max")),
    "avg_pool": Section("Average pool", partial(layers.pools, "avg")),
    "geometries": Section("Pools of random windows", layers.random_pools, _geometries, against_peers=False),
    "batch_norm": Section("Batch norm", partial(layers.batch_norms, "batch_norm")),
    "batch_norm_relu": Section("Batch norm and ReLU", partial(layers.batch_norms, "batch_norm_relu")),
    "loss": Section("Softmax cross entropy", layers.losses),
    "other": Section("The other layers", layers.others),
    "memory": Section("Memory", memory.measure, _memory, against_peers=False),
    "convolution": Section("Convolutions: which way", convolutions.measure, _convolution, against_peers=False),
    "growth": Section("Growth", memory.growth, _growth, against_peers=False),
    "overhead": Section("Calls outside of jit", layers.calls, _overhead, against_peers=False),
    "gpu": Section("On a GPU: batch norm at ResNet-50's shapes", layers.batch_norms_of_resnet),
}
