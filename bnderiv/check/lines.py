"""Lines through a point, and the slopes of a function along them.

A line has a direction: an array for each argument, which says how far it moves in one step of size 1. `Lines` chooses
fourteen steps for each line. `increments.py` evaluates the function there, `slopes.py` makes slopes of the values.

The steps go from a sixteenth of the array down to far below the element itself. So they serve a logarithm at 1e-6 as
well as a square at 1e10, and a function that rounds to float32 inside as well as one that does not.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bnderiv.check import numbers, programs, slopes
from bnderiv.check.increments import Increments
from bnderiv.check.slopes import Slopes

_LEVELS = 14
_LARGEST_STEP = 2.0**-4  # relative to the array
_SMALLEST_STEP = 2.0**-16  # relative to the element
_SMALLEST = 1e-12  # relative to the array: an element below this counts as this large
# The size of an element much smaller than the array is a scale on which f may change. An element of the array's own
# size, or of size 0, names no such scale: its steps go down as if it were of this size, relative to the array.
_LARGE, _NO_SCALE = 2.0**-4, 2.0**-12


class Lines:
    """⟨cotangent, function⟩ along lines through `floats`.

    Args:
      function: (floats, carried) ↦ flat tuple of outputs.
      floats, carried, cotangent: concrete arrays, in float64 if `double`.
      ulp: what the function rounds to: that of the narrowest dtype inside.

    Attributes:
      terms: the magnitude of terms that cancel inside the function, if larger than its outputs.
    """

    def __init__(self, function: Callable, floats: Any, carried: Any, cotangent: Any, ulp: float, double: bool):
        self.floats, self._cotangent, self._ulp, self._double = floats, cotangent, ulp, double
        self.terms = 0.0
        self._value = lambda floats: function(floats, carried)
        self._increments = Increments(self._value, cotangent, [f.dtype for f in floats], double)

    def of_elements(self, i: int, elements: Sequence[int]) -> tuple[list[np.ndarray], Slopes]:
        """Unit directions of elements of argument `i` (two for a complex one), and the slopes in them."""
        x = numbers.wide(self.floats[i])
        directions, sizes = [], []
        for j in elements:
            for unit in (1, 1j) if np.iscomplexobj(x) else (1,):
                direction = np.zeros(x.size, x.dtype)
                direction[j] = unit
                directions.append(direction.reshape(x.shape))
                sizes.append(abs(x.ravel()[j]))
        return directions, self._of_argument(i, directions, np.asarray(sizes))

    def of_directions(self, i: int, directions: Sequence[np.ndarray], starts: Any = None) -> Slopes:
        """The slopes in directions of argument `i`. `starts` has a start for each; by default it is the point."""
        sizes = np.full(len(directions), numbers.magnitude(self.floats[i]))
        return self._of_argument(i, directions, sizes, starts)

    def across_arguments(self, directions: Sequence[Sequence[np.ndarray]], floats: Any) -> Slopes:
        """The slopes in directions of all arguments at once, from `floats`. A step of 1 is about the size of each."""
        count = len(directions)
        point = [numbers.wide(f) for f in floats]
        return self._measured(directions, [point] * count, _steps(1.0, np.zeros(count)), np.ones(count))

    def _of_argument(self, i: int, directions: Sequence[np.ndarray], sizes: np.ndarray, starts: Any = None) -> Slopes:
        """The slopes in directions of argument `i` that move elements of these sizes."""
        magnitude = numbers.magnitude(self.floats[i])
        point = [numbers.wide(f) for f in self.floats]
        nothing = [np.zeros(f.shape) for f in point]
        begins = [point] * len(directions) if starts is None else [_with(point, i, start) for start in starts]
        in_all = [_with(nothing, i, direction) for direction in directions]
        moved = np.where(sizes == 0, magnitude * _SMALLEST, sizes)
        return self._measured(in_all, begins, _steps(magnitude, sizes), moved)

    def _measured(self, directions: Any, starts: Any, steps: np.ndarray, sizes: np.ndarray) -> Slopes:
        """`sizes`: of what moves in each direction, in units of the steps."""
        with numbers.double_precision(self._double):
            increments, moving = self._increments(starts, directions, np.concatenate([steps, -steps], 1))
            rounded = self._rounded(increments, moving)
        plus, minus = increments[:, :_LEVELS], increments[:, _LEVELS:]
        return slopes.from_values(steps, plus, minus, self._ulp * rounded, self._ulp * sizes)

    def _rounded(self, increments: np.ndarray, moving: np.ndarray) -> np.ndarray:
        """For each line, the magnitude of what is rounded: the outputs that move, or larger terms that cancel in them.

        Where no output moves, f may be constant, or all its outputs may move by less than they are rounded to. Or what
        moves is NaN, which tells nothing.
        """
        largest = moving.max(1, initial=0.0)
        still = ~(np.nan_to_num(increments) != 0).any(1)
        if_none_moves = np.where(still & self.undefined, np.inf, self.weight)
        return np.maximum(np.where(largest == 0, if_none_moves, largest), self.terms)

    @cached_property
    def undefined(self) -> bool:
        """Whether an output is NaN at the point."""
        return any(bool(np.isnan(numbers.wide(o)).any()) for o in self._here)

    @cached_property
    def weight(self) -> float:
        """The magnitude of all outputs in ⟨cotangent, function⟩. Their roundings add up like a random walk."""
        squares = [
            (numbers.largest(c) * np.sqrt(np.size(c)) * numbers.largest(o)) ** 2
            for c, o in zip(self._cotangent, self._here, strict=True)
        ]
        return float(np.sqrt(sum(squares)))

    @cached_property
    def _here(self) -> Any:
        with numbers.double_precision(self._double):  # whatever the caller's is
            return programs.Program(self._value)(self.floats)


def _steps(magnitude: float, sizes: np.ndarray) -> np.ndarray:
    """A row of steps for an element of each size, in an array of this magnitude: the largest first, in equal ratios."""
    no_scale = (sizes == 0) | (sizes > _LARGE * magnitude)
    scale = np.where(no_scale, _NO_SCALE * magnitude, np.maximum(sizes, _SMALLEST * magnitude))
    first, last = magnitude * _LARGEST_STEP, scale * _SMALLEST_STEP
    return first * (last / first)[:, None] ** (np.arange(_LEVELS) / (_LEVELS - 1))


def _with(arrays: Sequence[Any], i: int, array: Any) -> list[Any]:
    return [*arrays[:i], array, *arrays[i + 1 :]]
