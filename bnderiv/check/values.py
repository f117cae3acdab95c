"""The modes that look at values, and at the shapes and dtypes of gradients."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import agreement, numbers
from bnderiv.check.numbers import is_inexact
from bnderiv.check.point import Expected, Point
from bnderiv.check.report import FAIL, NOT_AVAILABLE, OK, Row


def value(at: Point) -> Iterator[Row]:
    names = at.value_names
    if at.r is not None:
        tolerance = at.tolerance("value", numbers.FORMULA)
        unlike = list(_unlike(at))
        yield from unlike
        if not any(row.verdict == FAIL for row in unlike):
            yield from agreement.rows(at, "value", "value", names, at.value, at.true_value, tolerance)
    tolerance = at.tolerance("value", numbers.SAME)
    primal = Expected(at.value, at.value_roundings)
    yield from agreement.rows(at, "value", "primal = fwd", names, at.forward_value, primal, tolerance)


def structure(at: Point) -> Iterator[Row]:
    for name, a, g in zip(at.names, at.floats, at.gradient, strict=True):
        wrong = [
            f"{what} {mine}, the argument's is {its}"
            for what, mine, its in (("shape", g.shape, a.shape), ("dtype", g.dtype, a.dtype))
            if mine != its
        ]
        yield Row("structure", "structure", name, FAIL if wrong else OK, note="; ".join(wrong))
    yield from _gradients_of_integers(at)
    for name, leaf in at.arguments.static:
        if isinstance(leaf, (float, complex)):
            note = "a Python number that is not differentiated"
            yield Row("structure", "structure", name, NOT_AVAILABLE, note=note)


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
    args = at.arguments.copies()
    try:
        leaves = jax.tree.leaves(jax.eval_shape(lambda: at.reference(*args)))
        if all(map(is_inexact, leaves)):
            return leaves
    except Exception:  # it cannot be traced
        pass
    return jax.tree.leaves(at.reference(*args))


def _gradients_of_integers(at: Point) -> Iterator[Row]:
    """An integer argument has no gradient. JAX drops one silently, so the backward of a rule is called directly."""
    rule = _custom_vjp_of(at.f)
    carried = [
        (name, i)
        for name, i, a in zip(at.arguments.carried_names, at.arguments.carried_positions, at.carried, strict=True)
        if not is_inexact(a)
    ]
    if rule is None or not carried:
        return
    args = at.arguments.copies()
    filled = iter(at.cotangent)
    leaves = [next(filled) if is_inexact(o) else np.zeros(np.shape(o), jax.dtypes.float0) for o in at.out_leaves]
    try:
        grads = _pull_back_directly(rule, args, jax.tree.unflatten(at.out_tree, leaves))
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


def _custom_vjp_of(f: Any) -> jax.custom_vjp | None:
    """The rule if `f` is one or wraps one (jit), so that its backward can be called directly."""
    for _ in range(8):
        if isinstance(f, jax.custom_vjp):
            return f
        f = getattr(f, "__wrapped__", None)
    return None


def _pull_back_directly(rule: Any, args: tuple[Any, ...], cotangent: Any) -> list[Any]:
    """What the backward of the rule returns for each argument, before JAX processes it.

    JAX silently drops the cotangent of an integer argument.
    """
    _, residuals = rule.fwd(*args)
    static = [args[i] for i in sorted(rule.nondiff_argnums)]
    grads = iter(rule.bwd(*static, residuals, cotangent))
    return [None if i in rule.nondiff_argnums else next(grads) for i in range(len(args))]
