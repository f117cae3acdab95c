"""The result of a comparison: a row for each check and argument, shown as a table in a terminal or a notebook."""

import html
import math
import textwrap
from dataclasses import dataclass

OK, FAIL, KINK, NOT_AVAILABLE = "ok", "FAIL", "kink", "n/a"

_HEADER = ("check", "argument", "verdict", "worst error", "tolerance", "at", "note")
_COLORS = {OK: "#2e7d32", FAIL: "#c62828", KINK: "#b26a00", NOT_AVAILABLE: "#757575"}
_NOTE_WIDTH = 72


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
        """One line: the title, the number of checks by verdict, and the result."""
        counts = {v: sum(row.verdict == v for row in self.rows) for v in (FAIL, KINK, NOT_AVAILABLE)}
        named = ((FAIL, "failed"), (KINK, "at a kink"), (NOT_AVAILABLE, "not available"))
        parts = [f"{counts[v]} {name}" for v, name in named if counts[v]]
        return (
            f"{self.title}: {', '.join([f'{len(self.rows)} checks', *parts])} — {'passed' if self.passed else 'FAILED'}"
        )

    def __str__(self) -> str:
        return f"{_table(self.rows)}\n{self.summary()}"

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left;vertical-align:top{style}'>{text}</td>".format
        lines = []
        for row in self.rows:
            styles = dict.fromkeys(_HEADER, ";white-space:nowrap") | {"note": ""}
            styles["verdict"] += f";color:{_COLORS[row.verdict]};font-weight:bold"
            texts = [
                cell(style=styles[name], text=html.escape(text))
                for name, text in zip(_HEADER, row.cells(), strict=True)
            ]
            lines.append(f"<tr>{''.join(texts)}</tr>")
        header = "".join(f"<th style='text-align:left'>{name}</th>" for name in _HEADER)
        return (
            f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
            f"<p>{html.escape(self.summary())}</p>"
        )


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
