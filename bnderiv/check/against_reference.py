"""The modes that compare a rule with the truth: values, gradients of both orders, both modes, and rounding."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import derivatives, differences, judge, numbers
from bnderiv.check.numbers import wide
from bnderiv.check.point import Point, double_precision, join
from bnderiv.check.problem import custom_vjp_of, is_inexact, pull_back_directly
from bnderiv.check.report import FAIL, KINK, NOT_AVAILABLE, OK, Row, message


def value(at: Point) -> Iterator[Row]:
    names = at.inexact_names
    if at.r is not None:
        tolerance = at.tolerance("value", numbers.FORMULA)
        unlike = list(_unlike(at))
        yield from unlike
        if not any(row.verdict == FAIL for row in unlike):
            truth = at.true_value
            yield from judge.rows(
                at, "value", "value", names, at.value, truth.arrays, tolerance, truth.note, truth.roundings
            )
    tolerance = at.tolerance("value", numbers.SAME)
    check = "primal = fwd"
    yield from judge.rows(at, "value", check, names, at.forward_value, at.value, tolerance, roundings=at.of_value)


def structure(at: Point) -> Iterator[Row]:
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
            note = "a Python number that is not differentiated"
            yield Row("structure", "structure", name, NOT_AVAILABLE, note=note)


def gradient(at: Point) -> Iterator[Row]:
    if at.r is None:
        yield Row("gradient", "gradient", verdict=NOT_AVAILABLE, note="no reference: see finite differences")
        return
    truth, count = at.truth, len(at.value)
    expected, tolerance = truth.arrays[1], at.tolerance("gradient", numbers.FORMULA)

    def roundings() -> Any:
        return truth.roundings()[count:]

    found = judge.rows(at, "gradient", "gradient", at.names, at.gradient, expected, tolerance, truth.note, roundings)
    for i, row in enumerate(found):
        if row.verdict == NOT_AVAILABLE:
            row = _in_float64(at, row, i, expected)
        if row.verdict == FAIL and row.error is not None:
            row = _asked(at, row, i, at.gradient[i], expected[i])
        yield judge.of_small_elements(at, row, i, expected[i], roundings, truth.note)


def float64(at: Point) -> Iterator[Row]:
    if at.in_double:
        yield Row("float64", "float64", verdict=NOT_AVAILABLE, note="the arguments are float64 already")
        return
    count = len(at.value)
    if at.r is None:
        expected, _, note = at.pulled
        roundings = at.all_roundings
    else:
        expected, _, roundings, note = at.truth
    if note:
        yield Row("float64", "float64", verdict=NOT_AVAILABLE, note=note)
        return
    reference = at.r is not None
    yield from judge.ulp_rows(at, "value", at.inexact_names, at.value, expected[0], lambda: roundings(), reference)
    rows = judge.ulp_rows(at, "gradient", at.names, at.gradient, expected[1], lambda: roundings()[count:], reference)
    for i, row in enumerate(rows):
        yield _asked(at, row, i, at.gradient[i], expected[1][i]) if row.verdict == FAIL else row


def second_order(at: Point) -> Iterator[Row]:
    direction = at.draw(at.floats, 2)
    data = (at.cotangent, direction, at.floats, at.carried)
    tolerance = at.tolerance("second_order", numbers.FORMULA)
    # Second derivatives are symmetric, so one reference serves both orders of differentiation.
    truth, lines = None, None
    if at.r is not None:
        try:
            truth = at.expected(derivatives.grad_of_grad, *data)
        except Exception as error:
            yield _impossible("second_order", error, note="the reference has no second derivative")
            return
    for check, compute in (("grad of grad", derivatives.grad_of_grad), ("jvp of grad", derivatives.jvp_of_grad)):
        check = f"second order: {check}"
        try:
            if truth is not None:
                actual = at.program(compute, at.h)(*data)
                expected = [_where_one_is_finite(a, e) for a, e in zip(actual, truth.arrays, strict=True)]
                rows = list(
                    judge.rows(
                        at,
                        "second_order",
                        check,
                        at.names,
                        actual,
                        expected,
                        tolerance,
                        truth.note,
                        truth.roundings,
                    )
                )
                if any(row.verdict == FAIL for row in rows):
                    lines = lines or _lines_of_gradient(at, at.r, direction, not truth.note)
                    rows = [
                        differences.who_is_right(at, row, i, actual[i], truth.arrays[i], lines)
                        if row.verdict == FAIL and row.error is not None
                        else row
                        for i, row in enumerate(rows)
                    ]
            else:
                actual, double, note = at.in_float64_or_own(compute, *data)
                lines = lines or _lines_of_gradient(at, at.h, direction, double)
                rows = list(differences.differenced(at, "second_order", check, lines, actual, note))
                if any(row.verdict == FAIL for row in rows) and not lines.terms:
                    # A gradient that vanishes is a difference of larger terms.
                    found = zip(at.roundings, direction, strict=True)
                    lines.terms = sum(r.terms * float(np.linalg.norm(wide(d))) for r, d in found)
                    rows = list(differences.differenced(at, "second_order", check, lines, actual, note))
            yield from _after_kinks(at, rows)
        except Exception as error:
            yield _impossible("second_order", error, check)


def jvp(at: Point) -> Iterator[Row]:
    tangents = at.draw(at.floats, 3)
    try:
        _, pushed = at.program(derivatives.push, at.h)(tangents, at.floats, at.carried)
    except Exception as error:
        note = "a custom_vjp has no forward mode" if "custom_vjp" in str(error) else ""
        yield _impossible("jvp", error, note=note)
        return
    tolerance = at.tolerance("jvp", numbers.FORMULA)
    if at.r is not None:
        truth = at.expected(derivatives.push, tangents, at.floats, at.carried)
        count = len(at.value)
        rows = judge.rows(
            at, "jvp", "jvp", at.inexact_names, pushed, truth.arrays[1], tolerance, truth.note,
            lambda: truth.roundings()[count:],
        )  # fmt: skip
        yield from _after_kinks(at, rows)
    pairs = (at.cotangent, pushed), (at.gradient, tangents)
    products = [[np.real(wide(a) * wide(b)).ravel() for a, b in zip(*pair, strict=True)] for pair in pairs]
    left, right = (np.concatenate(p) if p else np.zeros(0) for p in products)
    check = "jvp: transpose of the vjp"
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        yield Row("jvp", check, verdict=NOT_AVAILABLE, note="a derivative is not finite")
        return
    apart, terms = abs(left.sum() - right.sum()), np.abs(left).sum() or 1.0
    if (
        apart / terms > tolerance
    ):  # a gradient that vanishes carries the roundings of the larger terms that cancel in it
        found = zip(at.roundings, tangents, strict=True)
        apart -= sum(4 * r.spread * float(np.abs(wide(t)).sum()) for r, t in found if np.isfinite(r.spread))
    error = max(float(apart), 0.0) / terms
    verdict = OK if error <= tolerance else FAIL
    texts = judge.apart_in_digits(left.sum(), right.sum())
    note = "" if verdict == OK else "⟨ct, J v⟩ is {}, ⟨Jᵀ ct, v⟩ is {}".format(*texts)
    yield from _after_kinks(at, [Row("jvp", check, "", verdict, error, tolerance, None, note)])


def _where_one_is_finite(actual: Any, expected: Any) -> np.ndarray:
    """`expected`, where both are infinite or NaN replaced by `actual`: beside a pole, which of them is an accident."""
    neither = ~np.isfinite(wide(actual)) & ~np.isfinite(wide(expected))
    return np.where(neither, wide(actual), np.asarray(expected))


def _asked(at: Point, row: Row, i: int, actual: Any, expected: Any) -> Row:
    try:
        return differences.who_is_right(at, row, i, actual, expected)
    except Exception as error:  # the failure stands
        return replace(row, note=join(row.note, f"differences: {message(error)}"))


def _in_float64(at: Point, row: Row, i: int, expected: Any) -> Row:
    """Where roundings hide a gradient: whether its formula is right in float64."""
    (_, gradient), double, _ = at.pulled
    if not double or at.in_double:
        return row
    size = judge.magnitude_of(at, expected[i])
    error, index, _apart = numbers.distance(gradient[i], expected[i], size)
    allowed = max(1e-6, 1e-6 * at.truth.roundings()[len(at.value) + i].spread / size)
    if error <= allowed:
        return replace(row, verdict=OK, note=f"right in float64; {row.note}")
    return replace(row, verdict=FAIL, note=f"wrong in float64 too: {judge.unlike(gradient[i], expected[i], index)}")


def _lines_of_gradient(at: Point, h: Any, direction: Any, double: bool) -> Any:
    """⟨gradient, direction⟩ along lines: its slopes are second derivatives."""
    with double_precision(double):
        cotangent = derivatives.widen(at.cotangent) if double else at.cotangent
        one = np.ones((), np.float64 if double else np.float32)
        return at.lines_of(partial(derivatives.projected, h, direction, cotangent), (one,), double)


def _after_kinks(at: Point, rows: Any) -> Iterator[Row]:
    """Where there is no truth, failures become "kink" or "n/a": derivatives of a gradient that jumps need not agree."""
    for row in rows:
        if row.verdict == FAIL and at.no_truth == KINK:
            row = replace(row, verdict=KINK, note="no derivative here: the gradient jumps")
        elif row.verdict == FAIL and at.no_truth:
            row = replace(row, verdict=NOT_AVAILABLE, note=at.no_truth)
        yield row


def _impossible(mode: str, error: Exception, check: str = "", note: str = "") -> Row:
    """JAX cannot differentiate this; that is no fault of the gradient."""
    name = check or mode.replace("_", " ")
    return Row(mode, name, verdict=NOT_AVAILABLE, note=join(note, message(error) if "custom_vjp" not in note else ""))


def _unlike(at: Point) -> Iterator[Row]:
    """Rows for outputs whose number, shape or dtype is not the reference's, and for every integer output."""
    leaves = _outputs_of_reference(at)
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


def _outputs_of_reference(at: Point) -> list[Any]:
    """The outputs, or their shapes if all are floating: those are compared with the truth, which is compiled."""
    args = at.arguments.rebuild(derivatives.fresh(at.floats), derivatives.fresh(at.carried))
    try:
        leaves = jax.tree.leaves(jax.eval_shape(lambda: at.reference(*args)))
        if all(map(is_inexact, leaves)):
            return leaves
    except Exception:  # it cannot be traced
        pass
    return jax.tree.leaves(at.reference(*args))


def _integers(at: Point) -> Iterator[Row]:
    """An integer argument has no gradient. JAX drops one silently, so the backward of a rule is called directly."""
    rule = custom_vjp_of(at.f)
    carried = [
        (name, i)
        for name, i, a in zip(at.arguments.carried_names, at.arguments.carried_positions, at.carried, strict=True)
        if not is_inexact(a)
    ]
    if rule is None or not carried:
        return
    args = at.arguments.rebuild(derivatives.fresh(at.floats), derivatives.fresh(at.carried))
    filled = iter(at.cotangent)
    leaves = [next(filled) if is_inexact(o) else np.zeros(np.shape(o), jax.dtypes.float0) for o in at.out_leaves]
    try:
        grads = pull_back_directly(rule, args, jax.tree.unflatten(at.out_tree, leaves))
    except Exception:  # another calling convention, such as symbolic zeros
        return
    for name, i in carried:
        given = _of_integers(args[i], grads[i])
        wrong = any(np.any(np.asarray(g) != 0) for g in given)
        note = f"an integer argument is given a gradient of dtype {given[0].dtype}; JAX drops it" if wrong else ""
        yield Row("structure", "structure", name, FAIL if wrong else OK, note=note)


def _of_integers(argument: Any, gradient: Any) -> Sequence[Any]:
    """The gradients that the rule returned for the integer and boolean arrays of an argument."""
    leaves, structure = jax.tree.flatten(argument)
    try:
        grads = structure.flatten_up_to(gradient)
    except ValueError:  # None stands for the whole argument
        return []
    pairs = [(a, g) for a, g in zip(leaves, grads, strict=True) if g is not None and not is_inexact(a)]
    return [jnp.asarray(g) for _, g in pairs if getattr(g, "dtype", jax.dtypes.float0) != jax.dtypes.float0]
