"""A kink is not an error: if the slopes of the two sides differ, a rule may return either or a value in between."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bnderiv.check import numbers
from bnderiv.check.claims import claimed
from bnderiv.check.lines import Lines

NOTE = "no derivative here: the two sides differ, and the rule lies between them"
_ASIDE = 2.0**-9  # how far beside the point f is smooth again, relative to the array
_PAIRS = 8  # elements of which each pair is tested
# How far outside the slopes beside the point a claim may lie, relative to the largest of them and absolutely: what
# measuring leaves, and what f curves on the way.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-12


def is_kink(lines: Lines, i: int, gradient: Any, elements: Sequence[int]) -> bool:
    """Whether each of these elements of argument `i` is at a kink, with the gradient between the two slopes.

    Sums of elements are tested too. If several elements tie for a maximum, a gradient of 0 or 1 is possible for each
    element alone, but not 0 for all or 1 for all.
    """
    units, found = lines.of_elements(i, elements)
    if not found.between_sides(claimed(gradient, units)).all():
        return False

    steeper = [u if right >= left else -u for u, left, right in zip(units, found.left, found.right, strict=True)]
    everyone = tuple(range(len(units)))
    groups = [*itertools.combinations(everyone, 2), everyone] if len(units) <= _PAIRS else [everyone]
    sums = [np.sum([units[k] for k in group], axis=0) for group in groups]
    # Four points beside the kink show which slopes a sum may have. If the kinks are independent, the largest is where
    # every element has moved to its steeper side, the smallest where every element has moved to the other.
    ways = [(sum(steeper[k] for k in group), total) for group, total in zip(groups, sums, strict=True)]
    x, size = numbers.wide(lines.floats[i]), numbers.magnitude(lines.floats[i])
    starts = [x + _ASIDE * size * sign * way for pair in ways for way in pair for sign in (1, -1)]
    beside = lines.of_directions(i, [total for total in sums for _ in range(4)], starts=starts).slope.reshape(-1, 4)
    claims = claimed(gradient, sums)
    slack = _RELATIVE * np.abs(beside).max(1) + _ABSOLUTE
    return bool(((beside.min(1) - slack <= claims) & (claims <= beside.max(1) + slack)).all())
