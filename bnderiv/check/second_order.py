"""The mode that compares second derivatives with the truth: reverse over reverse, and forward over reverse."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np

from bnderiv.check import agreement, derivatives, differences, numbers
from bnderiv.check.lines import Lines
from bnderiv.check.numbers import wide
from bnderiv.check.point import Expected, Point
from bnderiv.check.report import FAIL, Row
from bnderiv.check.who_is_right import who_is_right


def second_order(at: Point) -> Iterator[Row]:
    direction = at.draw(at.floats, 2)
    data = (at.cotangent, direction, at.floats, at.carried)
    truth = None
    if at.r is not None:
        try:  # second derivatives are symmetric, so one truth serves both orders of differentiation
            truth = at.truth_of(derivatives.grad_of_grad, *data)
        except Exception as error:
            yield agreement.impossible("second_order", error, note="the reference has no second derivative")
            return
    lines_of = cache(partial(_lines_of_gradient, at, at.h if truth is None else at.r, direction))
    for name, compute in (("grad of grad", derivatives.grad_of_grad), ("jvp of grad", derivatives.jvp_of_grad)):
        check = f"second order: {name}"
        try:
            if truth is not None:
                rows = _against_reference(at, check, truth, at.program(compute, at.h)(*data), lines_of)
            else:
                rows = _against_differences(at, check, *at.in_float64_or_own(compute, *data), direction, lines_of)
            yield from agreement.after_kinks(at, rows)
        except Exception as error:
            yield agreement.impossible("second_order", error, check)


def _against_reference(at: Point, check: str, truth: Expected, actual: Any, lines_of: Callable) -> list[Row]:
    tolerance = at.tolerance("second_order", numbers.FORMULA)
    arrays = [_where_one_is_finite(a, e) for a, e in zip(actual, truth.arrays, strict=True)]
    rows = list(agreement.rows(at, "second_order", check, at.names, actual, truth._replace(arrays=arrays), tolerance))
    for i, row in enumerate(rows):
        if row.verdict == FAIL and row.error is not None:
            rows[i] = who_is_right(at, row, i, actual[i], truth.arrays[i], lines_of(not truth.note))
    return rows


def _against_differences(
    at: Point, check: str, actual: Any, note: str, direction: Any, lines_of: Callable
) -> list[Row]:
    lines = lines_of(not note)
    rows = list(differences.differenced(at, "second_order", check, lines, actual, note))
    if any(row.verdict == FAIL for row in rows):  # a gradient that vanishes is a difference of larger terms
        found = zip(at.gradient_roundings(), direction, strict=True)
        lines.terms = sum(r.terms * float(np.linalg.norm(wide(d))) for r, d in found)
        rows = list(differences.differenced(at, "second_order", check, lines, actual, note))
    return rows


def _where_one_is_finite(actual: Any, expected: Any) -> np.ndarray:
    """`expected`, where both are infinite or NaN replaced by `actual`: beside a pole, which of them is an accident."""
    neither = ~np.isfinite(wide(actual)) & ~np.isfinite(wide(expected))
    return np.where(neither, wide(actual), np.asarray(expected))


def _lines_of_gradient(at: Point, h: Any, direction: Any, double: bool) -> Lines:
    """⟨gradient, direction⟩ along lines: its slopes are second derivatives."""
    one = np.ones((), np.float32)
    return at.lines_of(partial(derivatives.projected, h, direction, at.cotangent), (one,), double)
