"""The modes that need no truth: a gradient is linear in its cotangent, and depends on nothing but the call."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import agreement, derivatives, numbers
from bnderiv.check.another_point import at_another_point
from bnderiv.check.interpreter import without_rules
from bnderiv.check.jaxprs import converges, may_not_end, sees_symbolic_zeros
from bnderiv.check.numbers import wide
from bnderiv.check.point import Expected, Point
from bnderiv.check.report import FAIL, NOT_AVAILABLE, OK, Row, message

_PAIRS = 6  # up to this many arguments are differentiated in pairs, more only one by one


def determinism(at: Point) -> Iterator[Row]:
    """Eager, so that every call reads Python state again."""
    value, pull = derivatives.vjp(at.h, at.floats, at.carried)
    before = pull(at.cotangent)
    floats = at.moved(11)
    _, there = derivatives.pull(at.h, at.cotangent, floats, at.carried)
    after = pull(at.cotangent)
    value_again, again = derivatives.pull(at.h, at.cotangent, at.floats, at.carried)
    tolerance = at.tolerances.get("determinism", 0.0)
    for what, names, actual, expected in (
        ("value", at.value_names, value_again, value),
        ("called again", at.names, again, before),
        ("after a call elsewhere", at.names, after, before),
    ):
        check = f"determinism: {what}"
        yield from agreement.rows(at, "determinism", check, names, actual, Expected(expected), tolerance)
    yield from at_another_point(at, floats, there)


def linearity(at: Point) -> Iterator[Row]:
    tolerance = at.tolerance("linearity", numbers.SAME)
    zero = tuple(np.zeros(c.shape, c.dtype) for c in at.cotangent)
    yield from _zero_rows(at, "linearity: zero", at.pull_back(zero))
    yield from _multiples(at, tolerance)
    yield from _sum_of_two(at, tolerance)
    for sign in (1, -1):
        yield from _zero_at_extreme_arguments(at, zero, sign)


def _multiples(at: Point, tolerance: float) -> Iterator[Row]:
    """Scaling by −1 and powers of 2 is exact in binary arithmetic, so a linear gradient follows to the bit."""
    one = at.pull_back(at.cotangent)
    far = numbers.far([a.dtype for a in (*at.cotangent, *one)])  # some rules clip or drop cotangents far from 1 only
    for factor, name in ((2, "2"), (-1, "-1"), (2.0**far, f"2^{far}"), (2.0**-far, f"2^-{far}")):
        scaled = at.pull_back([np.asarray(c) * np.asarray(factor, c.dtype) for c in at.cotangent])
        expected = [_where_both_are_finite(factor * wide(g), wide(s)) for g, s in zip(one, scaled, strict=True)]
        check, failed = f"linearity: times {name}", False
        rows = agreement.rows(at, "linearity", check, at.names, scaled, Expected(expected), tolerance)
        for row, s, e in zip(rows, scaled, expected, strict=True):
            if row.verdict == FAIL and factor not in (2, -1) and _converges(at):
                row = replace(row, verdict=NOT_AVAILABLE, note="a loop here ends at an absolute tolerance")
            elif row.verdict == OK and not _to_the_bit(s, e):
                row = replace(row, note="not to the bit")
            failed = failed or row.verdict == FAIL
            yield row
        if failed:
            return


def _sum_of_two(at: Point, tolerance: float) -> Iterator[Row]:
    a, b = (_on_a_grid(at.draw(at.value, seed)) for seed in (4, 5))
    of_a, of_b, of_sum = at.pull_back(a), at.pull_back(b), at.pull_back([x + y for x, y in zip(a, b, strict=True)])
    with np.errstate(all="ignore"):
        expected = [wide(x) + wide(y) for x, y in zip(of_a, of_b, strict=True)]
    expected = [np.where(np.isfinite(e), e, wide(g)) for e, g in zip(expected, of_sum, strict=True)]
    check, expected = "linearity: sum of two", Expected(expected, at.gradient_roundings)
    yield from agreement.rows(at, "linearity", check, at.names, of_sum, expected, tolerance)


def _zero_at_extreme_arguments(at: Point, zero: tuple, sign: int) -> Iterator[Row]:
    """A zero cotangent at arguments of about the root of the dtype's largest number, or with sign −1 its smallest."""
    exponents = [sign * (int(jnp.finfo(a.dtype).maxexp) // 2 - 4) for a in at.floats]
    check = f"linearity: zero, arguments of 2^{max(exponents)}"
    if may_not_end(at.h, at.floats, at.carried):
        note = "f holds a loop that ends when numbers converge, which such arguments may never do"
        yield Row("linearity", check, verdict=NOT_AVAILABLE, note=note)
        return
    floats = tuple(_scaled_to(a, exponent, sign) for a, exponent in zip(at.floats, exponents, strict=True))
    try:
        out, gradient = at.compiled(zero, floats, at.carried)
    except Exception as error:
        yield Row("linearity", check, verdict=NOT_AVAILABLE, note=f"f raises there: {message(error)}")
        return
    finite = all(bool(np.isfinite(wide(o)).all()) for o in out)
    natural = [not finite] * len(floats)
    if finite and any(wide(g).any() for g in gradient):
        try:
            plain = at.program(derivatives.pull, at.r or without_rules(at.h))(zero, floats, at.carried)[1]
            natural = [bool(wide(g).any()) for g in plain]
        except Exception:  # it has no gradient without its rule
            pass
    yield from _zero_rows(at, check, gradient, natural)


def _zero_rows(at: Point, check: str, gradient: Sequence[Any], natural: Sequence[bool] | None = None) -> Iterator[Row]:
    """Whether the gradient of a zero cotangent is zero.

    `natural`: for each argument, whether autodiff of the plain function does not return zero either.
    """
    for i, (name, g) in enumerate(zip(at.names, gradient, strict=True)):
        g = np.where(np.isfinite(wide(at.gradient[i])), wide(g), 0)  # where the gradient is not finite, 0 · ∞ is NaN
        error, index = numbers.distance(g, np.zeros(g.shape))
        if error and natural is not None and natural[i]:
            note = "not zero, as in plain autodiff (0 · ∞)"
            yield Row("linearity", check, name, NOT_AVAILABLE, note=note)
        else:
            note = f"a zero cotangent gives {g[index]:.6g}" if error else ""
            yield Row("linearity", check, name, FAIL if error else OK, error, 0.0, index, note)


def subsets(at: Point) -> Iterator[Row]:
    """A rule may be told which arguments are differentiated and which outputs are used. Its gradient may not change."""
    if not sees_symbolic_zeros(at.h, at.floats, at.carried):
        note = "no rule here is told which arguments are differentiated"
        yield Row("subsets", "subsets", verdict=NOT_AVAILABLE, note=note)
        return
    tolerance, count = at.tolerance("subsets", numbers.SAME), len(at.floats)
    if count > 1:
        pairs = itertools.combinations(range(count), 2) if 2 < count <= _PAIRS else ()
        for chosen in (*((i,) for i in range(count)), *pairs):
            yield from _of_some_arguments(at, chosen, tolerance)
    if len(at.value) > 1:
        for k in range(len(at.value)):
            yield from _of_one_output(at, k, tolerance)


def _of_some_arguments(at: Point, chosen: Sequence[int], tolerance: float) -> Iterator[Row]:
    def part(some: Any, carried: Any) -> Any:
        floats = list(at.floats)
        for i, a in zip(chosen, some, strict=True):
            floats[i] = a
        return at.h(floats, carried)

    names = [at.names[i] for i in chosen]
    check = f"subsets: with respect to {' and '.join(names)} alone"
    _, actual = derivatives.pull(part, at.cotangent, tuple(at.floats[i] for i in chosen), at.carried)
    expected = Expected([at.gradient[i] for i in chosen], lambda: [at.gradient_roundings()[i] for i in chosen])
    yield from agreement.rows(at, "subsets", check, names, actual, expected, tolerance)


def _of_one_output(at: Point, k: int, tolerance: float) -> Iterator[Row]:
    check = f"subsets: {at.value_names[k]} alone"
    one = tuple(c if j == k else np.zeros(c.shape, c.dtype) for j, c in enumerate(at.cotangent))
    _, actual = derivatives.pull(lambda *data: at.h(*data)[k : k + 1], one[k : k + 1], at.floats, at.carried)
    expected = Expected(at.pull_back(one), at.gradient_roundings)
    yield from agreement.rows(at, "subsets", check, at.names, actual, expected, tolerance)
    if at.r is not None:
        truth = at.truth_of(derivatives.pull, one, at.floats, at.carried).derivative._replace(roundings=None)
        tolerance = at.tolerance("gradient", numbers.FORMULA)
        yield from agreement.rows(at, "subsets", check, at.names, actual, truth, tolerance)


def _converges(at: Point) -> bool:
    try:
        return converges(partial(derivatives.pull, at.h), at.cotangent, at.floats, at.carried)
    except Exception:  # it cannot be traced
        return False


def _where_both_are_finite(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """`expected`, replaced by `actual` where one of them overflows."""
    return np.where(np.isfinite(expected) & np.isfinite(actual), expected, actual)


def _to_the_bit(scaled: Any, expected: Any) -> bool:
    """But for what underflows."""
    tiny = float(jnp.finfo(scaled.dtype).tiny) * 2.0**10
    apart = numbers.elementwise(scaled, expected)
    return bool((apart <= min(tiny, numbers.ulp(scaled.dtype) * numbers.largest(expected))).all())


def _on_a_grid(cotangent: Sequence[Any]) -> list[Any]:
    """Few bits, so that sums are exact in every dtype."""
    return [(np.round(np.real(wide(c)) * 16) / 16).astype(c.dtype) for c in cotangent]


def _scaled_to(a: jax.Array, exponent: int, sign: int) -> np.ndarray:
    """The array times a power of 2, so that its largest element, or with sign −1 its smallest, is about 2^exponent."""
    sizes = np.abs(wide(a))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    now = float(np.log2(sizes.max() if sign > 0 else sizes.min())) if sizes.size else 0.0
    return np.asarray(a) * np.asarray(2.0 ** (exponent - int(now)), a.dtype)
