"""Whether arrays agree: a row for each, with the roundings that both may carry.

The first question is always the tolerance. Only an array that exceeds it is looked at again: roundings that the program
must make are allowed for. An array within it is looked at again for small elements beside large ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnderiv.check import numbers
from bnderiv.check.point import Expected, Point, join
from bnderiv.check.report import FAIL, KINK, NOT_AVAILABLE, OK, Row, message, where_raised
from bnderiv.check.roundings import Roundings

_HIDDEN = 0.05  # roundings beyond this part of an array hide what is to be checked
_SMALL_AND_OFF = 0.01  # a small element may be off by this part of itself
_FLOAT64_NOISE = 1e3 * 2.0**-52  # what roundings in float64 leave, relative to the largest element


def rows(
    at: Point, mode: str, check: str, names: Sequence[str], actual: Sequence[Any], expected: Expected, tolerance: float
) -> Iterator[Row]:
    """A row for each array: its error relative to the largest element expected, or to 1 if all are zero.

    Roundings do not widen a tolerance that the user gave.
    """
    for i, (name, a, e) in enumerate(zip(names, actual, expected.arrays, strict=True)):
        e = numbers.within(e, a.dtype)
        try:
            apart, index = numbers.distance(a, e)
        except ValueError as wrong:
            yield Row(mode, check, name, FAIL, note=str(wrong))
            continue
        error = apart / numbers.magnitude(e)
        row = Row(mode, check, name, OK, error, tolerance, index, expected.note)
        if not error <= tolerance:
            row = replace(row, verdict=FAIL, note=join(unlike(a, e, index), expected.note))
            if mode not in at.tolerances and np.isfinite(apart):
                row = _allowing_for(expected.rounding(i), row, apart, a, e, expected.note)
        yield row


def _allowing_for(found: Roundings, row: Row, apart: float, actual: Any, expected: Any, note: str) -> Row:
    """A failed row, after what roundings may do to the array."""
    if not found.explain(apart):
        return row
    largest = numbers.largest(expected)
    double = actual.dtype in (np.float64, np.complex128)
    if found.vanishes(expected) or (double and found.spread >= largest):
        return replace(row, verdict=OK, error=apart / found.terms, note=join("it vanishes but for roundings", note))
    relative = found.spread / numbers.magnitude(expected)
    if 4 * relative > max(_HIDDEN, 2 * (row.tolerance or 0.0)):
        said = f"roundings of up to {relative:.1e} hide it in this dtype: give wider arguments"
        return replace(row, verdict=NOT_AVAILABLE, note=join(said, note))
    said = f"roundings in this dtype reach {relative:.1e}"
    return replace(row, verdict=OK, tolerance=4 * relative, note=join(said, note))


def with_small_elements(at: Point, row: Row, i: int, truth: Expected) -> Row:
    """The row of the gradient of argument `i`, after small elements that the tolerance does not see.

    They are compared in float64, where roundings of the largest element are far below them.
    """
    if row.verdict != OK or row.mode in at.tolerances or row.tolerance is None:
        return row
    gradient, expected = at.gradient[i], truth.arrays[i]
    largest = numbers.largest(expected)
    seen = row.tolerance * largest
    small = _small_and_off(gradient, expected) & (numbers.elementwise(gradient, expected) <= seen)
    if not small.any():
        return row
    noise = np.inf
    if not truth.note and not at.precise.note:
        gradient, noise = at.precise.arrays[1][i], _FLOAT64_NOISE * largest
        if at.in_double:
            noise = max(noise, 8 * truth.rounding(i).spread)
    small &= _small_and_off(gradient, expected)
    if not small.any():
        return row
    apart = np.where(small, numbers.elementwise(gradient, expected), 0.0)
    with np.errstate(all="ignore"):
        relative = np.where(small, apart / np.abs(numbers.wide(expected)), 0.0)
    index = tuple(int(k) for k in np.unravel_index(int(relative.argmax()), relative.shape))
    said = f"elementwise: {unlike(gradient, expected, index)}, beside {largest:.1e}"
    if apart[index] > noise:
        return replace(row, verdict=FAIL, index=index, error=float(relative[index]), note=join(said, row.note))
    return row if at.in_double else replace(row, note=join(said, row.note))


def _small_and_off(actual: Any, expected: Any) -> np.ndarray:
    """Elements other than zero that are off by a hundredth of themselves."""
    a, e = np.abs(numbers.wide(actual)), np.abs(numbers.wide(expected))
    apart = numbers.elementwise(actual, expected)
    with np.errstate(all="ignore"):
        return (apart > _SMALL_AND_OFF * np.maximum(e, a)) & (e > 0)


def ulp_rows(at: Point, what: str, names: Sequence[str], actual: Sequence[Any], expected: Expected) -> Iterator[Row]:
    """A row for each array: its error in ulps of the largest element."""
    allowed = at.tolerances.get("float64", numbers.ULPS)
    for i, (name, a, e) in enumerate(zip(names, actual, expected.arrays, strict=True)):
        e, ulp = numbers.within(e, a.dtype), numbers.ulp(a.dtype)
        apart, index = numbers.distance(a, e)
        error = apart / numbers.magnitude(e) / ulp
        row = Row("float64", f"float64: {what}", name, OK, error, allowed, index, unit="ulp")
        if not error <= allowed:
            row = replace(row, verdict=FAIL, note=unlike(a, e, index))
            if "float64" not in at.tolerances:
                conditioning = at.conditioning[i] if at.r is None and what == "gradient" else 0.0
                row = _allowing_for_ulps(expected.rounding(i), row, apart, ulp, e, conditioning, at.r is not None)
        yield row


def _allowing_for_ulps(
    found: Roundings, row: Row, apart: float, ulp: float, expected: Any, conditioning: float, of_reference: bool
) -> Row:
    """A failed row, after what roundings may do. The reference's roundings are allowed for; those of `f` are not."""
    unit = ulp * numbers.magnitude(expected)
    reach = found.spread / unit
    explained = found.explain(apart)
    if explained and found.vanishes(expected):
        return replace(row, verdict=OK, error=apart / found.terms / ulp, note="it vanishes but for roundings")
    if of_reference:
        said, allowed = f"the reference: {reach:.3g} ulp", max(row.tolerance or 0.0, 4 * reach)
        if explained:
            return replace(row, verdict=OK, tolerance=allowed, note=said)
        return replace(row, tolerance=allowed, note=join(row.note, said))
    if apart <= 4 * conditioning:
        said = f"an ulp of the arguments moves it by {conditioning / unit:.3g} ulp"
        return replace(row, verdict=OK, tolerance=4 * conditioning / unit, note=said)
    if explained:  # whether they must be, only a reference can tell
        said = f"the roundings of its own operations reach {reach:.3g} ulp"
        return replace(row, verdict=NOT_AVAILABLE, note=f"{said}; give a reference to see whether they must")
    return row


def unlike(actual: Any, expected: Any, index: tuple[int, ...] | None) -> str:
    """ "got 1.14, expected 1.13", with as many digits as tell the two apart."""
    if index is None:
        return ""
    return "got {}, expected {}".format(*apart_in_digits(numbers.wide(actual)[index], numbers.wide(expected)[index]))


def apart_in_digits(a: Any, b: Any) -> tuple[str, str]:
    """Two numbers as texts, with as many digits as tell them apart, at least six."""
    for digits in range(6, 18):
        texts = f"{a:.{digits}g}", f"{b:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def raised(mode: str, error: Exception, check: str = "", argument: str = "") -> Row:
    """A failure, or "n/a" if this backend lacks an operation, whatever the rule."""
    verdict = NOT_AVAILABLE if "UNIMPLEMENTED" in str(error) else FAIL
    return Row(mode, check or mode.replace("_", " "), argument, verdict, note=where_raised(error))


def after_kinks(at: Point, rows: Any) -> Iterator[Row]:
    """Where there is no truth, failures become "kink" or "n/a": derivatives of a gradient that jumps need not agree."""
    for row in rows:
        if row.verdict == FAIL and at.no_truth == KINK:
            row = replace(row, verdict=KINK, note="no derivative here: the gradient jumps")
        elif row.verdict == FAIL and at.no_truth:
            row = replace(row, verdict=NOT_AVAILABLE, note=at.no_truth)
        yield row


def impossible(mode: str, error: Exception, check: str = "", note: str = "") -> Row:
    """JAX cannot differentiate this; that is no fault of the gradient."""
    name = check or mode.replace("_", " ")
    return Row(mode, name, verdict=NOT_AVAILABLE, note=join(note, message(error) if "custom_vjp" not in note else ""))
