"""Compares a gradient with finite differences of the function: a row for each argument.

The gradient claims a slope in every direction; `lines.py` measures the slopes, `claims.py` compares.
A small array is checked element by element. A large one is checked in random directions. If one of them is wrong,
bisection leads to an element that is, and the row is about that element.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnderiv.check import claims, derivatives, kinks, numbers
from bnderiv.check.agreement import apart_in_digits
from bnderiv.check.claims import Judgment
from bnderiv.check.lines import Lines
from bnderiv.check.point import Point, join
from bnderiv.check.report import FAIL, KINK, NOT_AVAILABLE, OK, Row
from bnderiv.check.slopes import Slopes

_SMALL_ARRAY = 128  # elements of an array that is checked element by element
_DIRECTIONS = 8  # in which a larger array is checked
_HALF_DIRECTIONS = 2  # in which each half of it is checked, in bisection
_NOT_FINITE = 16  # elements of a larger array that are checked where its gradient is not finite
_NOTHING = 1e-4  # how far a function may move, relative to itself, whose gradient vanishes


def finite_differences(at: Point) -> Iterator[Row]:
    """The mode: the gradient of `f`, in float64 if possible, against differences of `f`."""
    try:
        _, gradient = at.without_casts(derivatives.pull, at.h, at.cotangent, at.floats, at.carried)
        lines, note = at.lines_without_casts, "without its casts to half precision"
    except Exception:
        (_, gradient), note = at.precise.arrays, at.precise.note
        lines = at.lines
    yield from differenced(at, "finite_differences", "finite differences", lines, gradient, note)


def differenced(at: Point, mode: str, check: str, lines: Lines, gradient: Any, note: str = "") -> Iterator[Row]:
    """A row for each argument: the claimed gradient of ⟨cotangent, function⟩ against its finite differences."""
    tolerance = at.tolerances.get(mode, numbers.lookup(numbers.DIFFERENCES, [a.dtype for a in lines.floats]))
    for i, (name, x) in enumerate(zip(at.names, lines.floats, strict=True)):
        row = Row(mode, check, name, OK, 0.0, tolerance, note=note)
        not_finite = np.flatnonzero(~np.isfinite(numbers.wide(gradient[i])).ravel())
        if x.size == 0:
            yield row
        elif x.size <= _SMALL_ARRAY:
            yield _by_elements(at, row, lines, gradient[i], i, range(x.size))
        elif len(not_finite):
            yield _by_elements(at, row, lines, gradient[i], i, [int(j) for j in not_finite[:_NOT_FINITE]])
        else:
            yield _by_directions(at, row, lines, gradient[i], i)


def _by_elements(at: Point, row: Row, lines: Lines, gradient: Any, i: int, elements: Sequence[int]) -> Row:
    """The row, filled in: whether these elements of the gradient of argument `i` are what differences say."""
    units, found = lines.of_elements(i, elements)
    claimed = claims.claimed(gradient, units)
    element_of = np.repeat(elements, len(units) // len(elements))  # a complex element has two directions
    if row.mode == "finite_differences":
        _keep_for_other_modes(at, lines, i, elements, found)

    error, unknown, wrong = _judged(at, row, claimed, found)
    worst = int(np.argmax(np.where(wrong, error, -1.0) if wrong.any() else error))
    place = np.unravel_index(element_of[worst], lines.floats[i].shape)
    index = tuple(int(k) for k in place) if error[worst] > 0 else None
    row = replace(row, error=float(error[worst]), index=index)

    if wrong.any():
        off = sorted({int(j) for j in element_of[wrong]})
        if found.kink[wrong].all() and kinks.is_kink(lines, i, gradient, off):
            at.no_truth = KINK
            return replace(row, verdict=KINK, note=kinks.NOTE)
        said = "got {}, differences say {}".format(*apart_in_digits(claimed[worst], found.slope[worst]))
        return replace(row, verdict=FAIL, note=join(said, row.note))
    if unknown.all() and _vanishes(lines, i, claimed, found):
        return replace(row, note=join("it vanishes but for roundings", row.note))
    if unknown.all():
        said = "no slope can be measured: f is not finite, too noisy, or infinitely steep"
        return replace(row, verdict=NOT_AVAILABLE, error=None, index=None, note=join(said, row.note))
    if unknown.any():
        said = f"the slopes at {int(unknown.sum())} of {unknown.size} cannot be measured"
        return replace(row, note=join(said, row.note))
    return row


def _by_directions(at: Point, row: Row, lines: Lines, gradient: Any, i: int) -> Row:
    """The row, filled in: whether the gradient of argument `i` is what differences say in random directions."""
    rng = at.random(9)
    found, claimed = _in_random_directions(rng, np.ones(lines.floats[i].shape), _DIRECTIONS, lines, gradient, i)
    error, unknown, wrong = _judged(at, row, claimed, found)
    if unknown.all():
        return replace(row, verdict=NOT_AVAILABLE, error=None, note=join("no slope can be measured", row.note))
    if (wrong & ~found.between_sides(claimed)).any():
        element = _by_bisection(rng, lines, gradient, i)
        return _by_elements(at, replace(row, verdict=FAIL), lines, gradient, i, [element])
    return replace(row, error=float(error.max()))


def _judged(at: Point, row: Row, claimed: np.ndarray, found: Slopes) -> Judgment:
    return claims.judge(claimed, found, row.tolerance or 0.0, exact=row.mode in at.tolerances)


def _keep_for_other_modes(at: Point, lines: Lines, i: int, elements: Sequence[int], found: Slopes) -> None:
    """The gradient by differences, if it is all there and real, and whether there is a kink."""
    if found.slope.size == len(elements) == lines.floats[i].size:
        at.differenced[i] = np.where(found.kink, (found.left + found.right) / 2, found.slope)
    if found.kink.any():
        at.no_truth = KINK


def _vanishes(lines: Lines, i: int, claimed: np.ndarray, found: Slopes) -> bool:
    """Whether claims and slopes are within their uncertainty, which moves the function by next to nothing."""
    noise = found.slack * numbers.magnitude(lines.floats[i])
    none = (np.abs(claimed) <= found.slack) & (np.abs(found.slope) <= found.slack)
    return bool((none & (noise <= _NOTHING * lines.weight)).all())


def _by_bisection(rng: np.random.Generator, lines: Lines, gradient: Any, i: int) -> int:
    """An element whose claim is wrong: the half whose claims are farther off is halved again, until one is left."""
    x = lines.floats[i]

    def apart(elements: np.ndarray) -> float:
        mask = np.zeros(x.size)
        mask[elements] = 1
        found, claimed = _in_random_directions(rng, mask.reshape(x.shape), _HALF_DIRECTIONS, lines, gradient, i)
        with np.errstate(all="ignore"):
            return np.nan_to_num(np.abs(claimed - found.slope) - found.slack, nan=0.0, posinf=0.0).max()

    elements = np.arange(x.size)
    while len(elements) > 1:
        first, second = elements[: len(elements) // 2], elements[len(elements) // 2 :]
        apart_first, apart_second = apart(first), apart(second)
        elements = second if apart_second > apart_first else first
    return int(elements[0])


def _in_random_directions(
    rng: np.random.Generator, mask: np.ndarray, count: int, lines: Lines, gradient: Any, i: int
) -> tuple[Slopes, np.ndarray]:
    """Slopes and claims in random directions that move the elements of the mask."""
    directions = [mask * rng.standard_normal(mask.shape) for _ in range(count)]
    if np.iscomplexobj(numbers.wide(lines.floats[i])):
        directions = [d + 1j * mask * rng.standard_normal(mask.shape) for d in directions]
    return lines.of_directions(i, directions), claims.claimed(gradient, directions)
