"""A kink is no error: where the slopes of the two sides differ, a rule may have either, or one between them."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from bnderiv.check import derivatives, numbers
from bnderiv.check.numbers import wide
from bnderiv.check.point import Point, join, message
from bnderiv.check.report import FAIL, KINK, Row

NOTE = "no derivative here: the two sides differ, and the rule lies between them"


def forgive(
    at: Point, rows: Iterator[Row], function: Callable, cotangent: Any, actual: Sequence[Any], expected: Sequence[Any]
) -> Iterator[Row]:
    """The rows of a gradient, in the order of the arguments; a failure that a kink explains becomes one."""
    for i, row in enumerate(rows):
        if row.verdict == FAIL and row.error is not None:
            try:
                if is_kink(at, function, cotangent, actual[i], _off(actual[i], expected[i], row), i):
                    at.kinks_found = True
                    row = replace(row, verdict=KINK, note=NOTE)
            except Exception as error:  # the failure stands
                row = replace(row, note=join(row.note, f"looking for a kink: {message(error)}"))
        yield row


def after(at: Point, rows: Iterator[Row]) -> Iterator[Row]:
    """Where the first derivative has been seen to jump, what derives from it need not agree."""
    for row in rows:
        yield replace(row, verdict=KINK, note=NOTE) if row.verdict == FAIL and at.kinks_found else row


def is_kink(
    at: Point, function: Callable, cotangent: Any, gradient: Any, elements: Sequence[int], i: int, double: bool = True
) -> bool:
    """The two sides of `function` differ in each of these elements of argument `i`, the gradient lies between.

    Also along several at once: of elements that tie for a maximum, each may have 0 or 1, but not all the same.
    """
    point, cotangent = at.widened(cotangent, double)
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        directions, _ = numbers.unit_directions(point[i], elements)
        run = derivatives.compiled(lambda floats: function(floats, at.carried))
        found = numbers.differences(run, cotangent, point, gradient, i, directions)
        if not found.kink.all():
            return False
        several = list(range(len(directions)))
        groups = [*itertools.combinations(several, 2), several] if len(several) <= 8 else [several]
        rising = [r * d for r, d in zip(found.rises, directions, strict=True)]
        return all(
            _between(
                run, cotangent, point, gradient, i, sum(directions[k] for k in group), sum(rising[k] for k in group)
            )
            for group in groups
        )


def _between(run: Callable, cotangent: Any, point: Any, gradient: Any, i: int, together: Any, rising: Any) -> bool:
    """The claim along `together` lies between the slopes at points around.

    Of kinks that have nothing to do with one another, the steepest and the flattest are found by going where each one
    rises, and back.
    """
    x, own, away = wide(point[i]), np.asarray(point[i]).dtype, 10 * numbers.step_of(point[i])
    around = []
    for aside in (rising, -rising, together, -together):
        near = (*point[:i], (x + away * aside).astype(own), *point[i + 1 :])
        around.append(numbers.differences(run, cotangent, near, gradient, i, [together]))
    slopes, claim = [found.central[0] for found in around], around[0].claimed[0]
    slack = 1e-3 * max(map(abs, slopes)) + 1e-12
    return bool(min(slopes) - slack <= claim <= max(slopes) + slack)


def _off(actual: Any, expected: Any, row: Row) -> list[int]:
    """The elements that made a row fail, at most as many as can be differenced, the worst first."""
    with np.errstate(all="ignore"):
        apart = np.abs(wide(actual) - wide(expected)).ravel()
    limit = apart.max() * (row.tolerance or 0.0) / row.error if row.error and np.isfinite(row.error) else 0.0
    order = np.argsort(-apart, kind="stable")
    return [int(j) for j in order[: numbers.MANY] if not apart[j] <= limit]
