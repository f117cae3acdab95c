"""A kink is not an error: if the slopes of the two sides differ, a rule may return either or a value in between."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bnderiv.check import numbers
from bnderiv.check.claims import claimed
from bnderiv.check.lines import Lines
from bnderiv.check.slopes import Slopes

NOTE = "no derivative here: the two sides differ, and the rule lies between them"
_ASIDE = 2.0**-9  # how far beside the point other slopes are looked for, relative to the array
SEVERAL = 8  # kinks whose pairs are looked at
# How far outside of the slopes a claim may lie, relative to the larger of them: for the two sides of the point what
# measuring leaves, and for slopes beside it also what f curves on the way.
_SLACK, _SLACK_ASIDE, _NEAR_ZERO = 1e-4, 1e-3, 1e-12


def is_kink(lines: Lines, i: int, gradient: Any, elements: Sequence[int]) -> bool:
    """Whether each of these elements of argument `i` is at a kink, with the gradient between the two slopes.

    Sums of elements are tested too. If several elements tie for a maximum, a gradient of 0 or 1 is possible for each
    element alone, but not 0 for all or 1 for all.
    """
    units, own = lines.units(i, elements)
    claims = claimed(gradient, units)
    found = lines.measure(i, units, own)
    if not (found.kink & between(found, claims)).all():
        return False
    several = list(range(len(units)))
    subsets = [*itertools.combinations(several, 2), several] if len(several) <= SEVERAL else [several]
    rising = [np.where(r >= left, 1, -1) * u for r, left, u in zip(found.right, found.left, units, strict=True)]
    # If the kinks are independent, the largest slope is where every element moves to its steeper side, the smallest
    # where every element moves to the other side.
    x, size = numbers.wide(lines.floats[i]), numbers.largest(lines.floats[i]) or 1.0
    together = [np.sum([units[k] for k in subset], axis=0) for subset in subsets]
    ways = [(sum(rising[k] for k in subset), t) for subset, t in zip(subsets, together, strict=True)]
    asides = [sign * way for pair in ways for way in pair for sign in (1, -1)]
    starts = [x + _ASIDE * size * aside for aside in asides]
    around = lines.measure(i, [t for t in together for _ in range(4)], starts=starts).slope.reshape(-1, 4)
    claims = claimed(gradient, together)
    slack = _SLACK_ASIDE * np.abs(around).max(1) + _NEAR_ZERO
    return bool(((around.min(1) - slack <= claims) & (claims <= around.max(1) + slack)).all())


def between(found: Slopes, claims: np.ndarray) -> np.ndarray:
    """Whether a claim lies between the slopes of the two sides."""
    low, high = np.minimum(found.left, found.right), np.maximum(found.left, found.right)
    slack = _SLACK * np.maximum(np.abs(low), np.abs(high))
    return (low - slack <= claims) & (claims <= high + slack)
