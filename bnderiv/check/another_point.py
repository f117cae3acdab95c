"""The gradient at a second point: what a rule remembers from the first is wrong there."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnderiv.check import judge, numbers
from bnderiv.check.claims import MEASURED
from bnderiv.check.derivatives import pull
from bnderiv.check.numbers import wide
from bnderiv.check.point import Point
from bnderiv.check.report import FAIL, NOT_AVAILABLE, OK, Row

_CHECK = "determinism: at another point"
_DIRECTIONS = 4


def elsewhere(at: Point, floats: Sequence[Any], gradient: Sequence[Any]) -> Iterator[Row]:
    """Rows for the gradient that the rule returned at these other floats."""
    if at.r is not None:
        yield from _against_reference(at, floats, gradient)
    else:
        yield _against_differences(at, floats, gradient)


def _against_reference(at: Point, floats: Sequence[Any], gradient: Sequence[Any]) -> Iterator[Row]:
    truth, count = at.expected(pull, at.cotangent, floats, at.carried), len(at.value)
    rows = judge.rows(
        at, "determinism", _CHECK, at.names, gradient, truth.arrays[1], at.tolerance("gradient", numbers.FORMULA),
        truth.note, lambda: truth.roundings()[count:],
    )  # fmt: skip
    for row in rows:  # kinks and faults of the reference are the business of "gradient"
        hidden = bool(row.verdict == FAIL and at.no_truth)
        yield replace(row, verdict=NOT_AVAILABLE, note="see gradient") if hidden else row


def _against_differences(at: Point, floats: Sequence[Any], gradient: Sequence[Any]) -> Row:
    tolerance = max(
        at.tolerance("gradient", numbers.FORMULA),
        numbers.lookup(numbers.DIFFERENCES, [a.dtype for a in at.lines.floats]),
    )
    error, known = _error(at, floats, gradient, tolerance)
    wrong = error > tolerance
    if not known or (wrong and at.no_truth):
        verdict, note = NOT_AVAILABLE, ""
    elif wrong:
        verdict, note = FAIL, "the gradient is not that of f there"
    else:
        verdict, note = OK, ""
    return Row("determinism", _CHECK, "(all)", verdict, error, tolerance, None, note)


def _error(at: Point, floats: Sequence[Any], gradient: Sequence[Any], tolerance: float) -> tuple[float, bool]:
    """The error of the gradient along random directions, and whether any slope along them is known."""
    lines, rng = at.lines, at.random(15)
    if lines.undefined:
        return 0.0, False
    directions = [[_sizes(f) * rng.standard_normal(np.shape(f)) for f in floats] for _ in range(_DIRECTIONS)]
    found = lines.across(directions, floats)
    terms = [[np.real(wide(g) * d) for g, d in zip(gradient, each, strict=True)] for each in directions]
    claims = np.asarray([sum(float(t.sum()) for t in each) for each in terms])
    typical = max(float(np.sqrt(sum((t * t).sum() for t in each))) for each in terms)  # of sums of random signs
    size = max(typical, numbers.largest(found.slope)) or 1.0
    known = found.error <= MEASURED * size
    with np.errstate(all="ignore"):
        apart = np.where(known, np.maximum(np.abs(claims - found.slope) - found.slack, 0), 0.0)
        if (apart > tolerance * size).any():  # a gradient that vanishes carries the roundings of what cancels in it
            apart = np.maximum(apart - 4 * _moved_by_roundings(at, directions), 0)
        errors = apart / size
    errors = np.where(np.isnan(claims) & known, np.inf, errors)
    return float(errors.max(initial=0.0)), bool(known.any())


def _moved_by_roundings(at: Point, directions: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """How far the roundings of the gradient may move each claim."""
    moved = [[r.spread * np.abs(d).sum() for r, d in zip(at.roundings, each, strict=True)] for each in directions]
    return np.asarray([sum(each) for each in moved])


def _sizes(x: Any) -> np.ndarray:
    """How far each element may move: by its own size, or by the array's if it is zero."""
    size = np.abs(wide(x))
    return np.where(size == 0, numbers.largest(x) or 1.0, size)
