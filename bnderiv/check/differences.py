"""Compares a gradient with finite differences of the function: a row for each argument.

The gradient claims a slope for every line through the point; `lines.py` measures the slopes, `claims.py` judges.
A small array is looked at element by element. A large one is looked at along random directions; if one of them is
wrong, halving what moves leads to an element that is, and the row is about that element.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnderiv.check import claims, derivatives, kinks, numbers
from bnderiv.check.judge import apart_in_digits
from bnderiv.check.lines import Lines
from bnderiv.check.point import Point, join
from bnderiv.check.report import FAIL, KINK, NOT_AVAILABLE, OK, Row
from bnderiv.check.slopes import Slopes

_SMALL_ARRAY = 128  # elements of an array that is looked at element by element
_DIRECTIONS = 8  # along which a larger array is looked at
_HALF_DIRECTIONS = 2  # along which each half of it is
_BROKEN = 16  # elements of a larger array that are looked at where its gradient is not finite
_NOTHING = 1e-4  # how far a function may move, relative to itself, whose gradient vanishes


def finite_differences(at: Point) -> Iterator[Row]:
    """The mode: the gradient of `f`, in float64 if possible, against differences of `f`."""
    try:
        _, gradient = at.without_casts(derivatives.pull, at.h, at.cotangent, at.floats, at.carried)
        lines, note = at.lines_without_casts, "without its casts to half precision"
    except Exception:
        (_, gradient), _, note = at.pulled
        lines = at.lines
    yield from differenced(at, "finite_differences", "finite differences", lines, gradient, note)


def differenced(at: Point, mode: str, check: str, lines: Lines, gradient: Any, note: str = "") -> Iterator[Row]:
    """A row for each argument: the claimed gradient of ⟨cotangent, function⟩ against its finite differences."""
    tolerance = at.tolerances.get(mode, numbers.lookup(numbers.DIFFERENCES, [a.dtype for a in lines.floats]))
    for i, name in enumerate(at.names):
        row = Row(mode, check, name, OK, 0.0, tolerance, note=note)
        if lines.floats[i].size <= _SMALL_ARRAY:
            yield _by_elements(at, row, lines, gradient[i], i, range(lines.floats[i].size))
        else:
            yield _by_directions(at, row, lines, gradient[i], i)


def _by_elements(at: Point, row: Row, lines: Lines, gradient: Any, i: int, elements: Sequence[int]) -> Row:
    """The row, filled in: whether each of these elements of argument `i` is what differences say."""
    if not len(elements):
        return row
    units, own = lines.units(i, elements)
    found, claimed = lines.measure(i, units, own), claims.claimed(gradient, units)
    element_of = np.repeat(elements, len(units) // len(elements))  # a complex element has two lines
    if row.mode == "finite_differences":
        _keep_for_other_modes(at, lines, i, elements, found)

    size = max(numbers.largest(claimed), numbers.largest(found.slope[found.error < np.inf])) or 1.0
    apart, unknown, wrong = claims.judge(claimed, found, size, row.tolerance or 0.0, row.mode in at.tolerances)
    errors = np.where(unknown & ~wrong, 0.0, apart / size)
    worst = int(np.argmax(np.where(wrong, errors, -1.0) if wrong.any() else errors))
    place = np.unravel_index(element_of[worst], lines.floats[i].shape)
    index = tuple(int(k) for k in place) if errors[worst] > 0 else None
    row = replace(row, error=float(errors[worst]), index=index)

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


def _keep_for_other_modes(at: Point, lines: Lines, i: int, elements: Sequence[int], found: Slopes) -> None:
    """The gradient by differences, if it is all there and real, and whether there is a kink."""
    if found.slope.size == len(elements) == lines.floats[i].size:
        at.differenced[i] = np.where(found.kink, (found.left + found.right) / 2, found.slope)
    if found.kink.any():
        at.no_truth = KINK


def _vanishes(lines: Lines, i: int, claimed: np.ndarray, found: Slopes) -> bool:
    """Whether claims and slopes are nothing but uncertainty, which moves the function by next to nothing."""
    noise = found.slack * (numbers.largest(lines.floats[i]) or 1.0)
    none = (np.abs(claimed) <= found.slack) & (np.abs(found.slope) <= found.slack)
    return bool((none & (noise <= _NOTHING * lines.weight)).all())


def _by_directions(at: Point, row: Row, lines: Lines, gradient: Any, i: int) -> Row:
    """The row, filled in: whether the gradient of argument `i` is what differences say along random directions."""
    broken = np.flatnonzero(~np.isfinite(numbers.wide(gradient)).ravel())
    if len(broken):
        return _by_elements(at, row, lines, gradient, i, [int(j) for j in broken[:_BROKEN]])
    rng = at.random(9)
    everything = np.ones(lines.floats[i].shape)
    found, claimed = _along_random(rng, everything, _DIRECTIONS, lines, gradient, i)

    size = max(numbers.largest(claimed), numbers.largest(found.slope)) or 1.0
    apart, unknown, wrong = claims.judge(claimed, found, size, row.tolerance or 0.0, row.mode in at.tolerances)
    wrong &= ~(found.kink & kinks.between(found, claimed))
    row = replace(row, error=float(np.where(unknown, 0, apart / size).max()))

    if unknown.all():
        return replace(row, verdict=NOT_AVAILABLE, error=None, note=join("no slope can be measured", row.note))
    if wrong.any():
        element = _by_halving(rng, lines, gradient, i)
        return _by_elements(at, replace(row, verdict=FAIL), lines, gradient, i, [element])
    return row


def _by_halving(rng: np.random.Generator, lines: Lines, gradient: Any, i: int) -> int:
    """An element whose claim is wrong: of what is left, the half whose claims are farther off, until one is left."""
    shape = lines.floats[i].shape

    def apart(elements: np.ndarray) -> float:
        mask = np.zeros(int(np.prod(shape)))
        mask[elements] = 1
        found, claimed = _along_random(rng, mask.reshape(shape), _HALF_DIRECTIONS, lines, gradient, i)
        with np.errstate(all="ignore"):
            return np.nan_to_num(np.abs(claimed - found.slope) - found.slack, nan=0.0, posinf=0.0).max()

    left = np.arange(lines.floats[i].size)
    while len(left) > 1:
        first, second = left[: len(left) // 2], left[len(left) // 2 :]
        apart_first, apart_second = apart(first), apart(second)
        left = second if apart_second > apart_first else first
    return int(left[0])


def _along_random(
    rng: np.random.Generator, mask: np.ndarray, count: int, lines: Lines, gradient: Any, i: int
) -> tuple[Slopes, np.ndarray]:
    """Slopes and claims along random directions that move the elements of the mask."""
    directions = [mask * rng.standard_normal(mask.shape) for _ in range(count)]
    if np.iscomplexobj(numbers.wide(lines.floats[i])):
        directions = [d + 1j * mask * rng.standard_normal(mask.shape) for d in directions]
    return lines.measure(i, directions), claims.claimed(gradient, directions)
