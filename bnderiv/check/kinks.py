"""A kink is not an error: if the slopes of the two sides differ, a rule may return either or a value in between."""

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
    """The rows of a gradient, one for each argument. A failure becomes a "kink" if the argument is at one."""
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
    """Turns failures into "kink" if a kink was found: derivatives of a gradient that jumps need not agree."""
    for row in rows:
        yield replace(row, verdict=KINK, note=NOTE) if row.verdict == FAIL and at.kinks_found else row


def is_kink(
    at: Point, function: Callable, cotangent: Any, gradient: Any, elements: Sequence[int], i: int, double: bool = True
) -> bool:
    """Whether each of these elements of argument `i` is at a kink, with the gradient between the two slopes.

    Sums of elements are tested too. If several elements tie for a maximum, a gradient of 0 or 1 is possible for each
    element alone, but not 0 for all or 1 for all.
    """
    point, cotangent = at.widened(cotangent, double)
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        directions, _ = numbers.unit_directions(point[i], elements)
        run = derivatives.compiled(lambda floats: function(floats, at.carried))
        found = numbers.differences(run, cotangent, point, gradient, i, directions)
        if not found.kink.all():
            return False
        several = list(range(len(directions)))
        subsets = [*itertools.combinations(several, 2), several] if len(several) <= 8 else [several]
        rising = [r * d for r, d in zip(found.rises, directions, strict=True)]
        return all(
            _between(
                run, cotangent, point, gradient, i, sum(directions[k] for k in subset), sum(rising[k] for k in subset)
            )
            for subset in subsets
        )


def _between(run: Callable, cotangent: Any, point: Any, gradient: Any, i: int, together: Any, rising: Any) -> bool:
    """Whether the claim along `together` lies between the slopes at four points nearby.

    If the kinks are independent, the largest slope is where every element moves to its steeper side, the smallest where
    every element moves to the other side.
    """
    x, dtype, away = wide(point[i]), np.asarray(point[i]).dtype, 10 * numbers.step_of(point[i])
    around = []
    for aside in (rising, -rising, together, -together):
        near = (*point[:i], (x + away * aside).astype(dtype), *point[i + 1 :])
        around.append(numbers.differences(run, cotangent, near, gradient, i, [together]))
    slopes, claim = [found.central[0] for found in around], around[0].claimed[0]
    slack = 1e-3 * max(map(abs, slopes)) + 1e-12
    return bool(min(slopes) - slack <= claim <= max(slopes) + slack)


def _off(actual: Any, expected: Any, row: Row) -> list[int]:
    """The elements that made a row fail, the worst first, at most `numbers.MANY`."""
    with np.errstate(all="ignore"):
        apart = np.abs(wide(actual) - wide(expected)).ravel()
    limit = apart.max() * (row.tolerance or 0.0) / row.error if row.error and np.isfinite(row.error) else 0.0
    order = np.argsort(-apart, kind="stable")
    return [int(j) for j in order[: numbers.MANY] if not apart[j] <= limit]
