"""The increments of a function along many lines: all in one compiled program, or eager if it cannot be traced."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import programs

_CHUNK = 16  # lines in one call, so that one program serves every argument


class Increments:
    """How far ⟨cotangent, f⟩ moves with each step along each line.

    Args:
      f: floats ↦ flat tuple of outputs.
      cotangent: the weights of the outputs in their sum.
      dtypes: of the floats.
      double: whether steps are in float64.
    """

    def __init__(self, f: Callable, cotangent: Any, dtypes: Sequence[Any], double: bool):
        self._f, self._cotangent, self._dtypes = f, cotangent, dtypes
        self._real = jnp.float64 if double else jnp.float32
        self._program = programs.quick_jit(functools.partial(_increments, f, jax.lax.map))

    def __call__(self, starts: Any, directions: Any, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two results of `_increment`, each with a row for each line and a column for each of its steps.

        Args:
          starts, directions: for each line, an array for each argument.
          steps: a row for each line.
        """
        increments, moving = np.zeros(steps.shape), np.zeros(steps.shape)
        for begin in range(0, len(steps), _CHUNK):
            some = slice(begin, begin + _CHUNK)
            increments[some], moving[some] = self._of_chunk(starts[some], directions[some], steps[some])
        return increments, moving

    def _of_chunk(self, starts: Any, directions: Any, steps: np.ndarray) -> list[np.ndarray]:
        count = len(steps)
        padded = [*range(count), *[0] * (_CHUNK - count)]
        data = self._stacked(starts, padded), self._stacked(directions, padded), steps[padded].astype(self._real)
        try:
            result = self._program(self._cotangent, *data)
        except Exception:  # it cannot be traced
            data = jax.tree.map(lambda a: a[:count], data)
            result = _increments(self._f, _eager_map, self._cotangent, *data)
        return [np.asarray(a)[:count] for a in result]

    def _stacked(self, arrays: Any, chosen: Sequence[int]) -> tuple:
        """For each argument, the arrays of the chosen lines as one."""
        columns = zip(*(arrays[j] for j in chosen), strict=True)
        return tuple(np.stack(c).astype(dtype) for c, dtype in zip(columns, self._dtypes, strict=True))


def _increments(f: Callable, loop: Callable, cotangent: Any, starts: Any, directions: Any, steps: Any) -> Any:
    """`_increment` for each line and step. `loop`: `jax.lax.map`, or what does the same eagerly."""

    def along(line: Any) -> Any:
        start, direction, h = line
        here = f(start)
        return loop(lambda step: _increment(f, cotangent, start, here, direction, step), h)

    return loop(along, (starts, directions, steps))


def _eager_map(function: Callable, arrays: Any) -> Any:
    count = len(jax.tree.leaves(arrays)[0])
    results = [function(jax.tree.map(lambda a, k=k: jnp.asarray(a[k]), arrays)) for k in range(count)]
    return jax.tree.map(lambda *r: np.stack(r), *results)


def _increment(f: Callable, cotangent: Any, start: Any, here: Any, direction: Any, step: Any) -> Any:
    """⟨cotangent, f(start + step·direction) − here⟩, where here = f(start), and the magnitude of the outputs that move.

    Outputs are subtracted before they are summed, which cancels less. A small output may be a difference of larger
    numbers, so every output that moves counts as the largest.
    """
    there = f(tuple((s + step.astype(v.dtype) * v).astype(s.dtype) for s, v in zip(start, direction, strict=True)))
    total, squares = jnp.zeros((), step.dtype), jnp.zeros((), step.dtype)
    for c, o, t in zip(cotangent, here, there, strict=True):
        same = (o == t) | (jnp.isnan(o) & jnp.isnan(t))
        total += jnp.where(same, 0, jnp.real(c * (t - o).astype(c.dtype))).astype(step.dtype).sum()
        size = jnp.where(jnp.isfinite(o), jnp.abs(o), 0).max(initial=0).astype(step.dtype)
        squares += (jnp.where(same, 0, jnp.abs(c)).astype(step.dtype) ** 2).sum() * size**2
        squares += jnp.where((jnp.isnan(o) & ~jnp.isnan(t)).any(), jnp.inf, 0)  # there is no value to start from
    known = jnp.stack([jnp.isfinite(o).any() for o in here]).any()  # ∞ − ∞ says nothing
    return jnp.where(known, total, jnp.nan), jnp.sqrt(squares)
