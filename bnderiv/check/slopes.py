"""Slopes from values: f is known at steps ±h of many sizes along a line; what is its slope at 0, and how sure is that?

1. Each step gives a difference quotient. It is off because f curves, the more the larger the step, and because values
   are rounded, the more the smaller the step.
2. Two neighbouring quotients cancel the leading error of curvature: an estimate of the slope (Richardson).
3. The uncertainty of an estimate is its distance from the next one, and what roundings do to it. The estimate with the
   smallest uncertainty is taken.
4. Beside a pole the coarse steps agree among themselves. Much steeper fine steps, above the roundings, refute them.
5. At a kink the slopes of the two sides differ by the same at every step. For a smooth function they agree better with
   each smaller step; in noise they differ the more, the smaller the step.

`lines.py` draws the lines and chooses the steps.
"""

from typing import Any, NamedTuple

import numpy as np

_ULPS = 4  # a value may be off by this many of its roundings, whose size is an estimate

# Noise: once an estimate is certain to _SETTLED and a later one is _NOISY times less certain, finer steps are left out.
# They only add roundings, until nothing moves at all: then all quotients are 0, and agree.
_SETTLED = 1e-4
_NOISY = 1e3

# A pole: finer estimates are more than _STEEPER times what the best one allows. It is not noise, since their roundings
# are below this part of them.
_STEEPER = 2
_ABOVE_ROUNDINGS = 1e-2

# A kink: the gap between the slopes of the two sides is the same within _SAME_GAP at the _SAME_AT finest steps where
# roundings are smaller than that. The gap must be more than _VISIBLE of the slopes.
_SAME_GAP = 0.02
_SAME_AT = 3
_VISIBLE = 1e-6


class Slopes(NamedTuple):
    """What was measured along some lines: one number for each."""

    slope: np.ndarray  # NaN if none of the steps gives one
    error: np.ndarray  # how far it may be off
    left: np.ndarray  # the slopes of the two sides, where `kink`
    right: np.ndarray
    kink: np.ndarray

    @property
    def slack(self) -> np.ndarray:
        """How far a right claim may be from the slope: `error` is an estimate, and may be low itself."""
        return 4 * self.error


def from_values(steps: Any, plus: Any, minus: Any, noise: np.ndarray, rounding: np.ndarray) -> Slopes:
    """The slopes of some lines.

    Args:
      steps: a row for each line, the largest step first.
      plus, minus: f(h) − f(0) and f(−h) − f(0) for each step h.
      noise: for each line, how much its values are rounded.
      rounding: for each line, how much its argument is rounded, in units of its steps.
    """
    lines = zip(steps, plus, minus, noise, rounding, strict=True)
    found = [_of_one_line(*line) for line in lines]
    return Slopes(*(np.asarray([one[k] for one in found]) for k in range(len(Slopes._fields))))


def _of_one_line(h: np.ndarray, plus: np.ndarray, minus: np.ndarray, noise: float, rounding: float) -> tuple:
    """The fields of `Slopes` for one line."""
    with np.errstate(all="ignore"):
        right, left = plus / h, -minus / h
        on_both_sides = np.isfinite(plus) & np.isfinite(minus)
        if on_both_sides[len(h) // 2 :].any():
            slope, error = _limit(h, (left + right) / 2, 2, noise, rounding)
        else:  # at the edge of a domain one side has no values
            one_sided = [_limit(h, side, 1, noise, rounding) for side in (right, left)]
            slope, error = min(one_sided, key=lambda found: found[1])
        kink, k = _kink(h, left, right, noise)
    return slope, error, left[k], right[k], kink


def _limit(h: np.ndarray, quotients: np.ndarray, order: int, noise: float, rounding: float) -> tuple[float, float]:
    """The limit of the quotients for h → 0, and its uncertainty. Curvature makes a quotient off by O(h^order)."""
    ratio = (h[:-1] / h[1:]) ** order
    estimates = (ratio * quotients[1:] - quotients[:-1]) / (ratio - 1)
    # The rounding of x moves f by as much times the slope.
    rounded = _ULPS * (noise / h + rounding * np.abs(quotients) / h)
    errors = np.abs(estimates[:-1] - estimates[1:]) + rounded[1:-1]
    above_roundings = rounded[1:] < _ABOVE_ROUNDINGS * np.abs(estimates)
    begin = 0
    while True:
        best = _most_certain(estimates, errors, begin)
        if best is None:
            return np.nan, np.inf
        slope, error = float(estimates[best]), float(errors[best])
        refuting = above_roundings & (np.abs(estimates) > _STEEPER * (abs(slope) + error))
        finer = [k for k in range(best + 1, len(estimates)) if refuting[k]]
        if not finer:
            return slope, error
        if finer[-1] == len(estimates) - 1:  # the slope still grows at the finest step
            return slope, np.inf
        begin = finer[0]


def _most_certain(estimates: np.ndarray, errors: np.ndarray, begin: int) -> int | None:
    """The index of the estimate with the smallest error from `begin` on, until noise grows. None if none is finite."""
    best, smallest = None, np.inf
    for k in range(begin, len(errors)):
        if errors[k] < smallest:
            best, smallest = k, errors[k]
        elif best is not None and smallest <= _SETTLED * abs(estimates[best]) and errors[k] > _NOISY * smallest:
            break
    return best


def _kink(h: np.ndarray, left: np.ndarray, right: np.ndarray, noise: float) -> tuple[bool, int]:
    """Whether the sides differ by the same at the three finest steps above the noise, and the finest of these steps."""
    gap = (right - left) / 2
    steepest = np.maximum(np.abs(left), np.abs(right))
    above_noise = _ULPS * noise / h < _SAME_GAP * np.abs(gap)
    trusted = np.isfinite(gap) & above_noise & (np.abs(gap) > _VISIBLE * steepest)
    finest = np.flatnonzero(trusted)[-_SAME_AT:]
    consecutive = len(finest) == _SAME_AT and np.ptp(finest) == _SAME_AT - 1
    if not consecutive:
        return False, -1
    middle = gap[finest[1]]
    same = np.abs(gap[finest] - middle) <= _SAME_GAP * abs(middle)
    return bool(same.all()), int(finest[-1])
