"""The modes that run a rule under jit, vmap, scan and checkpoint. The numbers must not change."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import agreement, derivatives, numbers, programs
from bnderiv.check.agreement import raised
from bnderiv.check.point import Expected, Point, join
from bnderiv.check.report import FAIL, Row


def jit(at: Point) -> Iterator[Row]:
    value, gradient = at.compiled.jitted(at.cotangent, at.floats, at.carried)
    tolerance = at.tolerance("jit", numbers.SAME)
    eager = Expected(at.value, at.value_roundings), Expected(at.gradient, at.gradient_roundings)
    yield from agreement.rows(at, "jit", "jit: value", at.value_names, value, eager[0], tolerance)
    yield from agreement.rows(at, "jit", "jit: gradient", at.names, gradient, eager[1], tolerance)


def vmap(at: Point) -> Iterator[Row]:
    calls = []
    for k, floats in enumerate(_three_points(at)):
        carried = (np.roll(np.asarray(a), k) if _is_numeric(a) else a for a in at.carried)
        calls.append((*floats, *carried))
    count, names = len(at.floats), (*at.names, *at.arguments.carried_names)
    mappable = [i for i, a in enumerate(calls[0]) if i < count or _is_numeric(a)]
    choices = [(names[i], {i}) for i in mappable]
    if len(mappable) > 1:
        choices.append(("(all)", set(mappable)))
    for name, mapped in choices:
        try:
            yield _mapped(at, name, mapped, calls)
        except Exception as error:
            yield raised("vmap", error, "vmap", name)


def _mapped(at: Point, name: str, mapped: set[int], calls: Sequence[Sequence[Any]]) -> Row:
    """vmap over some arguments against a loop. The gradient of an unmapped argument is the sum over the loop."""

    def split(arguments: Sequence[Any]) -> tuple[tuple, tuple]:
        return tuple(arguments[: len(at.floats)]), tuple(arguments[len(at.floats) :])

    columns = list(zip(*calls, strict=True))
    function = jax.vmap(at.h, split([0 if i in mapped else None for i in range(len(columns))]))
    stacked = split([np.stack(column) if i in mapped else column[0] for i, column in enumerate(columns)])
    outputs = [np.stack([o] * len(calls)) for o in at.value]
    cotangent = tuple(np.asarray(c) for c in at.draw(outputs, 13))  # of NumPy, whose indexing compiles nothing
    actual = programs.Program(partial(derivatives.pull, function))(cotangent, *stacked)

    loop = []
    for k, call in enumerate(calls):
        arguments = [a if i in mapped else calls[0][i] for i, a in enumerate(call)]
        loop.append(at.compiled(tuple(c[k] for c in cotangent), *split(arguments)))
    values, gradients = ([np.stack(a) for a in zip(*results, strict=True)] for results in zip(*loop, strict=True))
    gradients = [g if i in mapped else numbers.wide(g).sum(0) for i, g in enumerate(gradients)]

    names = [*(f"value of {output}" for output in at.value_names), *(f"gradient of {x}" for x in at.names)]
    expected = Expected([*values, *gradients], lambda: [*at.value_roundings(), *at.gradient_roundings()])
    tolerance = at.tolerance("vmap", numbers.SAME)
    rows = agreement.rows(at, "vmap", "vmap", names, [*actual[0], *actual[1]], expected, tolerance)
    worst = max(rows, key=lambda row: (row.error is None, row.verdict == FAIL, row.error or 0.0))
    note = join(worst.argument, worst.note) if worst.verdict == FAIL else ""
    return replace(worst, argument=name, note=note)


def scan(at: Point) -> Iterator[Row]:
    points = _three_points(at)

    def total(stacked: Any) -> Any:
        def step(sum_: Any, floats: Any) -> Any:
            return sum_ + numbers.dot(at.h(floats, at.carried), at.cotangent).astype(sum_.dtype), None

        start = jnp.zeros((), numbers.dot(at.value, at.cotangent).dtype)
        return jax.lax.scan(step, start, stacked)[0]

    loop = [at.pull_back(at.cotangent, floats) for floats in points]
    expected = Expected([np.stack(g) for g in zip(*loop, strict=True)], at.gradient_roundings)
    actual = programs.Program(jax.grad(total))(tuple(np.stack(a) for a in zip(*points, strict=True)))
    yield from agreement.rows(at, "scan", "scan", at.names, actual, expected, at.tolerance("scan", numbers.SAME))


def checkpoint(at: Point) -> Iterator[Row]:
    h = jax.checkpoint(at.h)
    _, actual = programs.Program(partial(derivatives.pull, h))(at.cotangent, at.floats, at.carried)
    expected, tolerance = Expected(at.gradient, at.gradient_roundings), at.tolerance("checkpoint", numbers.SAME)
    yield from agreement.rows(at, "checkpoint", "checkpoint", at.names, actual, expected, tolerance)


def _three_points(at: Point) -> list[tuple]:
    return [at.floats, at.moved(11), at.moved(12)]


def _is_numeric(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.number) or jnp.issubdtype(a.dtype, jnp.bool_)
