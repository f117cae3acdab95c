"""A gradient claims a slope for every direction. Which claims do measured slopes refute?

A claim is wrong if it is farther from the slope than the tolerance and the slope's own uncertainty allow. A slope that
is too uncertain says nothing of a claim, unless the claim is off by even more.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bnderiv.check import numbers
from bnderiv.check.slopes import Slopes

MEASURED = 0.05  # a slope that is known no better than this, relative to the largest, says nothing

# Small elements beside large ones: the tolerance, relative to the largest, hardly sees them, but their slopes are known
# far better. Below _SMALL tolerances a claim may be off only by the sum of
_SMALL = 10
_OF_SLOPE = 0.1  # this part of its slope,
_OF_ERROR = 30  # this many times the slope's uncertainty,
_OF_LARGEST = 1e-12  # and this part of the largest slope, whose roundings in float64 it may carry.


class Judgment(NamedTuple):
    """One entry for each direction."""

    error: np.ndarray  # of the claim, relative to the largest slope; 0 if the slope says nothing of it
    unknown: np.ndarray  # whether the slope is too uncertain
    wrong: np.ndarray  # whether the slope refutes the claim


def claimed(gradient: Any, directions: Sequence[np.ndarray]) -> np.ndarray:
    """⟨gradient, direction⟩ for each direction. An element that does not move does not count, even if it is NaN."""
    g = numbers.wide(gradient)
    return np.asarray([float(np.real((g[d != 0] * d[d != 0]).sum())) for d in directions])


def judge(claims: np.ndarray, found: Slopes, tolerance: float, exact: bool) -> Judgment:
    """Compares claims with the slopes found.

    Args:
      tolerance: relative to the largest slope or claim.
      exact: the tolerance is the user's, and is not widened by the slopes' uncertainty.
    """
    size = max(numbers.largest(claims), numbers.largest(found.slope[found.error < np.inf])) or 1.0
    with np.errstate(all="ignore"):
        apart = np.where(np.isfinite(claims), np.abs(claims - found.slope), np.inf)
        unknown = ~(found.error <= MEASURED * size) & ~found.kink
        nothing_measured = unknown & ~(found.error < np.inf)
        slack = 0.0 if exact else found.slack
        off = (apart > tolerance * size + slack) & ~nothing_measured
        wrong = off | _small_and_off(claims, found, apart, size, tolerance)
    infinitely_steep = np.isinf(claims) & unknown  # an infinite claim stands where differences grow without end
    no_value = np.isnan(claims) & ~np.isfinite(found.slope)  # and NaN where f has no value
    wrong &= ~infinitely_steep & ~no_value
    says_nothing = (unknown & ~wrong) | np.isnan(apart)
    return Judgment(np.where(says_nothing, 0.0, apart / size), unknown, wrong)


def _small_and_off(claims: np.ndarray, found: Slopes, apart: np.ndarray, size: float, tolerance: float) -> np.ndarray:
    """Which claims of small elements are off by a tenth, though the tolerance hardly sees it."""
    small = np.abs(found.slope) + np.abs(claims) < _SMALL * tolerance * size
    off = apart > _OF_SLOPE * np.abs(found.slope) + _OF_ERROR * found.error + _OF_LARGEST * size
    return small & off & (found.slope != 0)
