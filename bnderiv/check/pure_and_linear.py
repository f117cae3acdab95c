"""The modes that need no truth: equal calls return equal bits, and a gradient is linear in its cotangent."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import derivatives, numbers
from bnderiv.check.numbers import wide
from bnderiv.check.point import Point, element
from bnderiv.check.report import FAIL, NOT_AVAILABLE, OK, Row


def determinism(at: Point) -> Iterator[Row]:
    """Eager, so that every call reads Python state again."""
    value, pull = jax.vjp(lambda *floats: at.h(floats, at.carried), *at.floats)
    before = pull(at.cotangent)
    elsewhere = at.moved(11)
    at.h(elsewhere, at.carried)
    derivatives.pull(at.h, at.draw(at.value, 14), elsewhere, at.carried)
    after = pull(at.cotangent)
    again = derivatives.pull(at.h, at.cotangent, at.floats, at.carried)
    tolerance = at.tolerances.get("determinism", 0.0)
    check = "determinism"
    yield from at.rows("determinism", f"{check}: value", at.inexact_names, again[0], value, tolerance)
    for what, other in (("called again", again[1]), ("after a call elsewhere", after)):
        yield from at.rows("determinism", f"{check}: {what}", at.names, other, before, tolerance)


def linearity(at: Point) -> Iterator[Row]:
    _, pull = jax.vjp(lambda *floats: at.h(floats, at.carried), *at.floats)
    zero = tuple(jnp.zeros_like(c) for c in at.cotangent)
    yield from _exactly_zero(at, "linearity: zero", pull(zero))
    tolerance = at.tolerance("linearity", numbers.SAME)
    other = at.draw(at.value, 4)
    one, two = pull(at.cotangent), pull(other)
    scaled = pull(tuple(c * jnp.asarray(-3, c.dtype) for c in at.cotangent))
    expected = [-3 * wide(g) for g in one]
    yield from at.rows("linearity", "linearity: scaled by -3", at.names, scaled, expected, tolerance, gradient=True)
    added = pull(tuple(a + b for a, b in zip(at.cotangent, other, strict=True)))
    expected = [wide(a) + wide(b) for a, b in zip(one, two, strict=True)]
    yield from at.rows("linearity", "linearity: sum of two", at.names, added, expected, tolerance, gradient=True)
    for exponent in (1, -1):
        yield from _extreme_zero(at, zero, exponent)


def _exactly_zero(
    at: Point, check: str, gradient: Sequence[Any], natural: Sequence[bool] | None = None
) -> Iterator[Row]:
    """`natural`: for each gradient, whether autodiff of the plain function is not zero there either."""
    for i, (name, g) in enumerate(zip(at.names, gradient, strict=True)):
        error, index = numbers.distance(g, np.zeros(g.shape), 1.0)
        if error and natural is not None and natural[i]:
            note = "not zero, as in plain autodiff (0 · ∞)"
            yield Row("linearity", check, name, NOT_AVAILABLE, note=note)
            continue
        note = f"a zero cotangent gives {element(g, index)}" if error else ""
        yield Row("linearity", check, name, FAIL if error else OK, error, 0.0, index, note)


def _extreme_zero(at: Point, zero: tuple, exponent: int) -> Iterator[Row]:
    """A zero cotangent at arguments scaled by about the root of the dtype's largest (smallest) number."""

    def extreme(a: jax.Array) -> jax.Array:
        power = exponent * (jnp.finfo(a.dtype).maxexp // 2 - 4)
        return a * jnp.asarray(2.0**power, a.dtype)

    check = f"linearity: zero, arguments {'huge' if exponent > 0 else 'tiny'}"
    floats = tuple(extreme(a) for a in at.floats)
    out, gradient = derivatives.pull(at.h, zero, floats, at.carried)
    if at.r is not None:
        plain = at.compiled_reference(zero, floats, at.carried)[1]
        natural = [not bool(np.all(wide(g) == 0)) for g in plain]
    else:
        finite = all(bool(np.isfinite(wide(o)).all()) for o in out)
        natural = [not finite] * len(at.floats)
    yield from _exactly_zero(at, check, gradient, natural)
