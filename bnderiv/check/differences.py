"""Compares a gradient with finite differences of the function, in float64 if possible."""

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
    """A row for each argument: the claimed gradient of ⟨cotangent, function⟩ against its finite differences.

    Both carry roundings. A difference has those of the function, divided by the step. A gradient that vanishes has
    those of the terms that cancel in it. Errors of that size pass, unless the user gave a tolerance.
    """
    floats, cotangent = at.widened(cotangent, double)
    tolerance = at.tolerances.get(mode, numbers.lookup(numbers.DIFFERENCES, [a.dtype for a in floats]))
    for i, (name, magnitude) in enumerate(zip(at.names, numbers.magnitudes(gradient), strict=True)):
        with jax.enable_x64(True) if double else contextlib.nullcontext():
            run = derivatives.compiled(lambda floats: function(floats, at.carried))
            if floats[i].size <= numbers.MANY:
                directions, index = numbers.unit_directions(floats[i], range(floats[i].size))
            else:
                directions, index = numbers.random_directions(floats[i], at.random(9)), None
            found = numbers.differences(run, cotangent, floats, gradient[i], i, directions)
        size = max(magnitude, numbers.magnitudes([found.central])[0] if found.central.any() else 0.0)
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
        if mode == "finite_differences" and found.kink.any():  # also where this row has passed
            at.kinks_found = True
        yield row


def _of_what_cancels(at: Point, mode: str, i: int, x: Any) -> float:
    """The error that cancelling terms leave in a gradient, or in differences of the gradient in "second_order"."""
    terms = [c.terms for c in at.cancelled if c.vanishes]
    if mode == "second_order":
        return numbers.rounding(sum(terms), x)
    return numbers.LOST * at.cancelled[i].terms if at.cancelled[i].vanishes else 0.0
