"""The gradient at a second point: what a rule remembers from the first is wrong there."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnderiv.check import agreement, numbers
from bnderiv.check.claims import MEASURED
from bnderiv.check.derivatives import pull
from bnderiv.check.numbers import wide
from bnderiv.check.point import Point
from bnderiv.check.report import FAIL, NOT_AVAILABLE, OK, Row

_CHECK = "determinism: at another point"
_DIRECTIONS = 4


def at_another_point(at: Point, floats: Sequence[Any], gradient: Sequence[Any]) -> Iterator[Row]:
    """Rows for the gradient that the rule returned at these other floats."""
    if at.r is not None:
        yield from _against_reference(at, floats, gradient)
    else:
        yield _against_differences(at, floats, gradient)


def _against_reference(at: Point, floats: Sequence[Any], gradient: Sequence[Any]) -> Iterator[Row]:
    truth = at.truth_of(pull, at.cotangent, floats, at.carried).derivative
    tolerance = at.tolerance("gradient", numbers.FORMULA)
    for row in agreement.rows(at, "determinism", _CHECK, at.names, gradient, truth, tolerance):
        if row.verdict == FAIL and at.no_truth:  # the row of "gradient" says that there is none
            row = replace(row, verdict=NOT_AVAILABLE, note="see gradient")
        yield row


def _against_differences(at: Point, floats: Sequence[Any], gradient: Sequence[Any]) -> Row:
    of_differences = numbers.lookup(numbers.DIFFERENCES, [a.dtype for a in at.lines.floats])
    tolerance = max(at.tolerance("gradient", numbers.FORMULA), of_differences)
    error, known = _error(at, floats, gradient, tolerance)
    row = Row("determinism", _CHECK, "(all)", OK, error, tolerance)
    if not known or (error > tolerance and at.no_truth):
        return replace(row, verdict=NOT_AVAILABLE)
    if error > tolerance:
        return replace(row, verdict=FAIL, note="the gradient is not that of f there")
    return row


def _error(at: Point, floats: Sequence[Any], gradient: Sequence[Any], tolerance: float) -> tuple[float, bool]:
    """The error of the gradient in random directions, and whether any slope in them is known."""
    if at.lines.undefined:
        return 0.0, False
    rng = at.random(15)
    directions = [[_sizes(f) * rng.standard_normal(np.shape(f)) for f in floats] for _ in range(_DIRECTIONS)]
    found = at.lines.across_arguments(directions, floats)
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
    """How far the roundings of the gradient may move its product with each direction."""
    spreads = [r.spread for r in at.gradient_roundings()]
    return np.asarray([sum(s * np.abs(d).sum() for s, d in zip(spreads, each, strict=True)) for each in directions])


def _sizes(x: Any) -> np.ndarray:
    """How far each element may move: by its own size, or by the array's if it is zero."""
    size = np.abs(wide(x))
    return np.where(size == 0, numbers.magnitude(x), size)
