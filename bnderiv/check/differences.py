"""Where there is no reference: a gradient beside finite differences of the function, in float64 if it can be."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from bnderiv.check import derivatives, kinks, numbers
from bnderiv.check.point import Point, join
from bnderiv.check.report import FAIL, KINK, OK, Row


def finite_differences(at: Point) -> Iterator[Row]:
    (_, gradient), double, note = at.pulled
    yield from differenced(at, "finite_differences", "finite differences", at.h, at.cotangent, gradient, double, note)


def differenced(
    at: Point,
    mode: str,
    check: str,
    function: Callable,
    cotangent: Any,
    gradient: Any,
    double: bool,
    note: str = "",
) -> Iterator[Row]:
    """A row per argument: the claimed gradient of ⟨cotangent, function⟩ beside differences of it.

    Both have roundings: the differences those of the function over the step, and a gradient that vanishes those of the
    terms that cancel in it. They are no failure, unless a tolerance is given.
    """
    floats, cotangent = at.widened(cotangent, double)
    tolerance = at.tolerances.get(mode, numbers.lookup(numbers.DIFFERENCES, [a.dtype for a in floats]))
    for i, (name, scale) in enumerate(zip(at.names, numbers.scales(gradient), strict=True)):
        with jax.enable_x64(True) if double else contextlib.nullcontext():
            run = derivatives.compiled(lambda floats: function(floats, at.carried))
            if floats[i].size <= numbers.MANY:
                directions, index = numbers.unit_directions(floats[i], range(floats[i].size))
            else:
                directions, index = numbers.random_directions(floats[i], at.random(9)), None
            found = numbers.differences(run, cotangent, floats, gradient[i], i, directions)
        size = max(scale, numbers.scales([found.central])[0] if found.central.any() else 0.0)
        apart, said = np.abs(found.claimed - found.central), note
        if (apart > tolerance * size).any() and mode not in at.tolerances:
            roundings = found.roundings + _of_what_cancels(at, mode, i, floats[i])
            if (apart > tolerance * size)[apart <= roundings].any():
                said = join(note, f"roundings of the differences, up to {roundings.max():.1e}, are allowed for")
            size = np.maximum(size, roundings / tolerance)
        errors = apart / size
        errors = np.where(np.isnan(errors), np.inf, errors)
        worst = int(errors.argmax()) if errors.size else 0
        error = float(errors[worst]) if errors.size else 0.0
        place = index[worst] if index is not None and error > 0 else None
        row = Row(mode, check, name, OK, error, tolerance, place, said)
        if error > tolerance:
            off = np.flatnonzero(errors > tolerance)
            wrong = f"got {found.claimed[worst]:.6g}, differences say {found.central[worst]:.6g}"
            row = replace(row, verdict=FAIL, note=join(wrong, said))
            if found.kink[off].all():
                elements = [] if index is None else [int(np.ravel_multi_index(index[j], floats[i].shape)) for j in off]
                if index is None or kinks.is_kink(
                    at, function, cotangent, gradient[i], sorted(set(elements)), i, double
                ):
                    row = replace(row, verdict=KINK, note=kinks.NOTE)
                    at.kinks_found = True
        if mode == "finite_differences" and found.kink.any():  # whatever the rule says there
            at.kinks_found = True
        yield row


def _of_what_cancels(at: Point, mode: str, i: int, x: Any) -> float:
    """The error of a claim that vanishes; where the gradient itself is differenced, that of the differences, too."""
    terms = [c.terms for c in at.cancelled if c.vanishes]
    if mode == "second_order":
        return numbers.rounding(sum(terms), x)
    return numbers.LOST * at.cancelled[i].terms if at.cancelled[i].vanishes else 0.0
