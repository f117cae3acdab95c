"""`compare`: runs the modes one by one. A mode that raises becomes a failed row.

A mode is a generator of rows from a `Point`, which is one function at one point with its truth.
`values.py`, `first_order.py`, `second_order.py` and `differences.py` compare with the truth. `under_transforms.py` runs
the rule under JAX's transforms. `pure_and_linear.py` needs no truth.

`agreement.py` compares arrays, and allows for the roundings that `roundings.py` measures.

Finite differences take three steps: `lines.py` evaluates the function, `slopes.py` makes slopes of the values, and
`claims.py` compares a gradient with them. Where the rule and the reference disagree, `who_is_right.py` asks them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bnderiv.check import (
    deliberate,
    differences,
    first_order,
    pure_and_linear,
    second_order,
    under_transforms,
    values,
)
from bnderiv.check.agreement import raised
from bnderiv.check.arguments import Arguments
from bnderiv.check.point import Point
from bnderiv.check.report import FAIL, NOT_AVAILABLE, Report, Row, message, where_raised

_MODES: dict[str, Callable[[Point], Iterator[Row]]] = {
    "value": values.value,
    "structure": values.structure,
    "gradient": first_order.gradient,
    "float64": first_order.float64,
    "finite_differences": differences.finite_differences,
    "second_order": second_order.second_order,
    "jvp": first_order.jvp,
    "jit": under_transforms.jit,
    "vmap": under_transforms.vmap,
    "scan": under_transforms.scan,
    "checkpoint": under_transforms.checkpoint,
    "determinism": pure_and_linear.determinism,
    "linearity": pure_and_linear.linearity,
    "subsets": pure_and_linear.subsets,
}
MODES = tuple(_MODES)


def compare(
    f: Callable,
    reference: Callable | None,
    *args: Any,
    cotangent: Any = None,
    key: jax.Array | None = None,
    modes: Sequence[str] = MODES,
    tolerances: Mapping[str, float] | None = None,
    argnums: int | Sequence[int] | None = None,
    expected: str | None = None,
) -> Report:
    """Checks the gradient rule of `f` at `args`: its numbers, and that they stay the same under the transforms of JAX.

    The reference is the same function with the same signature, written plainly and differentiated by JAX. It is
    evaluated in float64 where possible; the results of `f`, in the dtype of its arguments, are compared with that.
    Without a reference, `f` is compared with its finite differences in float64. To test a formula, pass float64
    arguments: their tolerances are the tightest. To test rounding as well, pass float32 or narrower ones.

    Cotangents are random. The gradient of a plain sum, `jax.grad(lambda x: f(x).sum())`, hides errors: its cotangent is
    1 everywhere, so it cannot show a cotangent that is dropped or transposed, or errors that cancel over the outputs.
    For batch norm that gradient is zero, and a rule that returns zeros would pass.

    Modes:
      value: `f` equals the reference, and equals the value that `jax.vjp(f, ...)` returns (the rule's forward).
      structure: each gradient has the shape and dtype of its argument (JAX does not check the dtype). An integer
        argument has none.
      gradient: the vector-Jacobian product equals autodiff of the reference.
      float64: the error of value and gradient, in ulps of the largest element. At most 32, or four times the error of
        the reference in the same dtype.
      finite_differences: in float64, for each element, or along random directions of a large array. Runs only without
        a reference, or if `modes` names it.
      second_order: reverse over reverse and forward over reverse equal the reference's, or finite differences.
      jvp: forward mode equals the reference's, and is the transpose of reverse mode. "n/a" for a `custom_vjp`.
      jit: compiled and eager results are equal.
      vmap: over each argument and over all, equals a loop. The gradient of an unmapped argument is a sum.
      scan: the gradient through a loop of calls equals the gradient of each call.
      checkpoint: the gradient under `jax.checkpoint` is unchanged.
      determinism: two calls agree to the bit, with a call at another point in between. The gradient there is right too.
      linearity: twice the cotangent gives twice the gradient, to the bit, as do powers of 2 far from 1; the gradient of
        a sum is the sum. A zero cotangent gives exactly zero, for huge and tiny arguments too.
      subsets: the gradient does not depend on which arguments are differentiated and which outputs are used. "n/a"
        unless a rule is told (`symbolic_zeros`).

    A kink (relu at 0, ties of a maximum) is not a failure. The verdict is "kink" if the slopes of the two sides differ,
    however small the step, and the rule's value lies between them. Second derivatives and forward mode have no truth at
    a kink: check them at another point.

    Args:
      f: the function with the rule. Arguments and outputs may be any pytrees. Bind keywords with `functools.partial`.
      reference: the same function for autodiff, or None. If JAX cannot differentiate it, it serves for the value, and
        finite differences for the gradient.
      *args: the point. Floating and complex arrays are differentiated, and Python numbers that `f` takes as arrays.
        Integer and boolean arrays are not. Any other object is passed unchanged, so that static arguments stay static.
      cotangent: has the structure of the output; drawn from `key` by default.
      key: seeds every random draw; `jax.random.key(0)` by default.
      modes: which modes to run, from `bnderiv.check.MODES`.
      tolerances: by mode, instead of the defaults for the dtype. Relative to the largest element; ulps for float64.
      argnums: the positions of the arguments to differentiate; all by default.
      expected: what a rule returns on purpose in place of the gradient: "scaled" (by a constant, −1 for a reversal),
        "straight-through" (f is locally constant, the cotangent passes) or "clipped". The report names such a rule, and
        passes it only if it is what you expect.

    Returns:
      A `Report`. Print it, show it in a notebook, read `.passed`, or call `.raise_if_failed()` in a test. A gradient
      that no check can tell, because roundings or infinities hide it, does not pass.

    Raises:
      TypeError: `f` or `reference` is not callable.
      ValueError: an unknown mode, argnums or `expected`, or a cotangent whose structure or shape is not the output's.

    Example:
      >>> import bnderiv, jax, jax.numpy as jnp
      >>> @jax.custom_vjp
      ... def cube(x):
      ...     return x**3
      >>> cube.defvjp(lambda x: (x**3, x), lambda x, ct: (2 * x**2 * ct,))  # 2 should be 3
      >>> report = bnderiv.check.compare(cube, lambda x: x**3, jnp.array([1.0, -2.0]), modes=("value", "gradient"))
      >>> report.passed, [row.check for row in report.failures]
      (False, ['gradient'])
    """
    if not callable(f) or not (reference is None or callable(reference)):
        raise TypeError(f"f and reference must be callable (reference may be None), got {f!r} and {reference!r}")
    tolerances = dict(tolerances or {})
    chosen = (modes,) if isinstance(modes, str) else tuple(modes)
    for name, given in (("modes", chosen), ("tolerances", tolerances)):
        unknown = [mode for mode in given if mode not in MODES]
        if unknown:
            raise ValueError(f"{name} must be among {', '.join(MODES)}; got {', '.join(map(repr, unknown))}")
    if expected is not None and expected not in deliberate.EXPECTED:
        raise ValueError(f"expected must be one of {', '.join(deliberate.EXPECTED)}, or None; got {expected!r}")
    if modes is MODES:
        needless = "gradient" if reference is None else "finite_differences"
        chosen = tuple(mode for mode in chosen if mode != needless)
    title = _name(f) + (f" against {_name(reference)}" if reference is not None else " against finite differences")

    def attempt(arguments: Arguments) -> tuple[Point | None, list[Row]]:
        """The call, and rows about what keeps its gradient from being checked."""
        try:
            point = Point(f, reference, arguments, key, tolerances)
        except Exception as error:
            return None, [Row("value", "f raises", verdict=FAIL, note=where_raised(error))]
        if cotangent is not None:
            point.cotangent = point.flat_cotangent(cotangent)
        if not point.differentiable:
            return point, [*_rows(point, [m for m in chosen if m == "value"]), _nothing_to_differentiate(point)]
        error = _raises(point, "gradient")
        return point, [Row("structure", "the backward raises", verdict=FAIL, note=where_raised(error))] if error else []

    arguments = Arguments(f, args, argnums)
    point, failures = attempt(arguments)
    if failures and arguments.converts_numbers:
        # A Python number may have to stay one, such as an argument in nondiff_argnums.
        as_given = attempt(Arguments(f, args, argnums, static_numbers=True))
        if point is None or not as_given[1]:
            point, failures = as_given
    if point is None or failures:
        return Report(title, tuple(failures))

    rows: list[Row] = []
    no_truth = None if reference is None else _raises(point, "truth")
    if no_truth is not None and _raises(point, "true_value") is None and point.same_values:
        rows = [*_rows(point, [m for m in chosen if m == "value"]), _no_gradient(no_truth)]
        alone = Point(f, None, point.arguments, key, tolerances)
        alone.cotangent = point.cotangent
        point = alone
        chosen = tuple("finite_differences" if mode == "gradient" else mode for mode in chosen if mode != "value")
    rows = deliberate.excused(point, [*rows, *_rows(point, chosen)], expected)
    return Report(title, (*rows, *_gradient_not_compared(rows)))


def _rows(point: Point, chosen: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    with np.errstate(all="ignore"):  # infinity and NaN are compared, not warned of
        for mode in MODES:
            if mode in chosen:
                try:
                    rows.extend(_MODES[mode](point))
                except Exception as error:
                    rows.append(raised(mode, error))
    return _without_repeats(rows)


def _without_repeats(rows: Sequence[Row]) -> list[Row]:
    """The rows, without those of one mode that say again that the same line of f raised the same error."""
    kept: dict[Any, Row] = {}
    for i, row in enumerate(rows):
        kind, place = row.note.split(":")[0], row.note.rpartition("(at ")[2]
        raised_at_a_line = row.verdict == FAIL and row.error is None and "(at " in row.note
        kept.setdefault((row.mode, kind, place) if raised_at_a_line else i, row)
    return list(kept.values())


def _raises(point: Point, attribute: str) -> Exception | None:
    """The error that evaluating an attribute of the point raises."""
    try:
        getattr(point, attribute)
    except Exception as error:
        return error
    return None


def _no_gradient(error: Exception) -> Row:
    note = f"the reference has no gradient ({message(error)}): see finite differences"
    return Row("gradient", "gradient", verdict=NOT_AVAILABLE, note=note)


def _gradient_not_compared(rows: Sequence[Row]) -> list[Row]:
    """A failure if no check could compare the gradient itself, though some were asked to."""
    telling = [row for row in rows if row.mode in ("gradient", "finite_differences")]
    if not telling or any(row.verdict != NOT_AVAILABLE for row in telling):
        return []
    note = f"nothing here tells whether it is right: {telling[-1].note}"
    return [Row(telling[-1].mode, "the gradient itself", verdict=FAIL, note=note)]


def _nothing_to_differentiate(point: Point) -> Row:
    what = "output" if any(a.size for a in point.floats) else "argument"
    note = f"no {what} is a floating array with elements: there is no gradient to check"
    return Row("structure", "nothing to differentiate", verdict=FAIL, note=note)


def _name(f: Any) -> str:
    while hasattr(f, "func"):  # functools.partial
        f = f.func
    return getattr(f, "__qualname__", None) or getattr(f, "__name__", None) or type(f).__name__
