"""The tables, the picture and the page, made from the numbers."""

from collections.abc import Iterator
from typing import Any

from experiments._report import Part, Picture, Report, Table, Text
from experiments.benchmark import picture, steps

OURS = "bnderiv"
# Timed against peers.
TIMED = ("lenet", "epoch", "max_pool", "avg_pool", "batch_norm", "batch_norm_relu", "loss", "other", "gpu")
LIMITS = ("a copy of x", "4 copies", "4 copies in place")


def present(content: dict[str, Any], stem: str) -> Report:
    """The page of the numbers in `<stem>.json`."""
    compared, slower = list(comparisons(content)), where_slower(content)
    picture_of_times = draw(content)
    pictures = []
    if picture_of_times is not None:
        caption = "Left of 1 bnderiv is the slower one."
        pictures = [Picture("In one picture", f"{stem}.png", picture_of_times, caption)]
    sections = [
        part
        for name, (title, make) in SECTIONS.items()
        if (section := content["sections"].get(name))
        for part in (Text(title, _about(section)), *make(section))
    ]
    return Report(
        "How fast is bnderiv, and how much does it keep?",
        f"In {sum(ratio > 1 for *_, ratio in compared)} of {len(compared)} comparisons with Flax, PyTorch and autodiff "
        "bnderiv is the faster one.",
        [*pictures, *slower, *sections],
        facts={"backend": content["backend"]},
        file=f"{stem}.html",
        tables=f"{stem}.md",
        said=slower[0].caption if isinstance(slower[0], Table) else "",
    )


def where_slower(content: dict[str, Any]) -> list[Part]:
    """How often ours is the faster one, and every case in which it is not."""
    compared = list(comparisons(content))
    slower = sorted((ratio, name, who) for name, who, ratio in compared if ratio < 1)
    faster = f"In {len(compared) - len(slower)} of {len(compared)} comparisons it is the faster one."
    if not slower:
        return [Text("Where bnderiv is slower", faster)]
    rows = [(name, who, f"{ratio:.2f}") for ratio, name, who in slower]
    caption = f"{faster} In the others the peer takes less time:"
    return [Table("Where bnderiv is slower", ("case", "peer", "its time / bnderiv's"), rows, caption)]


def comparisons(content: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(case, peer, its median time / ours) of what is timed against peers."""
    for _, case, medians in timed_medians(content):
        for who, median in medians.items():
            if who not in (OURS, *LIMITS):
                yield case, who, median / medians[OURS]


def timed_medians(content: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(section, case, median time of each) of what is timed against peers; PyTorch at its best."""
    for name in TIMED:
        for case in content["sections"].get(name, {"cases": []})["cases"]:
            times = best_of_torch(case["times"]).items()
            yield name, case["case"], {who.split(" (")[0]: entry["ms"][1] for who, entry in times if "ms" in entry}


def draw(content: dict[str, Any]) -> bytes | None:
    """A row for each case, a mark for each peer; nothing where nothing was timed."""
    groups: dict[str, dict[str, list[picture.Ratios]]] = {}
    for name, case, medians in timed_medians(content):
        ours = medians.pop(OURS)
        medians.pop(LIMITS[2], None)
        ratios = {LIMIT if who in LIMITS else who: median / ours for who, median in medians.items()}
        groups.setdefault(SECTIONS[name][0], {})[f"{picture.KIND.sub('', case)}   {ours:.2g} ms"] = [ratios]
    if not groups:
        return None
    title = f"{content['machine']}; in the red area the others are faster than bnderiv"
    return picture.draw(groups, ("",), "times bnderiv's time (medians)", title)


LIMIT = "copies of x: 1 for a pool, 4 for batch norm"


def best_of_torch(times: dict[str, Any]) -> dict[str, Any]:
    """With the fastest of PyTorch's contestants alone, which is named."""
    torch = {who: time for who, time in times.items() if who.startswith("PyTorch ") and "ms" in time}
    others = {who: time for who, time in times.items() if not who.startswith("PyTorch ")}
    if torch:
        who = min(torch, key=lambda who: torch[who]["ms"][1])
        others[f"PyTorch ({who.removeprefix('PyTorch ')})"] = torch[who]
    else:
        absent = [time["absent"] for who, time in times.items() if who.startswith("PyTorch ")]
        if absent:
            others["PyTorch"] = {"absent": absent[0]}
    return others


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def time(entry: dict[str, Any] | None) -> str:
    """median (quartile–quartile)"""
    if entry is None:
        return ""
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
    cases = [(case["case"], best_of_torch(case["times"])) for case in section["cases"]]
    columns = list(dict.fromkeys(who.split(" (")[0] for _, times in cases for who in times))
    columns.sort(key=lambda who: (who != OURS, who in LIMITS))
    rows = []
    for name, times in cases:
        cells = {}
        for who, entry in times.items():
            column, _, how = who.partition(" (")
            words = [time(entry)]
            if "ms" in entry and column != OURS:
                words.append(times_ours(entry["ms"][1] / times[OURS]["ms"][1], column not in LIMITS))
            cells[column] = ", ".join([*words, *[how[:-1]] * bool(how)])
        rows.append((name, *(cells.get(column, "") for column in columns)))
    return [Table("", ("", *columns), rows, "ms: median (quartiles), times bnderiv's; bold: bnderiv is slower.")]


def _geometries(section: dict[str, Any]) -> list[Part]:
    """The extremes of the ratios, and every case in which Flax is faster once compiled."""
    compared = [case for case in section["cases"] if "ms" in case["times"].get("Flax", {})]
    if not compared:
        return [Text("", "Flax was not measured.")]

    def ratio(case: dict[str, Any]) -> float:
        return case["times"]["Flax"]["ms"][1] / case["times"][OURS]["ms"][1]

    def of_first(case: dict[str, Any]) -> float:
        return case["first call ms"]["Flax"] / case["first call ms"][OURS]

    rows = []
    for kind in ("max", "avg"):
        own = [case for case in compared if case["case"].startswith(kind)]
        for what, of in (("a call", ratio), ("the first call, compilation included", of_first)):
            ratios = sorted(map(of, own))
            few = (f"{r:.2f}×" for r in (ratios[0], ratios[len(ratios) // 2]))
            rows.append((f"{kind} pool, {what}", *few, sum(r < 1 for r in ratios)))
    caption = f"Forward and backward at {section['shape']}, Flax's time over bnderiv's:"
    parts: list[Part] = [Table("", ("", "least", "median", "times bnderiv is slower"), rows, caption)]
    slower = [(c["case"], times_ours(ratio(c))) for c in sorted(compared, key=ratio) if ratio(c) < 1]
    return [*parts, Table("", ("slower once compiled", ""), slower)] if slower else parts


def _lenet(section: dict[str, Any]) -> list[Part]:
    product, ours = steps.rates(section)
    rows = [(case, f"{rate:.0f}", f"{100 * rate / product:.0f} %") for case, rate in ours]
    head = ("", "GFLOP/s", f"of a {steps.MATRIX}³ matrix product's {product:.0f}")
    caption = "Nominal work of the convolutions and dense layers per time:"
    return [*_timed(section), Table("", head, rows, caption)]


def _memory(section: dict[str, Any]) -> list[Part]:
    cases, stack = section["residuals"]["cases"], section["stack"]
    who = list(dict.fromkeys(w for case in cases for w in case["of x"]))
    kept = [(case["case"], *(f"{case['of x'][w]:.3g}" if w in case["of x"] else "" for w in who)) for case in cases]
    others = list(stack[0]["temporary MiB"])
    needs = [
        (f"temporary memory, MiB, {c['case']}, {c['shape']}", *(c["temporary MiB"][w] for w in others)) for c in stack
    ]
    takes = [
        (f"time, ms, {c['case']}, {c['timed shape']}", *(time(c["times"][w]) for w in others))
        for c in stack
        if "times" in c
    ]
    caption = f"Saved between forward and backward, in units of x ({section['residuals']['shape']}), exact:"
    of_stack = "Value and gradient of four times conv 3×3 → batch norm → ReLU, compiled:"
    return [Table("", ("", *who), kept, caption), Table("", ("", *others), needs + takes, of_stack)]


def _convolution(section: dict[str, Any]) -> list[Part]:
    ways = list(dict.fromkeys(way for case in section["cases"] for way in case["times"]))
    rows, right = [], 0
    for case in section["cases"]:
        medians = {way: case["times"][way]["ms"][1] for way in case["times"]}
        loss = medians[case["chosen"]] / min(medians.values())
        right += loss < 1.05
        rows.append(
            (
                f"{case['case']}, {case['layout']}",
                number(case["MFLOP"]),
                case["size/k · C_out"],
                *(time(case["times"].get(way)) for way in ways),
                case["chosen"],
                "yes" if loss < 1.05 else f"**no, {loss:.2f}×**",
            )
        )
    head = ("", "MFLOP", "size/k · C_out", *(f"{way}, ms" for way in ways), "taken", "fastest within 5 %")
    said = f"Forward and both gradients. The way taken is the fastest, within 5 %, in {right} of {len(rows)} rows."
    return [Table("", head, rows, said)]


def _growth(section: dict[str, Any]) -> list[Part]:
    layers, kinds = ("batch_norm", "max_pool"), ("temporary", "saved")
    rows = []
    for case in section["sizes"]:
        size = case["elements"]
        cells = [f"{size:.0e}".replace("e+0", "e")]
        for name in layers:
            if "absent" in case:
                cells += [case["absent"], "", ""]
                continue
            taken = (case[f"{name}: {what} bytes"] for what in kinds)
            cells.append(f"{case['times'][name]['ms'][1] * 1e6 / size:.2f}")
            cells += [f"{amount / size:.2f}" for amount in taken]
        rows.append(cells)
    head = (
        "elements",
        *(f"{name}: {what}" for name in layers for what in ("ns", *(f"{kind} bytes" for kind in kinds))),
    )
    parts = list(section["compile"][OURS])
    compiling = [(who, *(time(entry[part]) for part in parts)) for who, entry in section["compile"].items()]
    return [
        Table("", head, rows, "Forward and backward, each divided by the number of elements:"),
        Table("", ("", *parts), compiling, "A step of LeNet-5, batch 32, from Python to a program, ms:"),
        Table(
            "", ("", "ms"), [(what, time(entry)) for what, entry in section["import"].items()], "In fresh processes:"
        ),
    ]


def _overhead(section: dict[str, Any]) -> list[Part]:
    rows = []
    for case in section["cases"]:
        ours, plain = (case["times"][who]["ms"][1] * 1e3 for who in (OURS, "plain jnp"))
        rows.append((case["case"], number(ours), number(plain), times_ours(plain / ours)))
    return [Table("", ("", OURS, "plain jnp", "times bnderiv's"), rows, "One call outside of `jax.jit`, µs:")]


def _about(section: dict[str, Any]) -> str:
    names = ", ".join(f"{name} {version or 'absent'}" for name, version in section["versions"].items())
    return f"{section['date']}, {section['processor']}, {section['seconds']} s; {names}."


SECTIONS = {  # title, and what makes its tables
    "lenet": ("A step of LeNet-5", _lenet),
    "epoch": ("Steps of LeNet-5 in one call", _timed),
    "max_pool": ("Max pool", _timed),
    "avg_pool": ("Average pool", _timed),
    "geometries": ("Pools of random windows", _geometries),
    "batch_norm": ("Batch norm", _timed),
    "batch_norm_relu": ("Batch norm and ReLU", _timed),
    "loss": ("Softmax cross entropy", _timed),
    "other": ("The other layers", _timed),
    "memory": ("Memory", _memory),
    "convolution": ("Convolutions: which way", _convolution),
    "growth": ("Growth", _growth),
    "overhead": ("Calls outside of jit", _overhead),
    "gpu": ("On a GPU: batch norm at ResNet-50's shapes", _timed),
}
