"""The modes that run a rule under jit, vmap, scan and checkpoint. The numbers must not change."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import derivatives, judge, numbers, programs
from bnderiv.check.judge import raised
from bnderiv.check.point import Point, join
from bnderiv.check.report import FAIL, OK, Row


def jit(at: Point) -> Iterator[Row]:
    value, gradient = at.compiled.jitted(at.cotangent, at.floats, at.carried)
    tolerance = at.tolerance("jit", numbers.SAME)
    yield from judge.rows(
        at, "jit", "jit: value", at.inexact_names, value, at.value, tolerance, roundings=at.all_roundings
    )
    yield from judge.rows(
        at, "jit", "jit: gradient", at.names, gradient, at.gradient, tolerance, roundings=lambda: at.roundings
    )


def vmap(at: Point) -> Iterator[Row]:
    points = [at.floats, at.moved(11), at.moved(12)]
    rolled = [tuple(np.roll(np.asarray(a), k) if _is_numeric(a) else a for a in at.carried) for k in range(3)]
    count = len(at.floats)
    arrays = [(*p, *c) for p, c in zip(points, rolled, strict=True)]
    names = (*at.names, *at.arguments.carried_names)
    mappable = [i for i, a in enumerate(arrays[0]) if i < count or _is_numeric(a)]
    choices = [(names[i], {i}) for i in mappable]
    if len(mappable) > 1:
        choices.append(("(all)", set(mappable)))
    for name, mapped in choices:
        try:
            yield _mapped(at, name, mapped, arrays, count)
        except Exception as error:
            yield raised("vmap", error, "vmap", name)


def scan(at: Point) -> Iterator[Row]:
    points = [at.floats, at.moved(11), at.moved(12)]

    def total(stacked: Any) -> Any:
        def step(sum_: Any, floats: Any) -> Any:
            return sum_ + numbers.dot(at.h(floats, at.carried), at.cotangent).astype(sum_.dtype), None

        start = jnp.zeros((), numbers.dot(at.value, at.cotangent).dtype)
        return jax.lax.scan(step, start, stacked)[0]

    loop = [at.compiled(at.cotangent, floats, at.carried)[1] for floats in points]
    expected = [np.stack(g) for g in zip(*loop, strict=True)]
    actual = programs.Program(jax.grad(total))(tuple(np.stack(a) for a in zip(*points, strict=True)))
    tolerance = at.tolerance("scan", numbers.SAME)
    yield from judge.rows(at, "scan", "scan", at.names, actual, expected, tolerance, roundings=lambda: at.roundings)


def checkpoint(at: Point) -> Iterator[Row]:
    h = jax.checkpoint(at.h)
    _, actual = programs.Program(partial(derivatives.pull, h))(at.cotangent, at.floats, at.carried)
    tolerance = at.tolerance("checkpoint", numbers.SAME)
    yield from judge.rows(
        at, "checkpoint", "checkpoint", at.names, actual, at.gradient, tolerance, roundings=lambda: at.roundings
    )


def _mapped(at: Point, name: str, mapped: set[int], arrays: Sequence[Sequence[Any]], count: int) -> Row:
    """vmap over some arguments against a loop. The gradient of an unmapped argument is the sum over the loop."""
    axes = [0 if i in mapped else None for i in range(len(arrays[0]))]
    stacked = [np.stack(a) if i in mapped else a[0] for i, a in enumerate(zip(*arrays, strict=True))]
    calls = [[a[i] if i in mapped else arrays[0][i] for i in range(len(a))] for a in arrays]
    function = jax.vmap(at.h, (tuple(axes[:count]), tuple(axes[count:])))
    outs = [np.stack([o, o, o]) for o in at.value]
    cotangent = tuple(np.asarray(c) for c in at.draw(outs, 13))  # of NumPy, whose indexing compiles nothing
    loop = [
        at.compiled(tuple(c[k] for c in cotangent), tuple(call[:count]), tuple(call[count:]))
        for k, call in enumerate(calls)
    ]
    actual = programs.Program(partial(derivatives.pull, function))(
        cotangent, tuple(stacked[:count]), tuple(stacked[count:])
    )
    values = [np.stack(o) for o in zip(*(v for v, _ in loop), strict=True)]
    gradients = [np.stack(g) for g in zip(*(g for _, g in loop), strict=True)]
    gradients = [g if i in mapped else numbers.wide(g).sum(0) for i, g in enumerate(gradients)]
    tolerance = at.tolerance("vmap", numbers.SAME)
    worst = Row("vmap", "vmap", name, OK, 0.0, tolerance)
    named = (
        ("value", at.inexact_names, actual[0], values, at.all_roundings),
        ("gradient", at.names, actual[1], gradients, lambda: at.roundings),
    )
    for what, names, mine, expected, roundings in named:
        for row in judge.rows(at, "vmap", "vmap", names, mine, expected, tolerance, roundings=roundings):
            if row.error is None or (row.verdict == FAIL, row.error) > (worst.verdict == FAIL, worst.error or 0.0):
                note = join(f"{what} of {row.argument}", row.note) if row.verdict == FAIL else ""
                worst = replace(row, argument=name, note=note)
                if row.error is None:
                    return worst
    return worst


def _is_numeric(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.number) or jnp.issubdtype(a.dtype, jnp.bool_)
