"""What every experiment leaves: its numbers, and what is made of them alone: pictures, tables and an HTML page.

A script's main is an `experiment`: it measures, `keep`s the numbers in a JSON file with all that a page says about the
run, and `show`s that file. With --redraw it only shows.
"""

import base64
import contextlib
import datetime
import html
import io
import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np

from experiments import _command, _options

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "scikit-learn")

# Pictures stand at half the width of a page too: narrow figures, whose letters are then still 8 pixels high.
WIDTH = 7.2  # inches
plt.rcParams.update({
    "figure.constrained_layout.use": True, "figure.figsize": (WIDTH, 4.2), "savefig.dpi": 150, "font.size": 11,
    "axes.titlesize": 11, "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3, "legend.frameon": False,
    "legend.fontsize": 10, "xtick.labelsize": 10, "ytick.labelsize": 10,
})  # fmt: skip
# A library has one color and one mark in every picture. Those that fall on one line have marks of different sizes.
LOOKS: dict[str, dict[str, Any]] = {
    "bnderiv": {"color": "black", "marker": "o", "markersize": 6, "linewidth": 2.5, "zorder": 5},
    "plain autodiff": {"color": "tab:blue", "marker": "s", "markersize": 10, "markerfacecolor": "none"},
    "Flax": {"color": "tab:red", "marker": "v", "markersize": 9, "markerfacecolor": "none"},
    "Flax, two-pass": {"color": "tab:orange", "marker": "^", "markersize": 7, "linestyle": "--"},
    "Equinox": {"color": "tab:green", "marker": "D", "markersize": 3, "linestyle": ":"},
    "Haiku": {"color": "tab:purple", "marker": "x", "markersize": 6, "linestyle": "--"},
    "PyTorch": {"color": "tab:brown", "marker": "P", "markersize": 6, "linestyle": "-."},
}
OF_A_RUN = ("date", "machine", "memory", "versions")  # entries of the numbers that the page repeats


class Picture(NamedTuple):
    """A PNG in a separate file; `caption` says what to see in it, and is its alternative text."""

    title: str
    file: str
    png: bytes
    caption: str


class Table(NamedTuple):
    """Rows of cells, shown as `str` shows them, with **bold** and `code`. Without a title it goes on what is above."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


def grid(title: str, rows: Mapping[str, Mapping[str, Any]], caption: str = "", first: str = "") -> Table:
    """A table of rows by name, each of cells by column; in `first` are the names. A row may lack cells."""
    columns = dict.fromkeys(column for cells in rows.values() for column in cells)
    lines = [(name, *(cells.get(column, "") for column in columns)) for name, cells in rows.items()]
    return Table(title, (first, *columns), lines, caption)


class Text(NamedTuple):
    """A heading, if there is one, and a paragraph."""

    title: str
    text: str


Part = Picture | Table | Text


class Report(NamedTuple):
    """What is made of the numbers."""

    title: str
    summary: str  # what came out, in a sentence or two
    parts: Sequence[Part]  # in the order of the page, no two under one title
    facts: Mapping[str, Any] = {}  # further lines about the run
    file: str = "report.html"
    tables: str = ""  # a file of the texts and tables in Markdown, if there is to be one
    said: str = ""  # what is printed; the summary where that is empty
    wrong: str = ""  # what must not have come out: it ends the command


def experiment(
    kind: type[_options.Measured],
    name: str,
    measure: Callable[[Any], Mapping[str, Any]],
    present: Callable[[dict[str, Any]], Report],
    *more: str,
) -> Callable[..., None]:
    """A script's main: measures, unless it is to be drawn again, keeps the numbers and shows them.

    Args:
      kind: of the options.
      name: of the JSON file.
      measure: of the options; the numbers.
      present: of what the file holds; the report.
      more: packages whose versions matter here.
    """

    @_command.command
    def main(arguments: list[str] | None = None) -> None:
        options = _options.parse(kind, arguments)
        file = options.folder() / name
        if not options.redraw:
            _command.make(file.parent)
            keep(file, measure(options), options, *more)
        show(file, present)

    return main


def keep(file: Path, content: Mapping[str, Any], options: _options.Options, *more: str) -> None:
    """Writes the numbers of a run as JSON proper, which has no NaN, and what a page says about it: when, where, by
    which command, options and versions, of `more` packages as well."""
    shown = options.anonymous()
    command = _command.line(type(options).__module__, *shown.arguments())
    content = {"command": command, "configuration": shown.shown(), **content}
    content |= {"date": today(), "machine": machine(), "versions": versions(*more)}
    write(file, (_lines(content) + "\n").encode())


def show(file: Path, present: Callable[[dict[str, Any]], Report]) -> None:
    """Makes pictures, tables and page of the numbers in a file, beside it, and prints what came out."""
    content = numbers(file)
    _command.say("drawing …")
    report = present(content)
    print(report.said or report.summary)
    print(file)
    files = {part.file: part.png for part in report.parts if isinstance(part, Picture)}
    if report.tables:
        files[report.tables] = markdown(report.parts).encode()
    leave(file.parent, files | {report.file: page(report, content)})
    if report.wrong:
        raise _command.Refused(report.wrong)


def page(report: Report, content: Mapping[str, Any]) -> bytes:
    """The report as HTML in UTF-8: no other file, no script, no font and nothing from the network. Of the numbers in
    `content` it repeats what `keep` has put there, command and options among them."""
    titles = [part.title for part in report.parts if part.title]
    if twice := {title for title in titles if titles.count(title) > 1}:
        raise ValueError(f"two parts of one name: {', '.join(sorted(twice))}")
    about = {name: content[name] for name in OF_A_RUN if name in content} | dict(report.facts)
    about["versions"] = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    body = "\n".join(_part(part) for part in report.parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(report.title)}</h1>
<p class="summary">{_inline(report.summary)}</p>
<pre>{html.escape(content["command"])}</pre>
{body}
<h2>The run</h2>
{_rows(("", ""), about.items(), "about")}
<h2>Configuration</h2>
{_rows(("option", "value"), content["configuration"].items(), "about")}
</body>
</html>
""".encode()


def markdown(parts: Sequence[Part]) -> str:
    """Texts and tables in Markdown."""
    blocks = []
    for part in parts:
        if isinstance(part, Picture):
            continue
        blocks += [f"## {part.title}"] if part.title else []
        if isinstance(part, Text):
            blocks.append(part.text)
        else:
            blocks += [part.caption] if part.caption else []
            blocks.append(table(part.columns, part.rows))
    return "\n\n".join(blocks) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    rule = ["---:" if right else "---" for right in _right(len(columns), rows)]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (columns, rule, *rows))


def machine() -> str:
    """The machine in words, without its name: "2 CPU cores (x86_64), Linux", "1 × NVIDIA H200, 16 CPU cores …"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = f"{cores} CPU cores ({platform.machine()}), {platform.system()}"
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} × {devices[0].device_kind}, {words}"
    return words if len(devices) == 1 else f"{words}, as {len(devices)} devices"


def versions(*more: str) -> dict[str, str]:
    """Python's and the packages' that decide the numbers; of `more` packages, where an experiment has others."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def today() -> str:
    """The date, as 2026-11-21."""
    return datetime.date.today().isoformat()


def png(figure: Figure) -> bytes:
    """The figure as a PNG; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    return buffer.getvalue()


def _lines(value: Any, indent: int = 0) -> str:
    """JSON in lines: what is short, and what has nothing within it, is one."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    inner = value.values() if isinstance(value, dict) else value
    if len(text) < 400 or not any(isinstance(each, dict | list | tuple) for each in inner):
        return text
    lines = (_lines(each, indent + 1) for each in inner)
    if isinstance(value, dict):
        lines = (f"{json.dumps(name, ensure_ascii=False)}: {line}" for name, line in zip(value, lines, strict=True))
    margin = "\n" + " " * indent
    return text[0] + ",".join(f"{margin} {line}" for line in lines) + margin + text[-1]


def by(shape: Sequence[int]) -> str:
    """Such as 64×56×56×64."""
    return "×".join(map(str, shape))


def named(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths, such as params/conv1/kernel, in its order."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(a) for path, a in leaves}


def rounded(values: Any, digits: int = 4) -> Any:
    """Numbers in mappings and sequences for JSON, which has no NaN: what is no number any more becomes null."""
    if isinstance(values, Mapping):
        return {name: rounded(each, digits) for name, each in values.items()}
    if isinstance(values, Sequence | np.ndarray):
        return [rounded(each, digits) for each in values]
    return round(float(values), digits) if np.isfinite(values) else None


def write(path: Path, content: bytes) -> None:
    """The whole file or none of it, however the process ends: written under another name, then renamed."""
    unfinished = path.with_name(path.name + ".unfinished")
    with _command.refusing(f"{path} cannot be written", path, "; what was there is unchanged"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _command.uninterrupted():
            try:
                with unfinished.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # otherwise the new name may reach the disk before the content
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)


def leave(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes a run's files, and prints where they are."""
    for name, content in files.items():
        write(folder / name, content)
        print(folder / name)


def numbers(path: Path) -> dict[str, Any]:
    """What an earlier run left in a file of numbers."""
    what, advice = f"{path}: no numbers of an earlier run there", "; name its folder with --out"
    with _command.refusing(what, path, advice, errors=(OSError, ValueError)):
        return json.loads(path.read_text())


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
.summary { font-size: 1.15rem } figure { margin: 0 } img { max-width: 100%; height: auto }
figcaption, .caption { color: #555 }
pre { background: #f4f4f4; padding: .7rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere }
code { background: #f4f4f4 }
.scroll { overflow-x: auto; margin: 1rem 0 } .scroll.wide { font-size: .78rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .8rem .15rem 0; vertical-align: top } .wide td, .wide th { padding-right: .6rem }
th { text-align: left; border-bottom: 1px solid #999 } td.number, th.number { text-align: right }
.data td { white-space: nowrap } .data th { vertical-align: bottom }
.data td.long { white-space: normal; min-width: 8rem }
.data td:first-child, .data th:first-child { white-space: normal; min-width: 7rem; position: sticky; left: 0;
  background: #fff }
@media (min-width: 75rem) { .scroll.wide { width: max-content; min-width: 100%; max-width: 94vw; position: relative;
  left: 50%; transform: translateX(-50%) } .data.wide td:first-child { white-space: nowrap } }
"""
WIDE = 6  # columns, from which on a table is set smaller and may be wider than the text
LONG = 22  # letters, beyond which a cell is broken into lines


def _part(part: Part) -> str:
    heading = f"<h2>{html.escape(part.title)}</h2>\n" if part.title else ""
    if isinstance(part, Picture):
        source = base64.b64encode(part.png).decode()
        caption = html.escape(part.caption)
        picture = f'<img alt="{caption}" src="data:image/png;base64,{source}">'
        return f"{heading}<figure>{picture}<figcaption>{caption}</figcaption></figure>"
    if isinstance(part, Text):
        return f"{heading}<p>{_inline(part.text)}</p>"
    caption = f'<p class="caption">{_inline(part.caption)}</p>\n' if part.caption else ""
    return heading + caption + _rows(part.columns, part.rows, "data" + " wide" * (len(part.columns) >= WIDE))


def _inline(text: Any) -> str:
    """As HTML, with Markdown's **bold** and `code`."""
    escaped = html.escape(str(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped))


def _right(columns: int, rows: Sequence[Sequence[Any]]) -> list[bool]:
    """The columns after the first in which each cell is empty, or short and begins with a number."""
    cells = [[str(row[i]) for row in rows] for i in range(1, columns)]
    return [False, *(all(len(cell) <= LONG and re.match(r"\W*\d|$", cell) for cell in column) for column in cells)]


def _rows(columns: Sequence[str], rows: Any, kind: str) -> str:
    """A table that scrolls within itself where it is wider than the page."""
    rows = [tuple(row) for row in rows]
    right = _right(len(columns), rows) if kind != "about" else [False, False]

    def line(cells: Sequence[Any], tag: str) -> str:
        words = ""
        for cell, is_number in zip(cells, right, strict=True):
            style = "number" if is_number else "long" if len(str(cell)) > LONG else ""
            words += f'<{tag} class="{style}">{_inline(cell)}</{tag}>' if style else f"<{tag}>{_inline(cell)}</{tag}>"
        return f"<tr>{words}</tr>"

    head = [line(columns, "th")] if any(columns) else []
    lines = "\n".join([*head, *(line(row, "td") for row in rows)])
    return f'<div class="scroll {kind}"><table>\n{lines}\n</table></div>'
