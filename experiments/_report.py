"""What every experiment leaves: files written whole, pictures, and an HTML page that needs nothing beside it."""

import base64
import contextlib
import datetime
import html
import io
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib

from experiments import _command

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "scikit-learn")


class Picture(NamedTuple):
    """A PNG; `caption` says what to see in it, and stands in for it where it cannot be seen."""

    title: str
    png: bytes
    caption: str = ""


class Table(NamedTuple):
    """Rows of cells, shown as `str` shows them; a column of numbers is set to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


class Text(NamedTuple):
    """A heading and a paragraph."""

    title: str
    text: str


class Markdown(NamedTuple):
    """What an experiment's own Markdown file says: headings, paragraphs and tables, with **bold** and `code`."""

    text: str


Part = Picture | Table | Text | Markdown


def page(
    title: str,
    summary: str,
    parts: Sequence[Part],
    *,
    command: str,
    configuration: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> bytes:
    """The report of a run as HTML in UTF-8: no other file, no script, no font and nothing from the network.

    Args:
      title: of the page.
      summary: what came out, in a sentence or two.
      parts: what is shown, in this order.
      command: the line that repeats the run.
      configuration: every option of the run, as resolved.
      facts: further lines, such as the seconds it took; and `date`, `machine` and `versions` where they are not those
        of now and here, but of the numbers that are drawn again.
    """
    about = {"date": today(), "machine": machine(), "versions": versions()} | dict(facts or {})
    about["versions"] = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    body = "\n".join(_part(part) for part in parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p class="summary">{html.escape(summary)}</p>
<pre>{html.escape(command)}</pre>
{body}
<h2>The run</h2>
{_rows(("", ""), about.items())}
<h2>Configuration</h2>
{_rows(("option", "value"), configuration.items())}
</body>
</html>
""".encode()


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


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as a PNG; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    plt.close(figure)
    return buffer.getvalue()


def as_json(content: Mapping[str, Any], *more: str) -> bytes:
    """JSON proper, which has no NaN, with date, machine and versions (of `more` packages as well)."""
    content = dict(content) | {"date": today(), "machine": machine(), "versions": versions(*more)}
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def write(path: Path, content: bytes) -> None:
    """The whole file or none of it, however the run ends: written under another name, then renamed.

    Raises:
      Refused: the system does not let it be written.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                unfinished.unlink()
    except OSError as error:
        raise _command.Refused(
            f"{path} cannot be written ({_command.why(error, path)}); what was there is unchanged"
        ) from error


def leave(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Writes a run's files, those that there are, and prints where they are."""
    for name, content in files.items():
        if content is not None:
            write(folder / name, content)
            print(folder / name)


def numbers(path: Path) -> dict[str, Any]:
    """What an earlier run left in a file of numbers.

    Raises:
      Refused: there are none.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _command.Refused(
            f"{path}: no numbers of an earlier run there ({error}); name its folder with --out"
        ) from error


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
.summary { font-size: 1.15rem } figure { margin: 0 } img { max-width: 100%; height: auto }
figcaption, .caption { color: #555 }
pre { background: #f4f4f4; padding: .7rem 1rem; overflow-x: auto }
.wide { overflow-x: auto; font-size: .85rem; white-space: nowrap; width: max-content; min-width: 100%; max-width: 94vw;
  position: relative; left: 50%; transform: translateX(-50%) }
code { background: #f4f4f4 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .9rem .15rem 0; vertical-align: top }
th { text-align: left; border-bottom: 1px solid #999 } td.number, th.number { text-align: right }
"""


def _part(part: Part) -> str:
    if isinstance(part, Markdown):
        return "\n".join(_block(block) for block in re.split(r"\n{2,}", part.text.strip()))
    heading = f"<h2>{html.escape(part.title)}</h2>\n"
    if isinstance(part, Text):
        return f"{heading}<p>{html.escape(part.text)}</p>"
    if isinstance(part, Table):
        return f'{heading}{_rows(part.columns, part.rows)}\n<p class="caption">{html.escape(part.caption)}</p>'
    source = base64.b64encode(part.png).decode()
    caption = html.escape(part.caption)
    return (
        f'{heading}<figure><img alt="{caption or html.escape(part.title)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _block(block: str) -> str:
    """A heading, a table or a paragraph of Markdown."""
    if block.startswith("#"):
        return f"<h2>{_inline(block.lstrip('# '))}</h2>"
    if block.startswith("|"):
        columns, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines())
        return f'<div class="wide">{_rows(columns, rows)}</div>'
    return f"<p>{_inline(block)}</p>"


def _inline(text: Any) -> str:
    """As HTML, with Markdown's **bold** and `code`."""
    escaped = html.escape(str(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped))


def _rows(columns: Sequence[str], rows: Any) -> str:
    rows = [tuple(row) for row in rows]
    number = [
        all(isinstance(row[i], int | float) and not isinstance(row[i], bool) for row in rows)
        for i in range(len(columns))
    ]

    def line(cells: Sequence[Any], tag: str) -> str:
        styles = [' class="number"' if right else "" for right in number]
        return (
            "<tr>"
            + "".join(f"<{tag}{style}>{_inline(cell)}</{tag}>" for cell, style in zip(cells, styles, strict=True))
            + "</tr>"
        )

    head = line(columns, "th") if any(columns) else ""
    lines = "\n".join(filter(None, [head, *(line(row, "td") for row in rows)]))
    return f"<table>\n{lines}\n</table>"
