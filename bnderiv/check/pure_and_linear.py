"""The modes that need no truth: a gradient is linear in its cotangent, and depends on nothing but the call."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import derivatives, judge, numbers
from bnderiv.check.another_point import elsewhere
from bnderiv.check.interpreter import without_rules
from bnderiv.check.jaxprs import converges, may_not_end, sees_symbolic_zeros
from bnderiv.check.numbers import wide
from bnderiv.check.point import Point
from bnderiv.check.report import FAIL, NOT_AVAILABLE, OK, Row, message

_PAIRS = 6  # so many arguments are differentiated in pairs, more only one by one


def determinism(at: Point) -> Iterator[Row]:
    """Eager, so that every call reads Python state again."""
    value, pull = derivatives.vjp(at.h, at.floats, at.carried)
    before = pull(at.cotangent)
    floats = at.moved(11)
    _, there = derivatives.pull(at.h, at.cotangent, floats, at.carried)
    after = pull(at.cotangent)
    again = derivatives.pull(at.h, at.cotangent, at.floats, at.carried)
    tolerance = at.tolerances.get("determinism", 0.0)
    check = "determinism"
    yield from judge.rows(at, "determinism", f"{check}: value", at.inexact_names, again[0], value, tolerance)
    for what, other in (("called again", again[1]), ("after a call elsewhere", after)):
        yield from judge.rows(at, "determinism", f"{check}: {what}", at.names, other, before, tolerance)
    yield from elsewhere(at, floats, there)


def linearity(at: Point) -> Iterator[Row]:
    """Scaling by −1 and powers of 2 is exact in binary arithmetic, so a linear gradient follows to the bit."""

    def pull(cotangent: Sequence[Any]) -> tuple:
        return at.compiled(tuple(cotangent), at.floats, at.carried)[1]

    # Cotangents are made by NumPy: there is nothing to compile.
    zero = tuple(np.zeros(c.shape, c.dtype) for c in at.cotangent)
    yield from _exactly_zero(at, "linearity: zero", pull(zero))
    tolerance = at.tolerance("linearity", numbers.SAME)
    one = pull(at.cotangent)
    # What clips or drops cotangents may do so far from 1 only.
    far = numbers.far([a.dtype for a in (*at.cotangent, *one)])
    nonlinear = False
    for factor, name in ((2, "2"), (-1, "-1"), (2.0**far, f"2^{far}"), (2.0**-far, f"2^-{far}")):
        if nonlinear:
            break
        scaled = pull([np.asarray(c) * np.asarray(factor, c.dtype) for c in at.cotangent])
        expected = [factor * wide(g) for g in one]
        valid = [np.isfinite(e) & np.isfinite(wide(s)) for e, s in zip(expected, scaled, strict=True)]
        expected = [np.where(v, e, wide(s)) for v, e, s in zip(valid, expected, scaled, strict=True)]
        rows = judge.rows(at, "linearity", f"linearity: times {name}", at.names, scaled, expected, tolerance)
        for row, s, e in zip(rows, scaled, expected, strict=True):
            if row.verdict == FAIL and factor not in (2, -1) and _converges(at):
                row = replace(row, verdict=NOT_AVAILABLE, note="a loop here ends at an absolute tolerance")
            elif row.verdict == OK and not _to_the_bit(s, e):
                row = replace(row, note="not to the bit")
            nonlinear = nonlinear or row.verdict == FAIL
            yield row
    a, b = (_on_a_grid(at.draw(at.value, seed)) for seed in (4, 5))
    ga, gb, gab = pull(a), pull(b), pull([x + y for x, y in zip(a, b, strict=True)])
    with np.errstate(all="ignore"):
        expected = [wide(x) + wide(y) for x, y in zip(ga, gb, strict=True)]
    expected = [np.where(np.isfinite(e), e, wide(g)) for e, g in zip(expected, gab, strict=True)]
    check = "linearity: sum of two"
    yield from judge.rows(at, "linearity", check, at.names, gab, expected, tolerance, roundings=lambda: at.roundings)
    for exponent in (1, -1):
        yield from _extreme_zero(at, zero, exponent)


def subsets(at: Point) -> Iterator[Row]:
    """A rule may be told which arguments are differentiated and which outputs are used. Its gradient may not change."""
    if not sees_symbolic_zeros(at.h, at.floats, at.carried):
        note = "no rule here is told which arguments are differentiated"
        yield Row("subsets", "subsets", verdict=NOT_AVAILABLE, note=note)
        return
    tolerance, count = at.tolerance("subsets", numbers.SAME), len(at.floats)
    sets: list[tuple[int, ...]] = [(i,) for i in range(count)] if count > 1 else []
    if 2 < count <= _PAIRS:
        sets += itertools.combinations(range(count), 2)
    for chosen in sets:

        def part(some: Any, carried: Any, chosen: Any = chosen) -> Any:
            floats = list(at.floats)
            for i, a in zip(chosen, some, strict=True):
                floats[i] = a
            return at.h(floats, carried)

        names = [at.names[i] for i in chosen]
        check = f"subsets: with respect to {' and '.join(names)} alone"
        _, actual = derivatives.pull(part, at.cotangent, tuple(at.floats[i] for i in chosen), at.carried)
        expected = [at.gradient[i] for i in chosen]
        yield from judge.rows(
            at, "subsets", check, names, actual, expected, tolerance,
            roundings=lambda chosen=chosen: [at.roundings[i] for i in chosen],
        )  # fmt: skip
    for k in range(len(at.value) if len(at.value) > 1 else 0):
        one = tuple(c if j == k else np.zeros(c.shape, c.dtype) for j, c in enumerate(at.cotangent))
        expected = at.compiled(one, at.floats, at.carried)[1]
        _, actual = derivatives.pull(lambda f, c, k=k: at.h(f, c)[k : k + 1], one[k : k + 1], at.floats, at.carried)
        check = f"subsets: {at.inexact_names[k]} alone"
        yield from judge.rows(
            at, "subsets", check, at.names, actual, expected, tolerance, roundings=lambda: at.roundings
        )
        if at.r is None:
            continue
        truth = at.expected(derivatives.pull, one, at.floats, at.carried)
        tolerance_ = at.tolerance("gradient", numbers.FORMULA)
        yield from judge.rows(at, "subsets", check, at.names, actual, truth.arrays[1], tolerance_, truth.note)


def _converges(at: Point) -> bool:
    try:
        return converges(partial(derivatives.pull, at.h), at.cotangent, at.floats, at.carried)
    except Exception:  # it cannot be traced
        return False


def _to_the_bit(scaled: Any, expected: Any) -> bool:
    """But for what underflows."""
    tiny = float(jnp.finfo(scaled.dtype).tiny) * 2.0**10
    apart = numbers.elementwise(scaled, expected)
    return bool((apart <= min(tiny, numbers.ulp(scaled.dtype) * numbers.largest(expected))).all())


def _on_a_grid(cotangent: Sequence[Any]) -> list[Any]:
    """Few bits, so that sums are exact in every dtype."""
    return [(np.round(np.real(wide(c)) * 16) / 16).astype(c.dtype) for c in cotangent]


def _exactly_zero(
    at: Point, check: str, gradient: Sequence[Any], natural: Sequence[bool] | None = None
) -> Iterator[Row]:
    """`natural`: for each gradient, whether autodiff of the plain function is not zero there either."""
    for i, (name, g) in enumerate(zip(at.names, gradient, strict=True)):
        g = np.where(np.isfinite(wide(at.gradient[i])), wide(g), 0)  # where the gradient is not finite, 0 · ∞ is NaN
        error, index, _ = numbers.distance(g, np.zeros(g.shape), 1.0)
        if error and natural is not None and natural[i]:
            said = "not zero, as in plain autodiff (0 · ∞)"
            yield Row("linearity", check, name, NOT_AVAILABLE, note=said)
            continue
        said = f"a zero cotangent gives {wide(g)[index]:.6g}" if error else ""
        yield Row("linearity", check, name, FAIL if error else OK, error, 0.0, index, said)


def _extreme_zero(at: Point, zero: tuple, exponent: int) -> Iterator[Row]:
    """A zero cotangent at arguments of about the root of the dtype's largest (smallest) number."""

    def size(a: jax.Array) -> int:
        return exponent * (int(jnp.finfo(a.dtype).maxexp) // 2 - 4)

    def power(a: jax.Array) -> int:
        sizes = np.abs(wide(a))
        sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
        now = float(np.log2(sizes.max() if exponent > 0 else sizes.min())) if sizes.size else 0.0
        return size(a) - int(now)

    check = f"linearity: zero, arguments of 2^{max(map(size, at.floats))}"
    if may_not_end(at.h, at.floats, at.carried):
        note = "f holds a loop that ends when numbers converge, which such arguments may never do"
        yield Row("linearity", check, verdict=NOT_AVAILABLE, note=note)
        return
    floats = tuple(np.asarray(a) * np.asarray(2.0 ** power(a), a.dtype) for a in at.floats)
    try:
        out, gradient = at.compiled(zero, floats, at.carried)
    except Exception as error:
        yield Row("linearity", check, verdict=NOT_AVAILABLE, note=f"f raises there: {message(error)}")
        return
    natural = [not all(bool(np.isfinite(wide(o)).all()) for o in out)] * len(floats)
    if any(wide(g).any() for g in gradient) and not natural[0]:
        try:
            plain = at.program(derivatives.pull, at.r or without_rules(at.h))(zero, floats, at.carried)[1]
            natural = [not bool(np.all(wide(g) == 0)) for g in plain]
        except Exception:  # it has no gradient without its rule
            pass
    yield from _exactly_zero(at, check, gradient, natural)
