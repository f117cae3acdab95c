"""The tables, made from the numbers."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.benchmark import lenet_step

Row = Sequence[str]
OURS = "bnderiv"
TIMED = ("lenet", "epoch", "max_pool", "avg_pool", "batch_norm", "batch_norm_relu", "gpu")  # against peers
LIMITS = ("a copy of x", "4 copies", "4 copies in place")


def markdown(content: dict[str, Any]) -> str:
    """Everything that was measured."""
    parts = [
        f"Measured on: {content['machine']}; {content['processor']}; backend {content['backend']}; "
        f"memory of large arrays {content['memory']}.\n",
        summary(content),
    ]
    for name, make in SECTIONS.items():
        section = content["sections"].get(name)
        if section:
            parts.append(f"## {TITLES[name]}\n\n{make(section)}\n\n{_about(section)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def summary(content: dict[str, Any]) -> str:
    """How often ours is the faster one, and every case in which it is not."""
    compared = list(comparisons(content))
    slower = [(name, who, ratio) for name, who, ratio in compared if ratio < 1]
    faster = f"In {len(compared) - len(slower)} of {len(compared)} comparisons it is the faster one."
    lines = [f"## Where bnderiv is slower\n\n{faster}{' In the others the peer takes less time:' if slower else ''}"]
    if slower:
        rows = [(name, who, f"{ratio:.2f}") for name, who, ratio in sorted(slower, key=lambda row: row[2])]
        lines.append(table(("case", "peer", "its time / bnderiv's"), rows))
    return "\n\n".join(lines)


def comparisons(content: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(case, peer, its median time / ours) of the LeNet step, the pools and batch norm; PyTorch at its best."""
    for name in TIMED:
        for case in content["sections"].get(name, {"cases": []})["cases"]:
            times = best_of_torch(case["times"])
            for who in times:
                if who not in (OURS, *LIMITS) and "ms" in times[who]:
                    yield case["case"], who.split(" (")[0], times[who]["ms"][1] / times[OURS]["ms"][1]


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


def table(columns: Row, rows: Sequence[Row]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows))


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


def _timed(section: dict[str, Any]) -> str:
    """Times of all, and beside those of the peers how many times ours they are; bold where that is less than 1."""
    if section.get("absent"):
        return section["absent"]
    cases = [(case["case"], best_of_torch(case["times"])) for case in section["cases"]]
    columns = list(dict.fromkeys(who.split(" (")[0] for _, times in cases for who in times))
    columns.sort(key=lambda who: (who != OURS, who in LIMITS))
    rows = []
    for name, times in cases:
        cells = [name]
        for column in columns:
            full = next((who for who in times if who.split(" (")[0] == column), None)
            cell = time(times[full]) if full else ""
            if full and "ms" in times[full] and column != OURS:
                ratio = times[full]["ms"][1] / times[OURS]["ms"][1]
                factor = f"{ratio:.2f}×"
                cell += f", {f'**{factor}**' if ratio < 1 and column not in LIMITS else factor}"
                cell += f", {full.split(' (')[1][:-1]}" if " (" in full else ""
            cells.append(cell)
        rows.append(cells)
    return "ms: median (quartiles), times bnderiv's; bold: bnderiv is slower.\n\n" + table(("", *columns), rows)


def _geometries(section: dict[str, Any]) -> str:
    """The extremes of the ratios, and every case in which Flax is faster once compiled."""
    compared = [case for case in section["cases"] if "ms" in case["times"].get("Flax", {})]
    if not compared:
        return "Flax was not measured."

    def ratio(case: dict[str, Any]) -> float:
        return case["times"]["Flax"]["ms"][1] / case["times"][OURS]["ms"][1]

    def of_first(case: dict[str, Any]) -> float:
        return case["first call ms"]["Flax"] / case["first call ms"][OURS]

    rows = []
    for kind in ("max", "avg"):
        own = [case for case in compared if case["case"].startswith(kind)]
        for what, of in (("a call", ratio), ("the first call, compilation included", of_first)):
            ratios = sorted(map(of, own))
            slower = sum(r < 1 for r in ratios)
            rows.append((f"{kind} pool, {what}", *(f"{r:.2f}×" for r in (ratios[0], ratios[len(ratios) // 2])), slower))
    text = [
        f"Forward and backward at {section['shape']}, Flax's time over bnderiv's:",
        table(("", "least", "median", "times bnderiv is slower"), [[*map(str, row)] for row in rows]),
    ]
    slower = [(c["case"], f"**{ratio(c):.2f}×**") for c in sorted(compared, key=ratio) if ratio(c) < 1]
    return "\n\n".join([*text, table(("slower once compiled", ""), slower)] if slower else text)


def _lenet(section: dict[str, Any]) -> str:
    product, ours = lenet_step.rates(section)
    rows = [(case, f"{rate:.0f}", f"{100 * rate / product:.0f} %") for case, rate in ours]
    head = ("", "GFLOP/s", f"of a {lenet_step.MATRIX}³ matrix product's {product:.0f}")
    return f"{_timed(section)}\n\nNominal work of the convolutions and dense layers per time:\n\n{table(head, rows)}"


def _memory(section: dict[str, Any]) -> str:
    cases = section["residuals"]["cases"]
    who = list(dict.fromkeys(w for case in cases for w in case["of x"]))
    rows = [(case["case"], *(f"{case['of x'][w]:.3g}" if w in case["of x"] else "" for w in who)) for case in cases]
    text = [
        f"Saved between forward and backward, in units of x ({section['residuals']['shape']}), exact:",
        table(("", *who), rows),
    ]
    stack = section["stack"]
    who = list(stack[0]["temporary MiB"])
    rows = [
        (f"temporary memory, MiB, {c['case']}, {c['shape']}", *(str(c["temporary MiB"][w]) for w in who)) for c in stack
    ]
    rows += [
        (f"time, ms, {c['case']}, {c['timed shape']}", *(time(c["times"][w]) for w in who))
        for c in stack
        if "times" in c
    ]
    text += ["Value and gradient of four times conv 3×3 → batch norm → ReLU, compiled:", table(("", *who), rows)]
    return "\n\n".join(text)


def _convolution(section: dict[str, Any]) -> str:
    ways = list(dict.fromkeys(way for case in section["cases"] for way in case["times"]))
    rows, right = [], 0
    for case in section["cases"]:
        medians = {way: case["times"][way]["ms"][1] for way in case["times"]}
        loss = medians[case["chosen"]] / min(medians.values())
        right += loss < 1.05
        cells = [time(case["times"].get(way)) for way in ways]
        verdict = "yes" if loss < 1.05 else f"**no, {loss:.2f}×**"
        rows.append(
            (
                f"{case['case']}, {case['layout']}",
                number(case["MFLOP"]),
                str(case["size/k · C_out"]),
                *cells,
                case["chosen"],
                verdict,
            )
        )
    head = ("", "MFLOP", "size/k · C_out", *(f"{way}, ms" for way in ways), "taken", "fastest within 5 %")
    said = f"Forward and both gradients. The way taken is the fastest, within 5 %, in {right} of {len(rows)} rows."
    return f"{said}\n\n{table(head, rows)}"


def _growth(section: dict[str, Any]) -> str:
    rows = []
    for case in section["sizes"]:
        size = case["elements"]
        cells = [f"{size:.0e}".replace("e+0", "e")]
        for name in ("batch_norm", "max_pool"):
            if "absent" in case:
                cells += [case["absent"], "", ""]
                continue
            cells.append(f"{case['times'][name]['ms'][1] * 1e6 / size:.2f}")
            cells += [
                "" if case[f"{name}: {what} bytes"] is None else f"{case[f'{name}: {what} bytes'] / size:.2f}"
                for what in ("temporary", "saved")
            ]
        rows.append(cells)
    head = (
        "elements",
        *(
            f"{name}: {what}"
            for name in ("batch_norm", "max_pool")
            for what in ("ns", "temporary bytes", "saved bytes")
        ),
    )
    text = ["Forward and backward, each divided by the number of elements:", table(head, rows)]
    parts = list(section["compile"][OURS])
    rows = [(who, *(time(entry[part]) for part in parts)) for who, entry in section["compile"].items()]
    text += ["A step of LeNet-5, batch 32, from Python to a program, ms:", table(("", *parts), rows)]
    rows = [(what, time(entry)) for what, entry in section["import"].items()]
    return "\n\n".join([*text, "Imports in fresh processes, ms:", table(("", "ms"), rows)])


def _overhead(section: dict[str, Any]) -> str:
    rows = []
    for case in section["cases"]:
        ours, plain = (case["times"][who]["ms"][1] * 1e3 for who in (OURS, "plain jnp"))
        rows.append(
            (
                case["case"],
                number(ours),
                number(plain),
                f"{plain / ours:.2f}×" if plain > ours else f"**{plain / ours:.2f}×**",
            )
        )
    return "One call outside of `jax.jit`, µs:\n\n" + table(("", OURS, "plain jnp", "times bnderiv's"), rows)


def _about(section: dict[str, Any]) -> str:
    names = ", ".join(f"{name} {version or 'absent'}" for name, version in section["versions"].items())
    return f"{section['date']}, {section['seconds']} s; {names}."


TITLES = {
    "lenet": "A step of LeNet-5",
    "epoch": "Steps of LeNet-5 in one call",
    "max_pool": "Max pool",
    "avg_pool": "Average pool",
    "geometries": "Pools of random windows",
    "batch_norm": "Batch norm",
    "batch_norm_relu": "Batch norm and ReLU",
    "memory": "Memory",
    "convolution": "Convolutions: which way",
    "growth": "Growth",
    "overhead": "Calls outside of jit",
    "gpu": "On a GPU: batch norm at ResNet-50's shapes",
}
SECTIONS = {
    "lenet": _lenet,
    "epoch": _timed,
    "max_pool": _timed,
    "avg_pool": _timed,
    "geometries": _geometries,
    "batch_norm": _timed,
    "batch_norm_relu": _timed,
    "memory": _memory,
    "convolution": _convolution,
    "growth": _growth,
    "overhead": _overhead,
    "gpu": _timed,
}
