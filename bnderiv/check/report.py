"""The result of a comparison: a row for each check and argument, shown as a table in a terminal or a notebook."""

import html
import math
import os
import textwrap
import traceback
from dataclasses import dataclass

import jax

OK, FAIL, KINK, NOT_AVAILABLE = "ok", "FAIL", "kink", "n/a"

_HEADER = ("check", "argument", "verdict", "worst error", "tolerance", "at", "note")
_COLORS = {OK: "#2e7d32", FAIL: "#c62828", KINK: "#b26a00", NOT_AVAILABLE: "#757575"}
_NOTE_WIDTH = 72
_LEGEND = (
    "primal: f(x); fwd: the value that jax.vjp returns. Errors are relative to the largest element, or in ulps of it.\n"
    "kink: no derivative, and the rule lies between the two sides. n/a: cannot be checked here; the note says why."
)
_NOT_THE_USERS = tuple(os.path.dirname(p) + os.sep for p in (str(jax.__file__), __file__, str(os.__file__)))


@dataclass(frozen=True)
class Row:
    """One check of one argument or output.

    Attributes:
      verdict: "ok", "FAIL", "kink" or "n/a". "kink": there is no derivative, and the rule's value lies between the
        slopes of the two sides. "n/a": the check does not apply, and `note` says why.
      error, tolerance: relative to the largest element of the expected array; if `unit` is "ulp", in ulps of it. For a
        gradient that vanishes, relative to the terms that cancel in it.
      index: of the element with the largest error.
    """

    mode: str
    check: str
    argument: str = ""
    verdict: str = OK
    error: float | None = None
    tolerance: float | None = None
    index: tuple[int, ...] | None = None
    note: str = ""
    unit: str = ""

    def cells(self) -> tuple[str, ...]:
        """The texts of the row's columns."""
        index = "" if self.index is None else str(self.index).replace(",)", ")")
        return (
            self.check,
            self.argument,
            self.verdict,
            _number(self.error, self.unit),
            _number(self.tolerance, self.unit),
            index,
            self.note,
        )


@dataclass(frozen=True)
class Report:
    """The rows of a comparison. Print it, show it in a notebook, or call `raise_if_failed()` in a test."""

    title: str
    rows: tuple[Row, ...]

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict == FAIL)

    @property
    def passed(self) -> bool:
        """Whether no check failed and at least one applied."""
        return not self.failures and any(row.verdict in (OK, KINK) for row in self.rows)

    def raise_if_failed(self) -> None:
        """Raises AssertionError with a table of the failures, unless `passed`."""
        if not self.passed:
            raise AssertionError(f"{self.summary()}\n{_table(self.failures or self.rows)}")

    def summary(self) -> str:
        """One line: the title, the number of checks by verdict, the result, and the first failure."""
        counts = {v: sum(row.verdict == v for row in self.rows) for v in (FAIL, KINK, NOT_AVAILABLE)}
        named = ((FAIL, "failed"), (KINK, "at a kink"), (NOT_AVAILABLE, "not available"))
        parts = [f"{counts[v]} {name}" for v, name in named if counts[v]]
        result = "passed" if self.passed else "FAILED"
        if self.failures:
            first = self.failures[0]
            result += f": {' of '.join(part for part in (first.check, first.argument) if part)}"
        elif not self.passed:
            result += ": nothing was checked"
        return f"{self.title}: {', '.join([f'{len(self.rows)} checks', *parts])} — {result}"

    def __str__(self) -> str:
        return f"{_table(self._failures_first())}\n{_LEGEND}\n{self.summary()}"

    def _failures_first(self) -> tuple[Row, ...]:
        return tuple(sorted(self.rows, key=lambda row: row.verdict != FAIL))

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left;vertical-align:top{style}'>{text}</td>".format
        lines = []
        for row in self._failures_first():
            styles = dict.fromkeys(_HEADER, ";white-space:nowrap") | {"note": ""}
            styles["verdict"] += f";color:{_COLORS[row.verdict]};font-weight:bold"
            texts = [
                cell(style=styles[name], text=html.escape(text))
                for name, text in zip(_HEADER, row.cells(), strict=True)
            ]
            lines.append(f"<tr>{''.join(texts)}</tr>")
        header = "".join(f"<th style='text-align:left'>{name}</th>" for name in _HEADER)
        legend = html.escape(_LEGEND).replace("\n", "<br>")
        return (
            f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
            f"<p>{legend}</p><p>{html.escape(self.summary())}</p>"
        )


def message(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"


def where_raised(error: Exception) -> str:
    """The message, and the innermost line that is neither JAX's nor Python's nor the checker's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THE_USERS)]
    frames = [f for f in frames if not f.filename.startswith("<frozen")]
    place = f" (at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}, {frames[-1].line})" if frames else ""
    return f"{message(error)}{place}"


def _table(rows: tuple[Row, ...]) -> str:
    """Aligned columns; a long note is wrapped within its column."""
    cells = [row.cells() for row in rows]
    widths = [max(len(line[i]) for line in (_HEADER, *cells)) for i in range(len(_HEADER) - 1)]
    indent = " " * (sum(widths) + 2 * len(widths))

    def line(texts: tuple[str, ...]) -> list[str]:
        front = "".join(f"{text:<{width}}  " for text, width in zip(texts, widths, strict=False))
        first, *rest = textwrap.wrap(texts[-1], _NOTE_WIDTH) or [""]
        return [(front + first).rstrip(), *(indent + more for more in rest)]

    rule = "-" * (len(indent) + len(_HEADER[-1]))
    return "\n".join([*line(_HEADER), rule, *(text for row in cells for text in line(row))])


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit:
        return f"{value:.3g} {unit}"
    return f"{value:.1e}" if value and math.isfinite(value) else f"{value:g}"
