"""Where a rule and the reference disagree on a gradient, differences of `f` itself say who is right.

They change a failure in three ways: the reference is wrong, and the row passes; there is a kink; or the row keeps its
failure, and its note says what differences say. If they cannot tell the two apart, the row stays as it is.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from bnderiv.check import kinks, numbers
from bnderiv.check.agreement import apart_in_digits
from bnderiv.check.claims import claimed
from bnderiv.check.lines import Lines
from bnderiv.check.point import Point, join
from bnderiv.check.report import KINK, OK, Row
from bnderiv.check.slopes import Slopes

_ASKED = 16  # elements, the worst, whose slopes are measured
_AT_KINKS = 128  # elements that may be at a kink
# Differences tell two gradients apart if their uncertainty is below this part of the distance between the two, and
# below this part of the slope or of the largest element.
_OF_DISTANCE, _OF_SLOPE = 0.2, 0.05


def who_is_right(at: Point, row: Row, i: int, rule: Any, reference: Any, lines: Lines | None = None) -> Row:
    """A failed row of argument `i`, after differences at the elements where the two gradients disagree.

    `lines` are of the function whose gradient this is, by default of ⟨cotangent, f⟩.
    """
    lines = lines or at.lines
    unit = numbers.ulp(np.asarray(rule).dtype) if row.unit else 1.0
    limit = (row.tolerance or 0.0) * unit * (numbers.largest(reference) or numbers.largest(rule))
    off = _where_they_disagree(rule, reference, limit)
    units, found = lines.of_elements(i, off[:_ASKED])
    if found.kink.all():
        if kinks.is_kink(lines, i, rule, off):
            at.no_truth = KINK
            return replace(row, verdict=KINK, note=kinks.NOTE)
        return row

    of_rule, of_reference = claimed(rule, units), claimed(reference, units)
    with np.errstate(all="ignore"):
        if not (_tells_apart(found, of_rule, of_reference, limit, numbers.largest(reference)) | found.kink).all():
            return row
        rule_agrees, reference_agrees = (
            np.abs(claims - found.slope) <= found.slack + limit for claims in (of_rule, of_reference)
        )
        rule_is_right = (rule_agrees | found.between_sides(of_rule)).all()
    if reference_agrees.all():
        return replace(row, note=join(row.note, "differences of f agree with the reference"))
    k = int(np.flatnonzero(~reference_agrees)[0])
    if rule_is_right and at.same_values:
        at.no_truth = at.no_truth or "the reference is wrong here"
        theirs, mine = reversed(apart_in_digits(of_rule[k], of_reference[k]))
        said = f"autodiff of the reference is wrong here ({theirs}); differences of f agree with the rule ({mine})"
        return replace(row, verdict=OK, note=join(said, "" if "got" in row.note else row.note))
    return replace(row, note=join(row.note, f"differences of f say {found.slope[k]:.6g}"))


def _where_they_disagree(rule: Any, reference: Any, limit: float) -> list[int]:
    """The elements that are farther apart than the limit, the worst first."""
    apart = numbers.elementwise(rule, reference).ravel()
    worst_first = np.argsort(-apart, kind="stable")[:_AT_KINKS]
    return [int(j) for j in worst_first if not apart[j] <= limit]


def _tells_apart(
    found: Slopes, of_rule: np.ndarray, of_reference: np.ndarray, limit: float, largest: float
) -> np.ndarray:
    """Whether each slope is certain enough to say which of the two claims is right."""
    both_finite = np.isfinite(of_rule) & np.isfinite(of_reference)
    distance = np.where(both_finite, np.abs(of_rule - of_reference), np.inf)
    size = np.maximum(np.maximum(np.abs(found.slope), limit), largest)
    return found.slack < np.minimum(_OF_DISTANCE * distance, _OF_SLOPE * size)
