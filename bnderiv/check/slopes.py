"""The slope of a function along a line, and how certain it is, from its values at steps ±h of many sizes.

1. Each step gives a difference quotient. Large steps make it wrong by curvature, small steps by rounded values.
2. Richardson extrapolation of two neighboring quotients cancels the leading error of curvature, and is an estimate of
   the slope.
3. The uncertainty of an estimate is its distance from the next one, plus what roundings do to it. The estimate with the
   smallest uncertainty is taken.
4. Near a pole, the coarse steps may agree with each other and be wrong. Much steeper estimates at finer steps refute
   them, unless they are roundings.
5. At a kink the slopes of the two sides differ by the same at every step. For a smooth function the difference shrinks
   with the step; in noise it grows.

`lines.py` chooses the steps.
"""

from typing import Any, NamedTuple

import numpy as np

_ULPS = 4  # a value may be off by this many of its roundings, whose size is an estimate

# Noise: once an estimate is certain to _SETTLED and a later one is _NOISY times less certain, finer steps are left out.
# They only add roundings, until nothing moves at all: then all quotients are 0, and agree.
_SETTLED = 1e-4
_NOISY = 1e3

# A pole: a finer estimate is more than _STEEPER times what the best one allows. It is not noise: its roundings are
# below this part of it.
_STEEPER = 2
_ABOVE_ROUNDINGS = 1e-2

# A kink: the gap between the slopes of the two sides is the same within _SAME_GAP at the _SAME_AT finest steps where
# roundings are smaller than that. The gap must be more than _VISIBLE of the slopes.
_SAME_AT = 3
_SAME_GAP = 0.02
_VISIBLE = 1e-6

_BESIDE_A_SIDE = 1e-4  # how far outside the slopes of the two sides measuring may leave a claim, relative to the larger


class Slopes(NamedTuple):
    """What was measured along some lines: one number for each."""

    slope: np.ndarray  # NaN if no step gives one
    error: np.ndarray  # the uncertainty of the slope
    left: np.ndarray  # the slopes of the two sides, where `kink`
    right: np.ndarray
    kink: np.ndarray

    @property
    def slack(self) -> np.ndarray:
        """How far a right claim may be from the slope: `error` is an estimate, and may be low itself."""
        return 4 * self.error

    def between_sides(self, claims: np.ndarray) -> np.ndarray:
        """Whether there is a kink, and the claim lies between the slopes of its two sides."""
        low, high = np.minimum(self.left, self.right), np.maximum(self.left, self.right)
        slack = _BESIDE_A_SIDE * np.maximum(np.abs(low), np.abs(high))
        return self.kink & (low - slack <= claims) & (claims <= high + slack)


def from_values(steps: Any, plus: Any, minus: Any, f_error: np.ndarray, x_error: np.ndarray) -> Slopes:
    """The slopes of f along some lines.

    Args:
      steps: a row for each line, the largest step first.
      plus, minus: f(h) − f(0) and f(−h) − f(0) for each step h.
      f_error: for each line, the roundings of the values of f.
      x_error: for each line, the roundings of the arguments of f, in units of the steps.
    """
    lines = zip(steps, plus, minus, f_error, x_error, strict=True)
    found = [_of_one_line(*line) for line in lines]
    return Slopes(*(np.asarray([one[k] for one in found]) for k in range(len(Slopes._fields))))


def _of_one_line(h: np.ndarray, plus: np.ndarray, minus: np.ndarray, f_error: float, x_error: float) -> tuple:
    """The fields of `Slopes` for one line."""
    with np.errstate(all="ignore"):
        right, left = plus / h, -minus / h
        on_both_sides = np.isfinite(plus) & np.isfinite(minus)
        if on_both_sides[len(h) // 2 :].any():
            slope, error = _extrapolated(h, (left + right) / 2, 2, f_error, x_error)
        else:  # at the edge of a domain one side has no values
            one_sided = [_extrapolated(h, side, 1, f_error, x_error) for side in (right, left)]
            slope, error = min(one_sided, key=lambda found: found[1])
        kink, k = _kink(h, left, right, f_error)
    return slope, error, left[k], right[k], kink


def _extrapolated(
    h: np.ndarray, quotients: np.ndarray, order: int, f_error: float, x_error: float
) -> tuple[float, float]:
    """The limit of the quotients for h → 0, and its uncertainty. Curvature makes a quotient wrong by O(h^order)."""
    ratio = (h[:-1] / h[1:]) ** order
    estimates = (ratio * quotients[1:] - quotients[:-1]) / (ratio - 1)
    # The rounding of x moves f by as much times the slope.
    roundings = _ULPS * (f_error / h + x_error * np.abs(quotients) / h)
    errors = np.abs(estimates[:-1] - estimates[1:]) + roundings[1:-1]
    return _best(estimates, errors, roundings[1:] < _ABOVE_ROUNDINGS * np.abs(estimates))


def _best(estimates: np.ndarray, errors: np.ndarray, above_roundings: np.ndarray) -> tuple[float, float]:
    """The most certain estimate that no finer one refutes, and its uncertainty.

    `errors` has no entry for the last estimate, which has no next one.
    """
    k = _most_certain(estimates, errors)
    if k is None:
        return np.nan, np.inf
    slope, error = float(estimates[k]), float(errors[k])
    refutes = above_roundings & (np.abs(estimates) > _STEEPER * (abs(slope) + error))
    finer = np.flatnonzero(refutes[k + 1 :]) + k + 1
    if not len(finer):
        return slope, error
    if refutes[-1]:  # the slope still grows at the finest step
        return slope, np.inf
    return _best(estimates[finer[0] :], errors[finer[0] :], above_roundings[finer[0] :])


def _most_certain(estimates: np.ndarray, errors: np.ndarray) -> int | None:
    """The index of the estimate with the smallest error, before noise grows. None if no error is finite."""
    best, smallest = None, np.inf
    for k, error in enumerate(errors):
        if error < smallest:
            best, smallest = k, error
        elif best is not None and smallest <= _SETTLED * abs(estimates[best]) and error > _NOISY * smallest:
            break
    return best


def _kink(h: np.ndarray, left: np.ndarray, right: np.ndarray, f_error: float) -> tuple[bool, int]:
    """Whether the slopes of the two sides differ by the same at fine steps, and the index of the finest of these."""
    gap = (right - left) / 2
    steepest = np.maximum(np.abs(left), np.abs(right))
    above_roundings = _ULPS * f_error / h < _SAME_GAP * np.abs(gap)
    trusted = np.isfinite(gap) & above_roundings & (np.abs(gap) > _VISIBLE * steepest)
    finest = np.flatnonzero(trusted)[-_SAME_AT:]
    consecutive = len(finest) == _SAME_AT and np.ptp(finest) == _SAME_AT - 1
    if not consecutive:
        return False, -1
    middle = gap[finest[1]]
    same = np.abs(gap[finest] - middle) <= _SAME_GAP * abs(middle)
    return bool(same.all()), int(finest[-1])
