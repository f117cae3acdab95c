"""Compares a gradient with finite differences of the function, and asks them who is right where two differ."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnderiv.check import derivatives, kinks, numbers
from bnderiv.check.judge import apart_in_digits
from bnderiv.check.lines import Lines
from bnderiv.check.point import Point, join
from bnderiv.check.report import FAIL, KINK, NOT_AVAILABLE, OK, Row

MANY = 128  # an array of more elements is differenced along random directions, a smaller one element by element
_DIRECTIONS = 8
_MEASURED = 0.05  # a slope that is known no better than this, relative to the largest, says nothing
_NOTHING = 1e-4  # how far a function may move, relative to itself, whose gradient vanishes
_WORST = 16  # elements that are asked about where two gradients differ


def finite_differences(at: Point) -> Iterator[Row]:
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
        if lines.floats[i].size <= MANY:
            yield _element_by_element(at, row, lines, gradient[i], i)
        else:
            yield _along_directions(at, row, lines, gradient[i], i)


def _element_by_element(at: Point, row: Row, lines: Lines, gradient: Any, i: int, elements: Any = None) -> Row:
    elements = range(lines.floats[i].size) if elements is None else elements
    if not len(elements):
        return row
    units, own = lines.units(i, elements)
    found, claims = lines.measure(i, units, own), kinks.claimed(gradient, units)
    several = len(units) // len(elements)
    if row.mode == "finite_differences" and several == 1 and len(elements) == lines.floats[i].size:
        at.differenced[i] = np.where(found.kink, (found.left + found.right) / 2, found.slope)
    size = max(numbers.largest(claims), numbers.largest(found.slope[found.error < np.inf])) or 1.0
    apart, unknown, wrong = _judged(claims, found, size, row.tolerance or 0.0, row.mode in at.tolerances)
    if row.mode == "finite_differences" and (found.kink & ~unknown).any():
        at.no_truth = KINK
    known = np.where(unknown & ~wrong, 0.0, apart / size)
    worst = int(np.flatnonzero(wrong)[np.argmax(known[wrong])] if wrong.any() else np.argmax(known))
    place = tuple(int(k) for k in np.unravel_index(elements[worst // several], lines.floats[i].shape))
    row = replace(row, error=float(known[worst]), index=place if known[worst] > 0 else None)
    if wrong.any():
        got = "got {}, differences say {}".format(*apart_in_digits(claims[worst], found.slope[worst]))
        row = replace(row, verdict=FAIL, note=join(got, row.note))
        off = sorted({elements[int(k) // several] for k in np.flatnonzero(wrong)})
        if found.kink[wrong].all() and kinks.is_kink(lines, i, gradient, off):
            at.no_truth = KINK
            row = replace(row, verdict=KINK, note=kinks.NOTE)
    elif unknown.all() and _vanishes(lines, i, claims, found):
        row = replace(row, note=join("it vanishes but for roundings", row.note))
    elif unknown.all():
        said = "no slope can be measured: f is not finite, too noisy, or infinitely steep"
        row = replace(row, verdict=NOT_AVAILABLE, error=None, index=None, note=join(said, row.note))
    elif unknown.any():
        row = replace(
            row, note=join(f"the slopes at {int(unknown.sum())} of {unknown.size} cannot be measured", row.note)
        )
    return row


def _judged(claims: Any, found: Any, size: float, tolerance: float, strict: bool) -> tuple[Any, Any, Any]:
    """How far the claims are off, which slopes are not known, and which claims are wrong."""
    with np.errstate(all="ignore"):
        apart = np.abs(claims - found.slope)
        apart = np.where(np.isnan(claims) | np.isinf(claims), np.inf, apart)
        unknown = ~(found.error <= _MEASURED * size) & ~found.kink
        slack = 0.0 if strict else 4 * found.error
        wrong = (apart > tolerance * size + slack) & ~(unknown & ~(found.error < np.inf))
        # Small elements beside large ones: the differences know them far better than the tolerance asks.
        small = np.abs(found.slope) + np.abs(claims) < 10 * tolerance * size
        wrong |= small & (apart > 0.1 * np.abs(found.slope) + 30 * found.error + 1e-12 * size) & (found.slope != 0)
    # An infinite claim stands where the differences grow without end, and where f has no value.
    wrong &= ~(np.isinf(claims) & unknown)
    wrong &= ~(np.isnan(claims) & ~np.isfinite(found.slope))
    return np.where(np.isnan(apart), 0.0, apart), unknown, wrong


def _vanishes(lines: Lines, i: int, claims: Any, found: Any) -> bool:
    """Whether claims and slopes are both nothing beside the function."""
    noise = 4 * found.error * (numbers.largest(lines.floats[i]) or 1.0)
    none = (np.abs(claims) <= 4 * found.error) & (np.abs(found.slope) <= 4 * found.error)
    return bool((none & (noise <= _NOTHING * lines.weight)).all())


def _along_directions(at: Point, row: Row, lines: Lines, gradient: Any, i: int) -> Row:
    x, rng = numbers.wide(lines.floats[i]), at.random(9)
    broken = np.flatnonzero(~np.isfinite(numbers.wide(gradient)).ravel())
    if len(broken):
        return _element_by_element(at, row, lines, gradient, i, [int(j) for j in broken[:_WORST]])

    def along(mask: np.ndarray, count: int) -> tuple[Any, Any]:
        directions = [mask * rng.standard_normal(x.shape) for _ in range(count)]
        if np.iscomplexobj(x):
            directions = [d + 1j * mask * rng.standard_normal(x.shape) for d in directions]
        return lines.measure(i, directions), kinks.claimed(gradient, directions)

    found, claims = along(np.ones(x.shape), _DIRECTIONS)
    size = max(numbers.largest(claims), numbers.largest(found.slope)) or 1.0
    apart, unknown, wrong = _judged(claims, found, size, row.tolerance or 0.0, row.mode in at.tolerances)
    wrong &= ~(found.kink & kinks.between(found, claims))
    row = replace(row, error=float(np.where(unknown, 0, apart / size).max()))
    if unknown.all():
        return replace(row, verdict=NOT_AVAILABLE, error=None, note=join("no slope can be measured", row.note))
    if not wrong.any():
        return row
    # Halve what is looked at until one element is left.
    left = np.arange(x.size)
    while len(left) > 1:
        halves = left[: len(left) // 2], left[len(left) // 2 :]
        off = []
        for half in halves:
            mask = np.zeros(x.size)
            mask[half] = 1
            found, claims = along(mask.reshape(x.shape), 2)
            with np.errstate(all="ignore"):
                off.append(np.nan_to_num(np.abs(claims - found.slope) - 4 * found.error, nan=0.0, posinf=0.0).max())
        left = halves[int(off[1] > off[0])]
    return _element_by_element(at, replace(row, verdict=FAIL), lines, gradient, i, [int(left[0])])


def who_is_right(at: Point, row: Row, i: int, actual: Any, expected: Any, cotangent_lines: Lines | None = None) -> Row:
    """A failed row of a gradient against a reference, after differences of f at the elements that are off."""
    lines = cotangent_lines or at.lines
    apart = numbers.elementwise(actual, expected).ravel()
    unit = numbers.ulp(np.asarray(actual).dtype) if row.unit else 1.0
    limit = (row.tolerance or 0.0) * unit * (numbers.largest(expected) or numbers.largest(actual))
    off = [int(j) for j in np.argsort(-apart, kind="stable")[:MANY] if not apart[j] <= limit]
    units, own = lines.units(i, off[:_WORST])
    found = lines.measure(i, units, own)
    mine, theirs = kinks.claimed(actual, units), kinks.claimed(expected, units)
    if found.kink.all():
        if kinks.is_kink(lines, i, actual, off):
            at.no_truth = KINK
            return replace(row, verdict=KINK, note=kinks.NOTE)
        return row
    with np.errstate(all="ignore"):
        between = np.where(np.isfinite(mine) & np.isfinite(theirs), np.abs(mine - theirs), np.inf)
        size = np.maximum(np.abs(found.slope), limit)
        tells = 4 * found.error < np.minimum(0.2 * between, 0.05 * np.maximum(size, numbers.largest(expected)))
        agrees = [np.abs(g - found.slope) <= 4 * found.error + limit for g in (mine, theirs)]
        kink = found.kink & kinks.between(found, mine)
        if not (tells | found.kink).all():
            return row
        if (agrees[0] | kink).all() and not agrees[1].all() and at.same_values:
            at.no_truth = at.no_truth or "the reference is wrong here"
            said = "autodiff of the reference is wrong here ({}); differences of f agree with the rule ({})"
            k = int(np.flatnonzero(~agrees[1])[0])
            said = said.format(*reversed(apart_in_digits(mine[k], theirs[k])))
            return replace(row, verdict=OK, note=join(said, "" if "got" in row.note else row.note))
    if agrees[1].all():
        return replace(row, note=join(row.note, "differences of f agree with the reference"))
    k = int(np.flatnonzero(~agrees[1])[0])
    return replace(row, note=join(row.note, f"differences of f say {found.slope[k]:.6g}"))


def at_another_point(at: Point, floats: Sequence[Any], gradient: Sequence[Any], tolerance: float) -> tuple[float, bool]:
    """The error of a gradient at another point, along random directions, and whether any slope there is known."""
    lines, rng = at.lines, at.random(15)
    if lines.undefined:
        return 0.0, False
    directions = [[_of_its_size(f) * rng.standard_normal(np.shape(f)) for f in floats] for _ in range(4)]
    found = lines.across(directions, floats)
    terms = [
        [np.real(numbers.wide(g) * d) for g, d in zip(gradient, direction, strict=True)] for direction in directions
    ]
    claims = np.asarray([sum(float(t.sum()) for t in row) for row in terms])
    size = (
        max(max(float(np.sqrt(sum((t * t).sum() for t in row))) for row in terms), numbers.largest(found.slope)) or 1.0
    )
    known = found.error <= _MEASURED * size
    with np.errstate(all="ignore"):
        apart = np.where(known, np.maximum(np.abs(claims - found.slope) - 4 * found.error, 0), 0.0)
        if (apart > tolerance * size).any():  # a gradient that vanishes carries the roundings of what cancels in it
            moved = [[r.spread * np.abs(d).sum() for r, d in zip(at.roundings, v, strict=True)] for v in directions]
            apart = np.maximum(apart - 4 * np.asarray([sum(m) for m in moved]), 0)
        errors = apart / size
    errors = np.where(np.isnan(claims) & known, np.inf, errors)
    return float(errors.max(initial=0.0)), bool(known.any())


def _of_its_size(x: Any) -> np.ndarray:
    """How far each element may move: by its own size, or by the array's if it is zero."""
    size = np.abs(numbers.wide(x))
    return np.where(size == 0, numbers.largest(x) or 1.0, size)
