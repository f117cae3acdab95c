"""The modes that compare a rule with the truth: values, gradients of both orders, both modes, and rounding."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import derivatives, kinks, numbers
from bnderiv.check.differences import differenced
from bnderiv.check.numbers import wide
from bnderiv.check.point import Point, element, join
from bnderiv.check.problem import custom_vjp_of, is_inexact, pull_back_directly
from bnderiv.check.report import FAIL, NOT_AVAILABLE, OK, Row


def value(at: Point) -> Iterator[Row]:
    names = at.inexact_names
    if at.r is not None:
        tolerance = at.tolerance("value", numbers.FORMULA)
        try:
            unlike = list(_unlike(at))
            yield from unlike
            if not any(row.verdict == FAIL for row in unlike):
                (expected, _), own, note = at.truth
                yield from at.rows("value", "value", names, at.value, expected, tolerance, note, lambda: own()[0])
        except Exception as error:
            yield at.raised("value", error)
    tolerance = at.tolerance("value", numbers.SAME)
    yield from at.rows("value", "primal = fwd", names, at.forward_value, at.value, tolerance)


def structure(at: Point) -> Iterator[Row]:
    if not at.floats:
        yield Row("structure", "structure", verdict=NOT_AVAILABLE, note="no argument is a floating array")
    for name, a, g in zip(at.names, at.floats, at.gradient, strict=True):
        wrong = [
            f"{what} {mine}, the argument's is {its}"
            for what, mine, its in (("shape", g.shape, a.shape), ("dtype", g.dtype, a.dtype))
            if mine != its
        ]
        yield Row("structure", "structure", name, FAIL if wrong else OK, note="; ".join(wrong))
    yield from _integers(at)
    for name, leaf in at.arguments.static:
        if isinstance(leaf, (float, complex)):
            note = "a Python number, passed as it is: give an array to differentiate it"
            yield Row("structure", "structure", name, NOT_AVAILABLE, note=note)


def gradient(at: Point) -> Iterator[Row]:
    if at.r is None:
        return
    (_, expected), own, note = at.truth
    tolerance = at.tolerance("gradient", numbers.FORMULA)
    rows = at.rows("gradient", "gradient", at.names, at.gradient, expected, tolerance, note, lambda: own()[1], True)
    yield from kinks.forgive(at, rows, at.r, at.cotangent, at.gradient, expected)


def float64(at: Point) -> Iterator[Row]:
    if at.in_double:
        yield Row("float64", "float64", verdict=NOT_AVAILABLE, note="the arguments are float64 already")
        return
    own: Any = (None, None)
    if at.r is None:
        expected, _, note = at.pulled
    else:
        expected, own_result, note = at.truth
        own = own_result()
    if note:
        yield Row("float64", "float64", verdict=NOT_AVAILABLE, note=note)
        return
    yield from _ulps(at, "value", at.inexact_names, at.value, expected[0], own[0], False)
    rows = _ulps(at, "gradient", at.names, at.gradient, expected[1], own[1], True)
    yield from kinks.forgive(at, rows, at.h if at.r is None else at.r, at.cotangent, at.gradient, expected[1])


def second_order(at: Point) -> Iterator[Row]:
    if not (at.floats and at.value):
        yield at.nothing_to_differentiate("second_order")
        return
    direction = at.draw(at.floats, 2)
    data = (at.cotangent, direction, at.floats, at.carried)
    tolerance = at.tolerance("second_order", numbers.FORMULA)
    projected = partial(derivatives.projected, at.h if at.r is None else at.r, direction)
    # Second derivatives are symmetric, so one reference serves both orders of differentiation.
    symmetric = None if at.r is None else at.expected(derivatives.grad_of_grad, *data)
    for check, compute in (("grad of grad", derivatives.grad_of_grad), ("jvp of grad", derivatives.jvp_of_grad)):
        check = f"second order: {check}"
        try:
            if symmetric is not None:
                actual = derivatives.compiled(partial(compute, at.h))(*data)
                expected, own, note = symmetric
                rows = at.rows("second_order", check, at.names, actual, expected, tolerance, note, own, True)
                slope = partial(projected, at.cotangent)
                rows = kinks.forgive(at, rows, slope, (np.ones(()),), actual, expected)
            else:
                actual, double, note = at.in_float64_or_own(compute, *data)
                slope = partial(projected, at.widened(at.cotangent, double)[1])
                rows = differenced(at, "second_order", check, slope, (np.ones(()),), actual, double, note)
            yield from kinks.after(at, rows)
        except Exception as error:
            yield at.raised("second_order", error, check)


def jvp(at: Point) -> Iterator[Row]:
    tangents = at.draw(at.floats, 3)
    try:
        _, pushed = derivatives.push(at.h, tangents, at.floats, at.carried)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        note = "a custom_vjp has no forward mode"
        yield Row("jvp", "jvp", verdict=NOT_AVAILABLE, note=note)
        return
    tolerance = at.tolerance("jvp", numbers.FORMULA)
    if at.r is not None:
        expected, own, note = at.expected(derivatives.push, tangents, at.floats, at.carried)

        def otherwise() -> Any:
            if not at.in_double:
                return own()[1]
            thrice = tuple(3 * t for t in tangents)
            return [p / 3 for p in derivatives.push(at.r, thrice, at.floats, at.carried)[1]]

        rows = at.rows("jvp", "jvp", at.inexact_names, pushed, expected[1], tolerance, note, otherwise)
        yield from kinks.after(at, rows)
    pairs = (at.cotangent, pushed), (at.gradient, tangents)
    left, right = (sum(float(np.real(wide(a) * wide(b)).sum()) for a, b in zip(*p, strict=True)) for p in pairs)
    terms = sum(float(np.abs(wide(a) * wide(b)).sum()) for a, b in zip(*pairs[0], strict=True))
    error = abs(left - right) / (terms or 1.0)
    if error > tolerance:  # a gradient that vanishes carries the roundings of the larger terms that cancel in it
        vanishing = [
            c.magnitude * float(np.abs(wide(t)).sum())
            for c, t in zip(at.cancelled, tangents, strict=True)
            if c.vanishes
        ]
        error = abs(left - right) / (terms + sum(vanishing) or 1.0)
    verdict = OK if error <= tolerance else FAIL
    note = "" if verdict == OK else f"⟨ct, J v⟩ is {left:.6g}, ⟨Jᵀ ct, v⟩ is {right:.6g}"
    yield Row("jvp", "jvp: transpose of the vjp", "", verdict, error, tolerance, None, note)


def _unlike(at: Point) -> Iterator[Row]:
    """Rows for outputs whose number, shape or dtype is not the reference's, and for every integer output."""
    leaves = jax.tree.leaves(at.reference(*at.arguments.rebuild(at.floats, at.carried)))
    if len(leaves) != len(at.out_leaves):
        note = f"{len(at.out_leaves)} arrays, the reference returns {len(leaves)}"
        yield Row("value", "value", "output", FAIL, note=note)
        return
    for name, mine, other in zip(at.out_names, at.out_leaves, leaves, strict=True):
        about = (np.shape, "shape"), (jnp.result_type, "dtype")
        differs = [f"{what} {of(mine)}, the reference's is {of(other)}" for of, what in about if of(mine) != of(other)]
        if differs:
            yield Row("value", "value", name, FAIL, note="; ".join(differs))
        elif not is_inexact(mine):
            same = bool(np.array_equal(np.asarray(mine), np.asarray(other)))
            yield Row("value", "value", name, OK if same else FAIL, note="" if same else "differs")


def _integers(at: Point) -> Iterator[Row]:
    """An integer argument has no gradient. JAX drops one silently, so the backward of a rule is called directly."""
    rule = custom_vjp_of(at.f)
    if rule is None or not at.arguments.carried:
        return
    args = at.arguments.rebuild(at.floats, at.carried)
    filled = iter(at.cotangent)
    leaves = [next(filled) if is_inexact(o) else np.zeros(np.shape(o), jax.dtypes.float0) for o in at.out_leaves]
    try:
        grads = pull_back_directly(rule, args, jax.tree.unflatten(at.out_tree, leaves))
    except Exception:  # another calling convention, such as symbolic zeros
        return
    for name, i in zip(at.arguments.carried_names, at.arguments.carried_positions, strict=True):
        given = _of_integers(args[i], grads[i])
        wrong = any(np.any(np.asarray(g) != 0) for g in given)
        note = f"an integer argument is given a gradient of dtype {given[0].dtype}; JAX drops it" if wrong else ""
        yield Row("structure", "structure", name, FAIL if wrong else OK, note=note)


def _of_integers(argument: Any, gradient: Any) -> list[Any]:
    """The gradients that the rule returned for the integer and boolean arrays of an argument."""
    leaves, structure = jax.tree.flatten(argument)
    try:
        grads = structure.flatten_up_to(gradient)
    except ValueError:  # None stands for the whole argument
        return []
    pairs = [(a, g) for a, g in zip(leaves, grads, strict=True) if g is not None and not is_inexact(a)]
    return [g for _, g in pairs if getattr(g, "dtype", jax.dtypes.float0) != jax.dtypes.float0]


def _ulps(
    at: Point, what: str, names: Sequence[str], actual: Any, expected: Any, own: Any, gradient: bool
) -> Iterator[Row]:
    magnitudes = numbers.magnitudes(expected)
    if own is not None:
        roundings = [numbers.ULPS * numbers.ulp(a.dtype) for a in actual]
        sizes = at.sizes if gradient else [1.0] * len(expected)
        magnitudes = numbers.magnitudes_of_the_truth(expected, sizes, lambda: own, roundings)
    for i, magnitude in enumerate(magnitudes):
        unit = numbers.ulp(actual[i].dtype)
        error, index = numbers.distance(actual[i], expected[i], magnitude)
        allowed, note = at.tolerances.get("float64", numbers.ULPS), ""
        if own is not None:
            others = numbers.distance(own[i], expected[i], magnitude).error / unit
            note = f"the reference: {others:.3g} ulp"
            if "float64" not in at.tolerances and 4 * others < np.inf:
                allowed = max(allowed, 4 * others)
        elif gradient and error / unit > allowed and at.cancelled[i].explains(expected[i], np.float64):
            note = "it vanishes but for roundings"
            error, index = numbers.distance(actual[i], expected[i], max(magnitude, at.cancelled[i].magnitude))
        verdict = OK if error / unit <= allowed else FAIL
        if verdict == FAIL:
            note = join(f"got {element(actual[i], index)}, expected {element(expected[i], index)}", note)
        yield Row("float64", f"float64: {what}", names[i], verdict, error / unit, allowed, index, note, "ulp")
