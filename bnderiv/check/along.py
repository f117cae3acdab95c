"""Evaluates a function at many steps along many lines: all in one compiled program, or eager if it cannot be traced."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import programs

_CHUNK = 16  # lines in one call, so that one program serves every argument


class Along:
    """How far a function moves with each step along each line.

    Args:
      f: floats ↦ flat tuple of outputs.
      cotangent: the weights of the outputs in their sum.
      dtypes: of the floats.
      double: whether steps are in float64.
    """

    def __init__(self, f: Callable, cotangent: Any, dtypes: Sequence[Any], double: bool):
        self._f, self._cotangent, self._dtypes = f, cotangent, dtypes
        self._real = jnp.float64 if double else jnp.float32
        self._program = programs.quick_jit(functools.partial(_moves, f))

    def __call__(self, starts: Any, lines: Any, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two results of `_move`, each with a row for each line and a column for each of its steps.

        Args:
          starts, lines: for each line, an array for each argument.
          steps: a row for each line.
        """
        moves, outputs = np.zeros(steps.shape), np.zeros(steps.shape)
        for begin in range(0, len(lines), _CHUNK):
            some = list(range(begin, min(begin + _CHUNK, len(lines))))
            padded = [*some, *[begin] * (_CHUNK - len(some))]
            data = self._stacked(starts, padded), self._stacked(lines, padded), steps[padded].astype(self._real)
            try:
                result = self._program(self._cotangent, *data)
            except Exception:  # it cannot be traced
                result = self._eagerly(len(some), *data)
            for array, part in zip((moves, outputs), result, strict=True):
                array[some] = np.asarray(part)[: len(some)]
        return moves, outputs

    def _stacked(self, arrays: Any, chosen: Sequence[int]) -> tuple:
        """For each argument, the arrays of the chosen lines as one."""
        return tuple(
            np.stack([np.asarray(arrays[j][k]) for j in chosen]).astype(dtype) for k, dtype in enumerate(self._dtypes)
        )

    def _eagerly(self, count: int, starts: Any, lines: Any, steps: Any) -> Any:
        rows = []
        for j in range(count):
            start, line = (tuple(jnp.asarray(a[j]) for a in arrays) for arrays in (starts, lines))
            here = self._f(start)
            rows.append([_move(self._f, self._cotangent, start, here, line, jnp.asarray(h)) for h in steps[j]])
        return [[[float(pair[k]) for pair in row] for row in rows] for k in (0, 1)]


def _moves(f: Callable, cotangent: Any, starts: Any, lines: Any, steps: Any) -> Any:
    def along(data: Any) -> Any:
        start, line, h = data
        here = f(start)
        return jax.lax.map(lambda step: _move(f, cotangent, start, here, line, step), h)

    return jax.lax.map(along, (starts, lines, steps))


def _move(f: Callable, cotangent: Any, start: Any, here: Any, line: Any, step: Any) -> Any:
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
