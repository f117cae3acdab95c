"""The modes that compare first derivatives with the truth: reverse mode, forward mode, and rounding."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bnderiv.check import agreement, derivatives, numbers
from bnderiv.check.numbers import wide
from bnderiv.check.point import Expected, Point, join
from bnderiv.check.report import FAIL, NOT_AVAILABLE, OK, Row, message
from bnderiv.check.who_is_right import who_is_right

_FORMULA_IN_FLOAT64 = 1e-6  # how far a right formula may be off in float64, where narrower dtypes hide it


def gradient(at: Point) -> Iterator[Row]:
    if at.r is None:
        yield Row("gradient", "gradient", verdict=NOT_AVAILABLE, note="no reference: see finite differences")
        return
    truth, tolerance = at.truth.derivative, at.tolerance("gradient", numbers.FORMULA)
    for i, row in enumerate(agreement.rows(at, "gradient", "gradient", at.names, at.gradient, truth, tolerance)):
        if row.verdict == NOT_AVAILABLE:
            row = _in_float64(at, row, i)
        if row.verdict == FAIL and row.error is not None:
            row = _after_differences(at, row, i, truth)
        yield agreement.with_small_elements(at, row, i, truth)


def float64(at: Point) -> Iterator[Row]:
    if at.in_double:
        yield Row("float64", "float64", verdict=NOT_AVAILABLE, note="the arguments are float64 already")
        return
    truth = at.precise if at.r is None else at.truth
    if truth.note:
        yield Row("float64", "float64", verdict=NOT_AVAILABLE, note=truth.note)
        return
    yield from agreement.ulp_rows(at, "value", at.value_names, at.value, truth.value)
    for i, row in enumerate(agreement.ulp_rows(at, "gradient", at.names, at.gradient, truth.derivative)):
        yield _after_differences(at, row, i, truth.derivative) if row.verdict == FAIL else row


def jvp(at: Point) -> Iterator[Row]:
    tangents = at.draw(at.floats, 3)
    try:
        _, pushed = at.program(derivatives.push, at.h)(tangents, at.floats, at.carried)
    except Exception as error:
        note = "a custom_vjp has no forward mode" if "custom_vjp" in str(error) else ""
        yield agreement.impossible("jvp", error, note=note)
        return
    tolerance = at.tolerance("jvp", numbers.FORMULA)
    if at.r is not None:
        truth = at.truth_of(derivatives.push, tangents, at.floats, at.carried).derivative
        rows = agreement.rows(at, "jvp", "jvp", at.value_names, pushed, truth, tolerance)
        yield from agreement.after_kinks(at, rows)
    yield from agreement.after_kinks(at, [_transpose(at, tangents, pushed, tolerance)])


def _transpose(at: Point, tangents: Any, pushed: Any, tolerance: float) -> Row:
    """Whether ⟨ct, J v⟩ = ⟨Jᵀ ct, v⟩, relative to the terms of the sum."""
    row = Row("jvp", "jvp: transpose of the vjp", tolerance=tolerance)
    left, right = _products(at.cotangent, pushed), _products(at.gradient, tangents)
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return replace(row, verdict=NOT_AVAILABLE, tolerance=None, note="a derivative is not finite")
    apart, terms = abs(left.sum() - right.sum()), np.abs(left).sum() or 1.0
    if apart / terms > tolerance:  # a gradient that vanishes carries the roundings of larger terms that cancel in it
        found = zip(at.gradient_roundings(), tangents, strict=True)
        apart -= sum(4 * r.spread * float(np.abs(wide(t)).sum()) for r, t in found if np.isfinite(r.spread))
    error = max(float(apart), 0.0) / terms
    if error <= tolerance:
        return replace(row, error=error)
    note = "⟨ct, J v⟩ is {}, ⟨Jᵀ ct, v⟩ is {}".format(*agreement.apart_in_digits(left.sum(), right.sum()))
    return replace(row, error=error, verdict=FAIL, note=note)


def _products(some: Any, others: Any) -> np.ndarray:
    """The real terms of ⟨some, others⟩."""
    return np.concatenate([np.real(wide(a) * wide(b)).ravel() for a, b in zip(some, others, strict=True)])


def _after_differences(at: Point, row: Row, i: int, truth: Expected) -> Row:
    """A failed row of argument `i`, after differences of `f`."""
    try:
        return who_is_right(at, row, i, at.gradient[i], truth.arrays[i])
    except Exception as error:  # the failure stands
        return replace(row, note=join(row.note, f"differences: {message(error)}"))


def _in_float64(at: Point, row: Row, i: int) -> Row:
    """A row of argument `i` whose gradient roundings hide, after the gradient in float64: is the formula right?"""
    size, spread = numbers.magnitude(at.truth.arrays[1][i]), at.truth.derivative.rounding(i).spread
    try:
        data = at.cotangent, at.floats, at.carried
        (_, gradient), (_, expected) = (at.without_casts(derivatives.pull, h, *data) for h in (at.h, at.r))
        spread = 0.0
    except Exception:
        if at.precise.note or at.in_double:
            return row
        (_, gradient), (_, expected) = at.precise.arrays, at.truth.arrays
    apart, index = numbers.distance(gradient[i], expected[i])
    if apart <= _FORMULA_IN_FLOAT64 * max(size, spread):
        return replace(row, verdict=OK, note=f"right in float64; {row.note}")
    unlike = agreement.unlike(gradient[i], expected[i], index)
    return replace(row, verdict=FAIL, note=f"wrong in float64 too: {unlike}")
