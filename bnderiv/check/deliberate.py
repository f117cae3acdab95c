"""Gradients that are none on purpose: names what a failed rule returns, if it is one of a few kinds."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from bnderiv.check import numbers
from bnderiv.check.numbers import wide
from bnderiv.check.point import Point, join
from bnderiv.check.report import FAIL, OK, Row

EXPECTED = ("scaled", "straight-through", "clipped")
_CONCERNED = ("gradient", "float64", "finite_differences", "second_order", "jvp", "linearity", "determinism", "subsets")
_TELLING = ("gradient", "finite_differences", "linearity")
_SAME = 1e-3


def recognized(at: Point) -> tuple[str, str] | None:
    """The kind, of `EXPECTED`, and a sentence; None if the gradient is of no such kind."""
    truth = _truth(at)
    if truth is None:
        return None
    mine = [wide(g) for g in at.gradient]
    if not all(np.isfinite(a).all() for a in (*mine, *truth)):
        return None
    if _linear(at):
        if not any(a.any() for a in truth):
            passed_on = any(np.array_equal(g, c) for g in at.gradient for c in at.cotangent if g.shape == c.shape)
            said = "f is locally constant, and the rule passes its cotangent on"
            return ("straight-through", said) if passed_on else None
        factor = sum(float(np.real(np.vdot(t, g))) for t, g in zip(truth, mine, strict=True)) / sum(
            float(np.real(np.vdot(t, t))) for t in truth
        )
        if (
            sum(a.size for a in truth) > 2
            and factor
            and abs(factor - 1) > _SAME
            and _alike(mine, [factor * t for t in truth])
        ):
            said = "the gradient reversed" if abs(factor + 1) < _SAME else f"{factor:.6g} times the gradient"
            return "scaled", f"{said}, in every element"
        return None
    power = 2.0**-30 if at.in_double else 2.0**-12
    small = tuple(c * jnp.asarray(power, c.dtype) for c in at.cotangent)
    near_zero = [wide(g) / power for g in at.compiled(small, at.floats, at.carried)[1]]
    if _alike(near_zero, truth):
        return "clipped", "right for small cotangents, smaller for large ones: clipped"
    return None


def excused(at: Point, rows: Sequence[Row], expected: str | None) -> list[Row]:
    """The rows, where a deliberate non-gradient is named. It passes only if it is what the user expects."""
    failed = [row for row in rows if row.verdict == FAIL and row.mode in _CONCERNED]
    if expected is None and not any(row.mode in _TELLING for row in failed):
        return list(rows)
    try:
        found = recognized(at)
    except Exception:
        found = None
    if expected is not None and (found is None or found[0] != expected):
        said = f"expected {expected!r}, but " + (f"it is {found[0]!r}: {found[1]}" if found else "it is not that")
        return [*rows, Row("gradient", "expected", verdict=FAIL, note=said)]
    if found is None:
        return list(rows)
    kind, sentence = found
    if expected is None:
        said = f'{sentence}: if that is meant, say expected="{kind}"'
        first = next(row for row in failed if row.mode in _TELLING)
        return [replace(row, note=join(row.note, said)) if row is first else row for row in rows]
    return [replace(row, verdict=OK, note=f"as expected: {kind}") if row in failed else row for row in rows] + [
        Row("gradient", "expected", verdict=OK, note=sentence)
    ]


def _truth(at: Point) -> list[np.ndarray] | None:
    if at.r is not None:
        return [wide(t) for t in at.truth.arrays[1]]
    if len(at.differenced) < len(at.floats):
        return None
    return [at.differenced[i].reshape(a.shape) for i, a in enumerate(at.floats)]


def _linear(at: Point) -> bool:
    far = numbers.far([c.dtype for c in (*at.cotangent, *at.gradient)])
    for factor in (2.0, 2.0**far):
        scaled = at.compiled(tuple(c * jnp.asarray(factor, c.dtype) for c in at.cotangent), at.floats, at.carried)[1]
        if not _alike([wide(g) for g in scaled], [factor * wide(g) for g in at.gradient]):
            return False
    return True


def _alike(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    size = max(map(numbers.largest, others), default=0.0) or 1.0
    return all(numbers.distance(a, b, size).error <= _SAME for a, b in zip(some, others, strict=True))
