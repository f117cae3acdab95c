"""The modes that compare first derivatives with the truth: reverse mode, forward mode, and rounding."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bnderiv.check import derivatives, judge, numbers
from bnderiv.check.numbers import wide
from bnderiv.check.point import Point, join
from bnderiv.check.report import FAIL, NOT_AVAILABLE, OK, Row, message
from bnderiv.check.who_is_right import who_is_right


def gradient(at: Point) -> Iterator[Row]:
    if at.r is None:
        yield Row("gradient", "gradient", verdict=NOT_AVAILABLE, note="no reference: see finite differences")
        return
    truth, count = at.truth, len(at.value)
    expected, tolerance = truth.arrays[1], at.tolerance("gradient", numbers.FORMULA)

    def roundings() -> Any:
        return truth.roundings()[count:]

    found = judge.rows(at, "gradient", "gradient", at.names, at.gradient, expected, tolerance, truth.note, roundings)
    for i, row in enumerate(found):
        if row.verdict == NOT_AVAILABLE:
            row = _in_float64(at, row, i, expected)
        if row.verdict == FAIL and row.error is not None:
            row = _asked(at, row, i, at.gradient[i], expected[i])
        yield judge.of_small_elements(at, row, i, expected[i], roundings, truth.note)


def float64(at: Point) -> Iterator[Row]:
    if at.in_double:
        yield Row("float64", "float64", verdict=NOT_AVAILABLE, note="the arguments are float64 already")
        return
    count = len(at.value)
    if at.r is None:
        expected, _, note = at.pulled
        roundings = at.all_roundings
    else:
        expected, roundings, note = at.truth
    if note:
        yield Row("float64", "float64", verdict=NOT_AVAILABLE, note=note)
        return
    reference = at.r is not None
    yield from judge.ulp_rows(at, "value", at.inexact_names, at.value, expected[0], roundings, reference)
    rows = judge.ulp_rows(at, "gradient", at.names, at.gradient, expected[1], lambda: roundings()[count:], reference)
    for i, row in enumerate(rows):
        yield _asked(at, row, i, at.gradient[i], expected[1][i]) if row.verdict == FAIL else row


def jvp(at: Point) -> Iterator[Row]:
    tangents = at.draw(at.floats, 3)
    try:
        _, pushed = at.program(derivatives.push, at.h)(tangents, at.floats, at.carried)
    except Exception as error:
        note = "a custom_vjp has no forward mode" if "custom_vjp" in str(error) else ""
        yield judge.impossible("jvp", error, note=note)
        return
    tolerance = at.tolerance("jvp", numbers.FORMULA)
    if at.r is not None:
        truth = at.expected(derivatives.push, tangents, at.floats, at.carried)
        count = len(at.value)
        rows = judge.rows(
            at, "jvp", "jvp", at.inexact_names, pushed, truth.arrays[1], tolerance, truth.note,
            lambda: truth.roundings()[count:],
        )  # fmt: skip
        yield from judge.after_kinks(at, rows)
    pairs = (at.cotangent, pushed), (at.gradient, tangents)
    products = [[np.real(wide(a) * wide(b)).ravel() for a, b in zip(*pair, strict=True)] for pair in pairs]
    left, right = (np.concatenate(p) if p else np.zeros(0) for p in products)
    check = "jvp: transpose of the vjp"
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        yield Row("jvp", check, verdict=NOT_AVAILABLE, note="a derivative is not finite")
        return
    apart, terms = abs(left.sum() - right.sum()), np.abs(left).sum() or 1.0
    if apart / terms > tolerance:  # a gradient that vanishes carries the roundings of larger terms that cancel in it
        found = zip(at.roundings, tangents, strict=True)
        apart -= sum(4 * r.spread * float(np.abs(wide(t)).sum()) for r, t in found if np.isfinite(r.spread))
    error = max(float(apart), 0.0) / terms
    verdict = OK if error <= tolerance else FAIL
    texts = judge.apart_in_digits(left.sum(), right.sum())
    note = "" if verdict == OK else "⟨ct, J v⟩ is {}, ⟨Jᵀ ct, v⟩ is {}".format(*texts)
    yield from judge.after_kinks(at, [Row("jvp", check, "", verdict, error, tolerance, None, note)])


def _asked(at: Point, row: Row, i: int, actual: Any, expected: Any) -> Row:
    try:
        return who_is_right(at, row, i, actual, expected)
    except Exception as error:  # the failure stands
        return replace(row, note=join(row.note, f"differences: {message(error)}"))


def _in_float64(at: Point, row: Row, i: int, expected: Any) -> Row:
    """Where roundings hide a gradient: whether its formula is right in float64."""
    size, spread = judge.magnitude_of(at, expected[i]), at.truth.roundings()[len(at.value) + i].spread
    try:
        data = at.cotangent, at.floats, at.carried
        (_, gradient), (_, expected) = (at.without_casts(derivatives.pull, h, *data) for h in (at.h, at.r))
        spread = 0.0
    except Exception:
        (_, gradient), double, _ = at.pulled
        if not double or at.in_double:
            return row
    error, index, _apart = numbers.distance(gradient[i], expected[i], size)
    if error <= max(1e-6, 1e-6 * spread / size):
        return replace(row, verdict=OK, note=f"right in float64; {row.note}")
    return replace(row, verdict=FAIL, note=f"wrong in float64 too: {judge.unlike(gradient[i], expected[i], index)}")
