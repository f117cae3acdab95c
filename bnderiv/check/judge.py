"""Whether two arrays agree. Rows for arrays, with the roundings that both may carry.

The first question is always the tolerance. Only an array that exceeds it is looked at again: roundings that the program
must make are allowed for, and small elements beside large ones are looked at in float64.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnderiv.check import numbers
from bnderiv.check.point import Point, join
from bnderiv.check.report import FAIL, KINK, NOT_AVAILABLE, OK, Row, message, where_raised
from bnderiv.check.roundings import Roundings

# Roundings beyond this part of an array hide what is to be checked.
HIDDEN = 0.05


def rows(
    at: Point,
    mode: str,
    check: str,
    names: Sequence[str],
    actual: Sequence[Any],
    expected: Sequence[Any],
    tolerance: float,
    note: str = "",
    roundings: Callable[[], Sequence[Roundings]] | None = None,
) -> Iterator[Row]:
    """A row for each array. A tolerance from the user is not widened by roundings."""
    expected = [numbers.within(e, a.dtype) for e, a in zip(expected, actual, strict=True)]
    for i, name in enumerate(names):
        magnitude = magnitude_of(at, expected[i])
        try:
            error, index, apart = numbers.distance(actual[i], expected[i], magnitude)
        except ValueError as wrong:
            yield Row(mode, check, name, FAIL, note=str(wrong))
            continue
        row = Row(mode, check, name, OK, error, tolerance, index, note)
        if not error <= tolerance:
            row = replace(row, verdict=FAIL, note=join(unlike(actual[i], expected[i], index), note))
            if roundings is not None and mode not in at.tolerances and np.isfinite(apart):
                row = _with_roundings(row, roundings()[i], apart, magnitude, expected[i], actual[i].dtype, note)
        yield row


def magnitude_of(at: Point, expected: Any) -> float:
    """What errors in an array are relative to: its largest element, or 1."""
    return numbers.largest(expected) or 1.0


def _with_roundings(
    row: Row, found: Roundings, apart: float, magnitude: float, expected: Any, dtype: Any, note: str
) -> Row:
    if not found.explain(apart):
        return row
    vanishes = found.vanishes(expected)
    if np.asarray(expected).dtype not in (np.float64, np.complex128):
        vanishes = numbers.largest(expected) <= 1e3 * numbers.ulp(dtype) * found.terms
    if vanishes or (dtype in (np.float64, np.complex128) and found.spread >= numbers.largest(expected)):
        size = found.terms
        return replace(row, verdict=OK, error=apart / size, note=join("it vanishes but for roundings", note))
    allowed = 4 * found.spread / magnitude
    if allowed > max(HIDDEN, 2 * (row.tolerance or 0.0)):
        said = f"roundings of up to {found.spread / magnitude:.1e} hide it in this dtype: give wider arguments"
        return replace(row, verdict=NOT_AVAILABLE, note=join(said, note))
    said = f"roundings in this dtype reach {found.spread / magnitude:.1e}"
    return replace(row, verdict=OK, tolerance=allowed, note=join(said, note))


def small_elements(actual: Any, expected: Any, tolerance: float) -> np.ndarray:
    """Elements more than a hundredth off that the tolerance does not see beside the largest."""
    apart, size = numbers.elementwise(actual, expected), np.abs(numbers.wide(expected))
    with np.errstate(all="ignore"):
        return (
            (apart > 0.01 * np.maximum(size, np.abs(numbers.wide(actual))))
            & (apart <= tolerance * numbers.largest(expected))
            & (size > 0)
        )


def of_small_elements(at: Point, row: Row, i: int, expected: Any, roundings: Callable[[], Any], note: str) -> Row:
    """A row that passed, after its small elements: judged in float64, where roundings are far below them."""
    if row.verdict != OK or row.mode in at.tolerances or row.tolerance is None:
        return row
    own = at.gradient[i]
    small = small_elements(own, expected, row.tolerance)
    if not small.any():
        return row
    (_, wide), double, _ = at.pulled
    noise = 1e3 * 2.0**-52 * numbers.largest(expected)
    if note or not double:
        wide, noise = at.gradient, np.inf
    elif at.in_double:
        noise = max(noise, 8 * roundings()[i].spread)
    small &= small_elements(wide[i], expected, np.inf)
    apart = np.where(small, numbers.elementwise(wide[i], expected), 0.0)
    if not small.any():
        return row
    with np.errstate(all="ignore"):
        relative = np.where(small, apart / np.abs(numbers.wide(expected)), 0.0)
    index = tuple(int(k) for k in np.unravel_index(int(relative.argmax()), relative.shape))
    said = f"elementwise: {unlike(wide[i], expected, index)}, beside {numbers.largest(expected):.1e}"
    if apart[index] > noise:
        return replace(row, verdict=FAIL, index=index, error=float(relative[index]), note=join(said, row.note))
    return row if at.in_double else replace(row, note=join(said, row.note))


def ulp_rows(
    at: Point,
    what: str,
    names: Sequence[str],
    actual: Sequence[Any],
    expected: Sequence[Any],
    roundings: Callable[[], Sequence[Roundings]],
    of_reference: bool,
) -> Iterator[Row]:
    """Errors in ulps of the largest element. The reference's roundings are allowed for; those of `f` do not pass it."""
    expected = [numbers.within(e, a.dtype) for e, a in zip(expected, actual, strict=True)]
    for i, name in enumerate(names):
        magnitude, unit = magnitude_of(at, expected[i]), numbers.ulp(actual[i].dtype)
        error, index, apart = numbers.distance(actual[i], expected[i], magnitude)
        allowed, note = at.tolerances.get("float64", numbers.ULPS), ""
        verdict = OK if error / unit <= allowed else FAIL
        if verdict == FAIL:
            note = unlike(actual[i], expected[i], index)
            found = roundings()[i] if "float64" not in at.tolerances else Roundings(0.0, 0.0)
            if found.explain(apart) and found.vanishes(expected[i]):
                verdict, note, error = OK, "it vanishes but for roundings", apart / found.terms
            elif of_reference:
                others = found.spread / magnitude / unit
                allowed, verdict = max(allowed, 4 * others), OK if found.explain(apart) else FAIL
                note = join("" if verdict == OK else note, f"the reference: {others:.3g} ulp")
            elif what == "gradient" and "float64" not in at.tolerances and apart <= 4 * at.conditioning[i]:
                others = at.conditioning[i] / magnitude / unit
                allowed, verdict, note = 4 * others, OK, f"an ulp of the arguments moves it by {others:.3g} ulp"
            elif found.explain(apart):  # whether they must be, only a reference can tell
                said = f"the roundings of its own operations reach {found.spread / magnitude / unit:.3g} ulp"
                verdict, note = NOT_AVAILABLE, f"{said}; give a reference to see whether they must"
        yield Row("float64", f"float64: {what}", name, verdict, error / unit, allowed, index, note, "ulp")


def unlike(actual: Any, expected: Any, index: tuple[int, ...] | None) -> str:
    """ "got 1.14, expected 1.13", with as many digits as tell the two apart."""
    if index is None:
        return ""
    return "got {}, expected {}".format(*apart_in_digits(numbers.wide(actual)[index], numbers.wide(expected)[index]))


def apart_in_digits(a: Any, b: Any) -> tuple[str, str]:
    for digits in range(6, 18):
        texts = f"{a:.{digits}g}", f"{b:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def raised(mode: str, error: Exception, check: str = "", argument: str = "") -> Row:
    verdict = NOT_AVAILABLE if "UNIMPLEMENTED" in str(error) else FAIL  # by this backend, whatever the rule
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
