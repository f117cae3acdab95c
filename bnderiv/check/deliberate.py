"""Rules that return no gradient on purpose: names what a failed rule returns, if it is one of a few kinds."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from bnderiv.check import numbers
from bnderiv.check.numbers import wide
from bnderiv.check.point import Point, join
from bnderiv.check.report import FAIL, OK, Row

EXPECTED = ("scaled", "straight-through", "clipped")
# The modes that such a rule fails, and those that show what it returns.
_FAILED = ("gradient", "float64", "finite_differences", "second_order", "jvp", "linearity", "determinism", "subsets")
_TELLING = ("gradient", "finite_differences", "linearity")
_SAME = 1e-3


def excused(at: Point, rows: Sequence[Row], expected: str | None) -> list[Row]:
    """The rows, with a deliberate non-gradient named. It passes only if it is what the user expects."""
    failed = [row for row in rows if row.verdict == FAIL and row.mode in _FAILED]
    telling = [row for row in failed if row.mode in _TELLING]
    if expected is None and not telling:
        return list(rows)
    kind, sentence = _recognized_or_none(at) or ("", "")
    if expected is None:
        if not kind:
            return list(rows)
        hint = f'{sentence}: if that is meant, say expected="{kind}"'
        return [replace(row, note=join(row.note, hint)) if row is telling[0] else row for row in rows]
    if kind != expected:
        found = f"it is {kind!r}: {sentence}" if kind else "it is not that"
        return [*rows, Row("gradient", "expected", verdict=FAIL, note=f"expected {expected!r}, but {found}")]
    passed = [replace(row, verdict=OK, note=f"as expected: {kind}") if row in failed else row for row in rows]
    return [*passed, Row("gradient", "expected", verdict=OK, note=sentence)]


def _recognized_or_none(at: Point) -> tuple[str, str] | None:
    try:
        return _recognized(at)
    except Exception:
        return None


def _recognized(at: Point) -> tuple[str, str] | None:
    """The kind, of `EXPECTED`, and a sentence; None if the gradient is of no such kind."""
    truth = _truth(at)
    if truth is None:
        return None
    gradient = [wide(g) for g in at.gradient]
    if not all(np.isfinite(a).all() for a in (*gradient, *truth)):
        return None
    if not _is_linear(at):
        if _alike(_of_small_cotangent(at), truth):
            return "clipped", "right for small cotangents, smaller for large ones: clipped"
        return None
    if not any(t.any() for t in truth):
        if any(np.array_equal(g, c) for g in at.gradient for c in at.cotangent if g.shape == c.shape):
            return "straight-through", "f is locally constant, and the rule passes its cotangent on"
        return None
    factor = _dot(truth, gradient) / _dot(truth, truth)
    scaled = factor and abs(factor - 1) > _SAME and _alike(gradient, [factor * t for t in truth])
    if scaled and sum(t.size for t in truth) > 2:
        said = "the gradient reversed" if abs(factor + 1) < _SAME else f"{factor:.6g} times the gradient"
        return "scaled", f"{said}, in every element"
    return None


def _truth(at: Point) -> list[np.ndarray] | None:
    """The gradient by the reference or by differences; None if some argument has neither."""
    if at.r is not None:
        return [wide(t) for t in at.truth.derivative.arrays]
    if len(at.differenced) < len(at.floats):
        return None
    return [at.differenced[i].reshape(a.shape) for i, a in enumerate(at.floats)]


def _is_linear(at: Point) -> bool:
    """Whether the gradient scales with its cotangent, twofold and far."""
    far = numbers.far([c.dtype for c in (*at.cotangent, *at.gradient)])
    for factor in (2.0, 2.0**far):
        scaled = at.pull_back([c * jnp.asarray(factor, c.dtype) for c in at.cotangent])
        if not _alike([wide(g) for g in scaled], [factor * wide(g) for g in at.gradient]):
            return False
    return True


def _of_small_cotangent(at: Point) -> list[np.ndarray]:
    """The gradient for a small multiple of the cotangent, over that multiple."""
    small = 2.0**-30 if at.in_double else 2.0**-12
    return [wide(g) / small for g in at.pull_back([c * jnp.asarray(small, c.dtype) for c in at.cotangent])]


def _alike(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    size = max(map(numbers.largest, others), default=0.0) or 1.0
    return all(numbers.distance(a, b)[0] <= _SAME * size for a, b in zip(some, others, strict=True))


def _dot(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    return sum(float(np.real(np.vdot(a, b))) for a, b in zip(some, others, strict=True))
