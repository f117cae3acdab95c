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
    within: float = 0.0,
) -> Iterator[Row]:
    """A row per argument: the claimed gradient of ⟨cotangent, function⟩ beside differences of it.

    Both have roundings: the differences those of the function over the step (`within`: see `numbers.differences`), and
    a gradient that vanishes those of what it is measured by. They count for nothing, unless a tolerance is given.
    """
    floats, cotangent = at.widened(cotangent, double)
    tolerance = at.tolerances.get(mode, numbers.lookup(numbers.DIFFERENCES, [a.dtype for a in floats]))
    least = numbers.vanishing(gradient, at.sizes, within or at.weight)
    for i, (name, scale) in enumerate(zip(at.names, numbers.scales(gradient), strict=True)):
        with jax.enable_x64(True) if double else contextlib.nullcontext():
            run = derivatives.compiled(lambda floats: function(floats, at.carried))
            if floats[i].size <= numbers.MANY:
                directions, index = numbers.unit_directions(floats[i], range(floats[i].size))
            else:
                directions, index = numbers.random_directions(floats[i], at.random(9)), None
            found = numbers.differences(run, cotangent, floats, gradient[i], i, directions, within)
        size = max(scale, numbers.scales([found.central])[0] if found.central.any() else 0.0)
        if mode not in at.tolerances:
            size = np.maximum(size, (found.roundings + (numbers.LOST * least[i] if double else 0.0)) / tolerance)
        errors = np.abs(found.claimed - found.central) / size
        errors = np.where(np.isnan(errors), np.inf, errors)
        worst = int(errors.argmax()) if errors.size else 0
        error = float(errors[worst]) if errors.size else 0.0
        place = index[worst] if index is not None and error > 0 else None
        row = Row(mode, check, name, OK, error, tolerance, place, note)
        if error > tolerance:
            off = np.flatnonzero(errors > tolerance)
            wrong = f"got {found.claimed[worst]:.6g}, differences say {found.central[worst]:.6g}"
            row = replace(row, verdict=FAIL, note=join(wrong, note))
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
