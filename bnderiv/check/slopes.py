"""Finite differences of a function along lines, with steps of many sizes: the slope, its uncertainty, and kinks.

Fourteen steps, from a sixteenth of the array down to far below the element itself, serve a logarithm at 1e-6 as well as
a square at 1e10, and a function that rounds to float32 inside as well as one that does not: of the estimates, the one
with the smallest uncertainty is taken. For a smooth function the two sides agree better with each smaller step. At a
kink they differ by the same at every step; in noise they differ the more, the smaller the step.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import derivatives, numbers

LEVELS = 14
_TOP, _BELOW, _SMALLEST = 2.0**-4, 2.0**-16, 1e-12
_CHUNK = 16  # lines in one call, so that one program serves every argument


class Slopes(NamedTuple):
    """One number for each line."""

    slope: np.ndarray  # NaN if none of the steps gives one
    error: np.ndarray  # how far it may be off
    left: np.ndarray  # the slopes of the two sides, where `kink`
    right: np.ndarray
    kink: np.ndarray


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
        self._all = derivatives.quick_jit(functools.partial(_all, self._value))

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
        bottom = np.where((own == 0) | (own > size / 16), size * 2.0**-12, np.maximum(own, _SMALLEST * size)) * _BELOW
        steps = size * _TOP * (bottom / (size * _TOP))[:, None] ** (np.arange(LEVELS) / (LEVELS - 1))
        everything = [[line if k == i else np.zeros(np.shape(f)) for k, f in enumerate(self.floats)] for line in lines]
        begin = [
            [numbers.wide(f) if k != i or starts is None else starts[j] for k, f in enumerate(self.floats)]
            for j in range(len(lines))
        ]
        return self._measured(everything, begin, steps, np.where(own == 0, size * _SMALLEST, own))

    def across(self, directions: Sequence[Sequence[np.ndarray]], floats: Any) -> Slopes:
        """The slopes of lines in all arguments at once, through `floats`."""
        lines = [list(direction) for direction in directions]
        steps = np.tile(_TOP * 2.0 ** (-24 * np.arange(LEVELS) / (LEVELS - 1)), (len(lines), 1))
        return self._measured(lines, [[numbers.wide(f) for f in floats]] * len(lines), steps, np.ones(len(lines)))

    def _measured(self, lines: Any, starts: Any, steps: np.ndarray, sizes: np.ndarray) -> Slopes:
        """`sizes`: of what each line moves, in units of its steps."""
        with jax.enable_x64(True) if self.double else contextlib.nullcontext():
            values, weights = self._values(lines, starts, np.concatenate([steps, -steps], 1))
            moved = weights.max(1, initial=0.0)
            # Where nothing moves, f may be constant, or all its outputs may move by less than they are rounded to; or
            # what moves is NaN, which tells nothing.
            nothing = np.inf if self.undefined else self.weight
            moves = (np.nan_to_num(values) != 0).any(1)
            moved = np.maximum(np.where(moved == 0, np.where(moves, self.weight, nothing), moved), self.terms)
        plus, minus = values[:, :LEVELS], values[:, LEVELS:]
        each = zip(steps, plus, minus, self.ulp * moved, self.ulp * sizes, strict=True)
        found = [_slope(*line) for line in each]
        columns = zip(*found, strict=True) if found else ([],) * 5
        return Slopes(*(np.asarray(column) for column in columns))

    @functools.cached_property
    def undefined(self) -> bool:
        """Whether an output is NaN at the point."""
        return any(bool(np.isnan(numbers.wide(o)).any()) for o in self._here)

    @functools.cached_property
    def _here(self) -> Any:
        return derivatives.Program(self._value)(self.floats)

    @functools.cached_property
    def weight(self) -> float:
        """The magnitude of the roundings of all outputs, which add up like a random walk."""
        squares = [
            (numbers.largest(c) * np.sqrt(np.size(c)) * numbers.largest(o)) ** 2
            for c, o in zip(self.cotangent, self._here, strict=True)
        ]
        return float(np.sqrt(sum(squares)))

    def _values(self, lines: Any, starts: Any, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, weights = np.zeros(steps.shape), np.zeros(steps.shape)
        dtypes = [f.dtype for f in self.floats]
        real = jnp.float64 if self.double else jnp.float32
        for begin in range(0, len(lines), _CHUNK):
            some = range(begin, min(begin + _CHUNK, len(lines)))
            padded = [*some, *[begin] * (_CHUNK - len(some))]

            def stacked(arrays: Any, padded: Any = padded) -> tuple:
                return tuple(
                    np.stack([np.asarray(arrays[j][k]) for j in padded]).astype(dtype) for k, dtype in enumerate(dtypes)
                )

            data = self.cotangent, stacked(starts), stacked(lines), steps[padded].astype(real)
            try:
                result = self._all(*data)
            except Exception:  # it cannot be traced
                result = self._eagerly(some, *data)
            for array, part in zip((values, weights), result, strict=True):
                array[some.start : some.stop] = np.asarray(part)[: len(some)]
        return values, weights

    def _eagerly(self, some: Any, cotangent: Any, starts: Any, lines: Any, steps: Any) -> Any:
        rows = []
        for j in range(len(some)):
            start, line = (tuple(jnp.asarray(a[j]) for a in arrays) for arrays in (starts, lines))
            here = self._value(start)
            rows.append([_moved(self._value, cotangent, start, here, line, jnp.asarray(h)) for h in steps[j]])
        return [[[float(pair[k]) for pair in row] for row in rows] for k in (0, 1)]


def _all(f: Callable, cotangent: Any, starts: Any, lines: Any, steps: Any) -> Any:
    def along(data: Any) -> Any:
        start, line, h = data
        here = f(start)
        return jax.lax.map(lambda step: _moved(f, cotangent, start, here, line, step), h)

    return jax.lax.map(along, (starts, lines, steps))


def _moved(f: Callable, cotangent: Any, start: Any, here: Any, line: Any, step: Any) -> Any:
    """⟨cotangent, f(start + step·line) − here⟩, where here = f(start), and the magnitude of the outputs that moved.

    Outputs are subtracted before they are summed, which cancels less. A small output may be a difference of larger
    numbers, so every output that moves counts as the largest.
    """
    there = f(tuple((s + step.astype(v.dtype) * v).astype(s.dtype) for s, v in zip(start, line, strict=True)))
    total, squares = jnp.zeros((), step.dtype), jnp.zeros((), step.dtype)
    for c, o, t in zip(cotangent, here, there, strict=True):
        same = (o == t) | (jnp.isnan(o) & jnp.isnan(t))
        total += jnp.where(same, 0, jnp.real(c * (t - o).astype(c.dtype))).astype(step.dtype).sum()
        size = jnp.where(jnp.isfinite(o), jnp.abs(o), 0).max(initial=0).astype(step.dtype)
        squares += (jnp.where(same, 0, jnp.abs(c)).astype(step.dtype) ** 2).sum() * size**2
        squares += jnp.where((jnp.isnan(o) & ~jnp.isnan(t)).any(), jnp.inf, 0)  # there is no value to start from
    known = jnp.stack([jnp.isfinite(o).any() for o in here]).any()  # ∞ − ∞ says nothing
    return jnp.where(known, total, jnp.nan), jnp.sqrt(squares)


def _slope(h: np.ndarray, plus: np.ndarray, minus: np.ndarray, noise: float, rounding: float) -> tuple:
    """From the values at the steps ±h, the largest first, with this `noise` in each and this `rounding` of x."""
    with np.errstate(all="ignore"):
        right, left = plus / h, -minus / h
        both = np.isfinite(plus) & np.isfinite(minus)
        sides = [(left + right) / 2] if both[LEVELS // 2 :].any() else [right, left]  # at the edge of a domain
        slope, error = min(
            (_extrapolated(h, s, 1 if len(sides) > 1 else 2, noise, rounding) for s in sides), key=lambda x: x[1]
        )
        kink, k = _kink(h, left, right, noise)
    return slope, error, left[k], right[k], kink


def _extrapolated(h: np.ndarray, a: np.ndarray, order: int, noise: float, rounding: float) -> tuple[float, float]:
    """The limit of a(h) for h → 0 where a(h) = a(0) + O(h^order), and its uncertainty (Richardson)."""
    ratio = (h[:-1] / h[1:]) ** order
    better = (ratio * a[1:] - a[:-1]) / (ratio - 1)
    # The rounding of x moves f by as much times the slope.
    rounded = 4 * (noise / h + rounding * np.abs(a) / h)
    errors = np.abs(better[:-1] - better[1:]) + rounded[1:-1]
    begin = 0
    while True:
        slope, error = np.nan, np.inf
        for k in range(begin, len(errors)):
            if errors[k] < error:
                slope, error, at = better[k], errors[k], k
            elif error <= 1e-4 * abs(slope) and errors[k] > 1e3 * error:  # the noise grows, until nothing moves at all
                break
        if not error < np.inf:
            return float(slope), float(error)
        # Beside a pole the coarse steps agree among themselves. Much steeper fine steps, above the noise, refute them.
        steeper = np.flatnonzero((rounded[1:] < 1e-2 * np.abs(better)) & (np.abs(better) > 2 * (abs(slope) + error)))
        steeper = steeper[steeper > at]
        if not len(steeper):
            return float(slope), float(error)
        if steeper[-1] == len(errors):  # the slope still grows at the finest step
            return float(slope), np.inf
        begin = int(steeper[0])


def _kink(h: np.ndarray, left: np.ndarray, right: np.ndarray, noise: float) -> tuple[bool, int]:
    """Whether the two sides differ by the same amount at the three finest steps above the noise; the finest of them."""
    gap = (right - left) / 2
    steepest = np.maximum(np.abs(left), np.abs(right))
    trusted = np.isfinite(gap) & (4 * noise / h < 0.02 * np.abs(gap)) & (np.abs(gap) > 1e-6 * steepest)
    finest = np.flatnonzero(trusted)[-3:]
    if len(finest) < 3 or np.ptp(finest) != 2:
        return False, -1
    middle = gap[finest[1]]
    return bool((np.abs(gap[finest] - middle) <= 0.02 * abs(middle)).all()), int(finest[-1])
