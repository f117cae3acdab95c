"""Lines through a point, and the slopes of a function along them.

A line is an array for each argument: how far it moves in one step of size 1. `Lines` chooses fourteen steps for each
line, evaluates the function there (`along.py`), and makes slopes of the values (`slopes.py`).

The steps go from a sixteenth of the array down to far below the element itself. So they serve a logarithm at 1e-6 as
well as a square at 1e10, and a function that rounds to float32 inside as well as one that does not.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from bnderiv.check import numbers, programs, slopes
from bnderiv.check.along import Along
from bnderiv.check.slopes import Slopes

_LEVELS = 14
_PARTS = np.arange(_LEVELS) / (_LEVELS - 1)  # from 0, the largest step, to 1, the smallest
_TOP = 2.0**-4  # the largest step, relative to the array
_BELOW = 2.0**-16  # the smallest step, relative to the element
_SMALLEST = 1e-12  # relative to the array: an element below this counts as this large
# The size of an element much smaller than the array is a scale on which f may change. An element of the array's own
# size, or of size 0, names no such scale: its steps go down as if it were of this size, relative to the array.
_LARGE, _NO_SCALE = 2.0**-4, 2.0**-12
_HALVINGS = 24  # from the largest step to the smallest, across all arguments: as for an element without a scale


class Lines:
    """⟨cotangent, function⟩ as a function of a step along a line through `floats`.

    Args:
      function: (floats, carried) ↦ flat tuple of outputs.
      floats, carried, cotangent: concrete arrays, in float64 if `double`.
      ulp: what the function rounds to: that of the narrowest dtype inside.
    """

    def __init__(self, function: Callable, floats: Any, carried: Any, cotangent: Any, ulp: float, double: bool):
        self.floats, self.carried, self.cotangent, self.ulp, self.double = floats, carried, cotangent, ulp, double
        self.terms = 0.0  # what cancels inside, if more than the outputs show
        self._value = lambda floats: function(floats, carried)
        self._along = Along(self._value, cotangent, [f.dtype for f in floats], double)

    def units(self, i: int, elements: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray]:
        """Unit lines of elements of argument `i` (two for a complex one), and the size of each element."""
        x = numbers.wide(self.floats[i])
        lines, own = [], []
        for j in elements:
            for unit in (1, 1j) if np.iscomplexobj(x) else (1,):
                line = np.zeros(x.size, x.dtype)
                line[j] = unit
                lines.append(line.reshape(x.shape))
                own.append(abs(x.ravel()[j]))
        return lines, np.asarray(own)

    def measure(self, i: int, lines: Sequence[np.ndarray], own: Any = None, starts: Any = None) -> Slopes:
        """The slopes of these lines in argument `i`, each through its own start, by default the point itself.

        `own` holds the size of what a line moves, if that is smaller than the array.
        """
        size = numbers.largest(self.floats[i]) or 1.0
        own = np.full(len(lines), size) if own is None else own
        nothing = [np.zeros(np.shape(f)) for f in self.floats]
        point = [numbers.wide(f) for f in self.floats]
        in_all = [_with(nothing, i, line) for line in lines]
        begins = [point if starts is None else _with(point, i, starts[j]) for j in range(len(lines))]
        return self._measured(in_all, begins, _steps(size, own), np.where(own == 0, size * _SMALLEST, own))

    def across(self, directions: Sequence[Sequence[np.ndarray]], floats: Any) -> Slopes:
        """The slopes of lines in all arguments at once, through `floats`. A step of 1 moves each by about its size."""
        count = len(directions)
        steps = np.tile(_TOP * 2.0 ** (-_HALVINGS * np.arange(_LEVELS) / (_LEVELS - 1)), (count, 1))
        point = [numbers.wide(f) for f in floats]
        return self._measured([list(d) for d in directions], [point] * count, steps, np.ones(count))

    def _measured(self, lines: Any, starts: Any, steps: np.ndarray, sizes: np.ndarray) -> Slopes:
        """`sizes`: of what each line moves, in units of its steps."""
        with self._precision():
            moves, outputs = self._along(starts, lines, np.concatenate([steps, -steps], 1))
            rounded = self._rounded(moves, outputs)
        plus, minus = moves[:, :_LEVELS], moves[:, _LEVELS:]
        return slopes.from_values(steps, plus, minus, self.ulp * rounded, self.ulp * sizes)

    def _rounded(self, moves: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """For each line, the magnitude of what is rounded: the outputs that move, or larger terms that cancel in them.

        Where no output moves, f may be constant, or all its outputs may move by less than they are rounded to. Or what
        moves is NaN, which tells nothing.
        """
        moving = outputs.max(1, initial=0.0)
        still = ~(np.nan_to_num(moves) != 0).any(1)
        otherwise = np.where(still, np.inf if self.undefined else self.weight, self.weight)
        return np.maximum(np.where(moving == 0, otherwise, moving), self.terms)

    @cached_property
    def undefined(self) -> bool:
        """Whether an output is NaN at the point."""
        return any(bool(np.isnan(numbers.wide(o)).any()) for o in self._here)

    @cached_property
    def weight(self) -> float:
        """The magnitude of the roundings of all outputs, which add up like a random walk."""
        squares = [
            (numbers.largest(c) * np.sqrt(np.size(c)) * numbers.largest(o)) ** 2
            for c, o in zip(self.cotangent, self._here, strict=True)
        ]
        return float(np.sqrt(sum(squares)))

    @cached_property
    def _here(self) -> Any:
        with self._precision():
            return programs.Program(self._value)(self.floats)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """In which the function is evaluated, whatever the caller's is."""
        return jax.enable_x64(True) if self.double else contextlib.nullcontext()


def _steps(size: float, own: np.ndarray) -> np.ndarray:
    """A row of steps for each line, the largest first, in equal ratios. The array has this size, its elements `own`."""
    no_scale = (own == 0) | (own > _LARGE * size)
    top = size * _TOP
    bottom = np.where(no_scale, _NO_SCALE * size, np.maximum(own, _SMALLEST * size)) * _BELOW
    return top * (bottom / top)[:, None] ** _PARTS


def _with(arrays: Sequence[Any], i: int, array: Any) -> list[Any]:
    return [*arrays[:i], array, *arrays[i + 1 :]]
