"""The checks: each a generator of rows, run in order; one that raises becomes a failed row, never a crash."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import derivatives, numbers
from bnderiv.check.problem import Arguments, custom_vjp_of, is_inexact, pull_back_directly
from bnderiv.check.report import FAIL, KINK, NOT_AVAILABLE, OK, Report, Row

MODES = (
    "value",
    "structure",
    "gradient",
    "float64",
    "finite_differences",
    "second_order",
    "jvp",
    "jit",
    "vmap",
    "scan",
    "checkpoint",
    "determinism",
    "linearity",
)


def compare(
    f: Callable,
    reference: Callable | None,
    *args: Any,
    cotangent: Any = None,
    key: jax.Array | None = None,
    modes: Sequence[str] = MODES,
    tolerances: Mapping[str, float] | None = None,
) -> Report:
    """Checks the gradient rule of `f` at `args`, in every way JAX may use it.

    The reference is the same function written plainly, with the same signature, and differentiated by JAX. It is
    evaluated in float64 wherever it can be, and what `f` computes in its own dtype is measured against that; without
    a reference, finite differences of `f` in float64 take its place. The sharpest look at a formula is at float64
    arguments; at float32 and narrower, rounding is looked at too.

    Cotangents are random, never the ones of `jax.grad(lambda x: f(x).sum())`. A plain sum sees only the sum over the
    rows of the Jacobian: an error that cancels there does not show, nor does a lost or transposed cotangent, all of
    whose elements are 1. Batch norm's gradient of a plain sum is zero, so that a rule returning zeros would pass.

    Modes:
      value: `f` equals the reference; and equals the value that `jax.vjp(f, ...)` returns (the rule's own forward).
      structure: each gradient has its argument's shape and dtype (JAX checks the shape, not the dtype); an integer
        argument is given none.
      gradient: the vector-Jacobian product equals autodiff of the reference.
      float64: rounding of value and gradient, in units of the last place of the largest element. At most 32, or four
        times what the reference makes in the same dtype.
      finite_differences: element by element, or along random directions where there are many, in float64. Run only
        without a reference, or when `modes` is given and names it.
      second_order: reverse over reverse and forward over reverse equal the reference's (or its differences).
      jvp: forward mode equals the reference's and is the transpose of reverse mode; a custom_vjp has none ("n/a").
      jit: as without it.
      vmap: over each argument alone and over all, as in a loop; what is shared receives the sum.
      scan, checkpoint: the gradient through a loop of calls, and recomputed, is that of each call.
      determinism: the same twice, to the bit, with a call at another point in between.
      linearity: a zero cotangent gives exactly zero, at extreme arguments too; scaled and added ones scale and add.

    A kink (relu at 0, ties of a maximum) is not a failure: where the differences from both sides disagree, however
    small the step, and the rule's value lies between them, the verdict is "kink". Second derivatives mean nothing at
    such a point, nor need forward mode agree there: check them at another.

    Args:
      f: the function with the rule; any pytrees of arguments and outputs. Bind keywords with `functools.partial`.
      reference: the same function for autodiff, or None.
      *args: where to check. Floating and complex arrays are differentiated, integer and boolean ones carried along; a
        Python number or any other object is passed as it is, so that static arguments stay static.
      cotangent: of the output's structure; drawn from `key` by default.
      key: of every random draw; `jax.random.key(0)` by default.
      modes: the groups of checks to run, of `bnderiv.check.MODES`.
      tolerances: by mode, in place of the defaults for the dtype: relative to the largest element, in ulps for float64.

    Returns:
      A `Report`: print it, show it in a notebook, ask `.passed`, or call `.raise_if_failed()` in a test.

    Raises:
      TypeError: `f` or `reference` cannot be called.
      ValueError: an unknown mode, or a cotangent of another structure or shape than the output.
    """
    if not callable(f) or not (reference is None or callable(reference)):
        raise TypeError(f"f and reference must be callable (reference may be None), got {f!r} and {reference!r}")
    tolerances = dict(tolerances or {})
    chosen = (modes,) if isinstance(modes, str) else tuple(modes)
    for name, given in (("modes", chosen), ("tolerances", tolerances)):
        unknown = [mode for mode in given if mode not in MODES]
        if unknown:
            raise ValueError(f"{name} must be among {', '.join(MODES)}; got {', '.join(map(repr, unknown))}")
    differences_wanted = reference is None or (modes is not MODES and "finite_differences" in chosen)

    title = _name(f) + (f" against {_name(reference)}" if reference is not None else " against finite differences")
    try:
        check = _Comparison(f, reference, args, key, tolerances)
    except Exception as error:
        return Report(title, (Row("value", "call", verdict=FAIL, note=_message(error)),))
    if cotangent is not None:
        check.cotangent = check.given_cotangent(cotangent)
    rows: list[Row] = []
    for mode in MODES:
        if mode not in chosen or (mode == "finite_differences" and not differences_wanted):
            continue
        try:
            for row in getattr(check, mode)():
                rows.append(row)
        except Exception as error:
            rows.append(check.raised(mode, error))
    return Report(title, tuple(rows))


class _Comparison:
    """One f at one point: each mode is a method that yields rows."""

    def __init__(self, f: Callable, reference: Any, args: tuple, key: Any, tolerances: dict[str, float]):
        self.f, self.tolerances = f, tolerances
        self.reference: Any = reference
        bits = jax.random.bits(jax.random.key(0) if key is None else key, (4,))
        self.entropy = [int(b) for b in np.asarray(bits)]
        self.arguments = a = Arguments(f, args)
        self.floats, self.carried = a.floats, a.carried
        self.h = a.bind(f)
        self.r: Any = None if reference is None else a.bind(reference)
        self.out = f(*a.rebuild(a.floats, a.carried))
        flat, self.out_tree = jax.tree_util.tree_flatten_with_path(self.out)
        self.out_leaves = [leaf for _, leaf in flat]
        self.out_names = ["output" + jax.tree_util.keystr(path) for path, _ in flat]
        self.value_ = self.inexact(self.out_leaves)
        self.cotangent = self.draw(self.value_, 1)
        self.kinks_found = False
        self.reported: list[Exception] = []

    def inexact(self, like: Sequence[Any]) -> tuple[jax.Array, ...]:
        return tuple(jnp.asarray(leaf) for leaf in like if is_inexact(leaf))

    def random(self, seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, *self.entropy])

    def draw(self, like: Sequence[Any], seed: int) -> tuple[jax.Array, ...]:
        """Standard normal numbers of these shapes and dtypes."""
        rng = self.random(seed)

        def normal(a: Any) -> jax.Array:
            numbers_ = rng.standard_normal(a.shape)
            if jnp.issubdtype(a.dtype, jnp.complexfloating):
                numbers_ = numbers_ + 1j * rng.standard_normal(a.shape)
            return jnp.asarray(np.asarray(numbers_).astype(a.dtype))

        return tuple(normal(a) for a in like)

    def given_cotangent(self, cotangent: Any) -> tuple[jax.Array, ...]:
        try:
            leaves = self.out_tree.flatten_up_to(cotangent)
        except ValueError as error:
            raise ValueError(f"cotangent must have the structure of the output, {self.out_tree}: {error}") from None
        pairs = [(c, o) for c, o in zip(leaves, self.out_leaves, strict=True) if is_inexact(o)]
        for (c, _), o in zip(pairs, self.value_, strict=True):
            if np.shape(c) != o.shape:
                raise ValueError(f"cotangent must have the shape of the output, {o.shape}, got {np.shape(c)}")
        return tuple(jnp.asarray(c, o.dtype) for (c, _), o in zip(pairs, self.value_, strict=True))

    # What every mode needs.

    @cached_property
    def _gradient_or_error(self) -> Any:
        try:
            return derivatives.pull(self.h, self.cotangent, self.floats, self.carried)
        except Exception as error:
            return error

    @property
    def forward_value(self) -> tuple:
        return self._pulled[0]

    @property
    def gradient_(self) -> tuple:
        """The gradient as `f`'s rule returns it, without jit."""
        return self._pulled[1]

    @property
    def _pulled(self) -> Any:
        if isinstance(self._gradient_or_error, Exception):
            raise self._gradient_or_error
        return self._gradient_or_error

    @property
    def names(self) -> list[str]:
        return self.arguments.float_names

    @property
    def inexact_names(self) -> list[str]:
        return [name for name, leaf in zip(self.out_names, self.out_leaves, strict=True) if is_inexact(leaf)]

    def tolerance(self, mode: str, table: dict[str, float]) -> float:
        dtypes = [a.dtype for a in (*self.floats, *self.value_)]
        return self.tolerances.get(mode, numbers.lookup(table, dtypes))

    def raised(self, mode: str, error: Exception, check: str = "", argument: str = "") -> Row:
        """A failed row; where the same exception has failed one before, that one is enough."""
        check = check or mode.replace("_", " ")
        if any(error is other for other in self.reported):
            return Row(mode, check, argument, NOT_AVAILABLE, note="the gradient raises, see above")
        self.reported.append(error)
        return Row(mode, check, argument, FAIL, note=_message(error))

    def rows(
        self,
        mode: str,
        check: str,
        names: Sequence[str],
        actual: Sequence[Any],
        expected: Sequence[Any],
        tolerance: float,
        note: str = "",
        own: Callable[[], Sequence[Any]] | None = None,
    ) -> Iterator[Row]:
        """A row per array. `own` gives the reference in the dtype of `f`: where its rounding alone is more than the
        tolerance (at most 100 times), four times that is allowed; an explicit tolerance stands."""
        for i, scale in enumerate(numbers.scales(expected)):
            allowed, said = tolerance, note
            try:
                error, index = numbers.distance(actual[i], expected[i], scale)
            except ValueError as wrong:
                yield Row(mode, check, names[i], FAIL, note=str(wrong))
                continue
            if error > allowed and own is not None and mode not in self.tolerances:
                rounding = 4 * numbers.distance(own()[i], expected[i], scale).error
                if tolerance < rounding < np.inf:
                    allowed = min(rounding, 100 * tolerance)
                    said = _join(note, f"the reference itself is off by {rounding / 4:.1e} in this dtype")
            if not error <= allowed:
                said = _join(f"got {_element(actual[i], index)}, expected {_element(expected[i], index)}", said)
            yield Row(mode, check, names[i], OK if error <= allowed else FAIL, error, allowed, index, said)

    @cached_property
    def compiled(self) -> Callable:
        """Value and gradient of `f`, of anything shaped like its arguments."""
        return derivatives.compiled(partial(derivatives.pull, self.h))

    @cached_property
    def compiled_reference(self) -> Callable:
        return derivatives.compiled(partial(derivatives.pull, self.r))

    def in_float64(self, compute: Callable, h: Callable, *data: Any) -> Any:
        """`compute(h, *data)` with everything widened; raises where the result does not come out in float64."""
        with jax.enable_x64(True):
            result = derivatives.compiled(partial(compute, h))(*(derivatives.widen(d) for d in data))
            for leaf in jax.tree.leaves(result):
                if leaf.dtype not in (jnp.float64, jnp.complex128):
                    raise TypeError(f"a result stays {leaf.dtype}")
            return jax.tree.map(np.asarray, result)

    def expected(self, compute: Callable, *data: Any) -> tuple[Any, Callable[[], Any], str]:
        """The reference's result in float64 (in the dtype of `f` where that cannot be), how to get it in that of `f`,
        and a note."""
        run = self.compiled_reference if compute is derivatives.pull else derivatives.compiled(partial(compute, self.r))
        own = lru_cache(lambda: run(*data))
        if self.in_double:
            return own(), own, ""
        try:
            return self.in_float64(compute, self.r, *data), own, ""
        except Exception as error:
            return own(), own, f"the reference cannot be evaluated in float64 ({_message(error)})"

    @property
    def in_double(self) -> bool:
        return all(a.dtype in (jnp.float64, jnp.complex128) for a in (*self.floats, *self.value_))

    def moved(self, seed: int) -> tuple[jax.Array, ...]:
        """Another point near by: every element shrunk by up to a tenth, which keeps signs and zeros."""
        rng = self.random(seed)
        return tuple(
            jnp.asarray((np.asarray(a) * (1 - 0.1 * rng.random(a.shape))).astype(a.dtype)) for a in self.floats
        )

    # A kink is no error.

    def forgive_kinks(
        self, rows: Iterator[Row], function: Callable, cotangent: Any, actual: Sequence[Any], expected: Sequence[Any]
    ) -> Iterator[Row]:
        """The rows of a gradient, in the order of the arguments; a failure that a kink explains becomes one."""
        for i, row in enumerate(rows):
            if row.verdict == FAIL and row.error is not None:
                try:
                    if self.is_kink(function, cotangent, actual[i], _off(actual[i], expected[i], row), i):
                        self.kinks_found = True
                        row = replace(row, verdict=KINK, note=_KINK)
                except Exception as error:  # the failure stands
                    row = replace(row, note=_join(row.note, f"looking for a kink: {_message(error)}"))
            yield row

    def is_kink(
        self, function: Callable, cotangent: Any, gradient: Any, elements: Sequence[int], i: int, double: bool = True
    ) -> bool:
        """The two sides of `function` differ in each of these elements of argument `i`, the gradient lies between.

        Also along all of them at once: of elements that tie for a maximum, each may have 0 or 1, but not all the same.
        """
        with jax.enable_x64(True) if double else contextlib.nullcontext():
            point, cotangent = (
                (derivatives.widen(self.floats), derivatives.widen(cotangent)) if double else (self.floats, cotangent)
            )
            directions, _ = numbers.unit_directions(point[i], elements)
            together = np.sum(directions, axis=0)
            run = derivatives.compiled(lambda floats: function(floats, self.carried))
            found = numbers.differences(run, cotangent, point, gradient, i, [*directions, together])
        smooth = np.abs(found.claimed - found.central) <= 1e-4 * np.abs(found.central) + 1e-12
        return bool(found.kink[:-1].all() and (found.kink[-1] or smooth[-1]))

    def at_a_kink(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Where the first derivative has been seen to jump, what derives from it need not agree."""
        for row in rows:
            yield replace(row, verdict=KINK, note=_KINK) if row.verdict == FAIL and self.kinks_found else row

    @cached_property
    def truth(self) -> tuple[Any, Callable[[], Any], str]:
        """Value and gradient of the reference: in float64, in the dtype of `f`, and a note where the first is not."""
        return self.expected(derivatives.pull, self.cotangent, self.floats, self.carried)

    # The modes.

    def value(self) -> Iterator[Row]:
        names = self.inexact_names
        if self.r is not None:
            tolerance = self.tolerance("value", numbers.FORMULA)
            try:
                unlike = list(self.unlike())
                yield from unlike
                if not any(row.verdict == FAIL for row in unlike):
                    (expected, _), own, note = self.truth
                    yield from self.rows(
                        "value", "value", names, self.value_, expected, tolerance, note, lambda: own()[0]
                    )
            except Exception as error:
                yield self.raised("value", error)
        tolerance = self.tolerance("value", numbers.SAME)
        yield from self.rows("value", "primal = fwd", names, self.forward_value, self.value_, tolerance)

    def unlike(self) -> Iterator[Row]:
        """Outputs that differ from the reference's in number, shape or dtype, and all integer ones."""
        leaves = jax.tree.leaves(self.reference(*self.arguments.rebuild(self.floats, self.carried)))
        if len(leaves) != len(self.out_leaves):
            note = f"{len(self.out_leaves)} arrays, the reference returns {len(leaves)}"
            yield Row("value", "value", "output", FAIL, note=note)
            return
        for name, mine, other in zip(self.out_names, self.out_leaves, leaves, strict=True):
            about = (np.shape, "shape"), (jnp.result_type, "dtype")
            differs = [
                f"{what} {of(mine)}, the reference's is {of(other)}" for of, what in about if of(mine) != of(other)
            ]
            if differs:
                yield Row("value", "value", name, FAIL, note="; ".join(differs))
            elif not is_inexact(mine):
                same = bool(np.array_equal(np.asarray(mine), np.asarray(other)))
                yield Row("value", "value", name, OK if same else FAIL, note="" if same else "differs")

    def structure(self) -> Iterator[Row]:
        if not self.floats:
            yield Row("structure", "structure", verdict=NOT_AVAILABLE, note="no argument is a floating array")
        for name, a, g in zip(self.names, self.floats, self.gradient_, strict=True):
            wrong = [
                f"{what} {mine}, the argument's is {its}"
                for what, mine, its in (("shape", g.shape, a.shape), ("dtype", g.dtype, a.dtype))
                if mine != its
            ]
            yield Row("structure", "structure", name, FAIL if wrong else OK, note="; ".join(wrong))
        yield from self.integers()
        for name, leaf in self.arguments.static:
            if isinstance(leaf, (float, complex)):
                note = "a Python number, passed as it is: give an array to differentiate it"
                yield Row("structure", "structure", name, NOT_AVAILABLE, note=note)

    def integers(self) -> Iterator[Row]:
        """JAX drops what a rule returns for an integer argument; where `f` is the rule itself, it can be asked."""
        rule = custom_vjp_of(self.f)
        if rule is None or not self.arguments.carried:
            return
        args = self.arguments.rebuild(self.floats, self.carried)
        filled = iter(self.cotangent)
        leaves = [next(filled) if is_inexact(o) else np.zeros(np.shape(o), jax.dtypes.float0) for o in self.out_leaves]
        try:
            grads = pull_back_directly(rule, args, jax.tree.unflatten(self.out_tree, leaves))
        except Exception:  # another calling convention, such as symbolic zeros
            return
        for name, i in zip(self.arguments.carried_names, self.arguments.carried_positions, strict=True):
            given = [g for g in jax.tree.leaves(grads[i]) if getattr(g, "dtype", None) != jax.dtypes.float0]
            wrong = _is_array(args[i]) and any(np.any(np.asarray(g) != 0) for g in given)
            note = f"an integer argument is given a gradient of dtype {given[0].dtype}; JAX drops it" if wrong else ""
            yield Row("structure", "structure", name, FAIL if wrong else OK, note=note)

    def gradient(self) -> Iterator[Row]:
        if self.r is None:
            return
        (_, expected), own, note = self.truth
        tolerance = self.tolerance("gradient", numbers.FORMULA)
        rows = self.rows(
            "gradient", "gradient", self.names, self.gradient_, expected, tolerance, note, lambda: own()[1]
        )
        yield from self.forgive_kinks(rows, self.r, self.cotangent, self.gradient_, expected)

    def float64(self) -> Iterator[Row]:
        if self.in_double:
            yield Row("float64", "float64", verdict=NOT_AVAILABLE, note="the arguments are float64 already")
            return
        h = self.h if self.r is None else self.r
        try:
            expected = self.in_float64(derivatives.pull, h, self.cotangent, self.floats, self.carried)
        except Exception as error:
            note = f"cannot be evaluated in float64: {_message(error)}"
            yield Row("float64", "float64", verdict=NOT_AVAILABLE, note=note)
            return
        own = (None, None) if self.r is None else self.truth[1]()
        yield from self.ulps("value", self.inexact_names, self.value_, expected[0], own[0])
        rows = self.ulps("gradient", self.names, self.gradient_, expected[1], own[1])
        yield from self.forgive_kinks(rows, h, self.cotangent, self.gradient_, expected[1])

    def ulps(self, what: str, names: Sequence[str], actual: Any, expected: Any, own: Any) -> Iterator[Row]:
        for i, scale in enumerate(numbers.scales(expected)):
            unit = numbers.ulp(actual[i].dtype)
            error, index = numbers.distance(actual[i], expected[i], scale)
            allowed, note = self.tolerances.get("float64", numbers.ULPS), ""
            if own is not None:
                others = numbers.distance(own[i], expected[i], scale).error / unit
                note = f"the reference: {others:.3g} ulp"
                if "float64" not in self.tolerances and 4 * others < np.inf:
                    allowed = max(allowed, 4 * others)
            verdict = OK if error / unit <= allowed else FAIL
            if verdict == FAIL:
                note = _join(f"got {_element(actual[i], index)}, expected {_element(expected[i], index)}", note)
            yield Row("float64", f"float64: {what}", names[i], verdict, error / unit, allowed, index, note, "ulp")

    def finite_differences(self) -> Iterator[Row]:
        cotangent, floats, gradient, note = self.cotangent, self.floats, self.gradient_, ""
        double = True
        try:
            gradient = self.in_float64(derivatives.pull, self.h, cotangent, floats, self.carried)[1]
        except Exception as error:
            double, note = False, f"in the arguments' own dtype: float64 does not work ({_message(error)})"
        yield from self.differenced(
            "finite_differences", "finite differences", self.h, cotangent, gradient, double, note
        )

    def differenced(
        self, mode: str, check: str, function: Callable, cotangent: Any, gradient: Any, double: bool, note: str = ""
    ) -> Iterator[Row]:
        """A row per argument: the claimed gradient of ⟨cotangent, function⟩ beside differences of it."""
        with jax.enable_x64(True) if double else contextlib.nullcontext():
            floats, cotangent = (
                (derivatives.widen(self.floats), derivatives.widen(cotangent)) if double else (self.floats, cotangent)
            )
        tolerance = numbers.DIFFERENCES["float64"] if double else numbers.lookup(numbers.DIFFERENCES, _dtypes(floats))
        tolerance = self.tolerances.get(mode, tolerance)
        for i, (name, scale) in enumerate(zip(self.names, numbers.scales(gradient), strict=True)):
            with jax.enable_x64(True) if double else contextlib.nullcontext():
                run = derivatives.compiled(lambda floats: function(floats, self.carried))
                if floats[i].size <= numbers.MANY:
                    directions, index = numbers.unit_directions(floats[i], range(floats[i].size))
                else:
                    directions, index = numbers.random_directions(floats[i], self.random(9)), None
                found = numbers.differences(run, cotangent, floats, gradient[i], i, directions)
            size = max(scale, numbers.scales([found.central])[0] if found.central.any() else 0.0)
            errors = np.abs(found.claimed - found.central) / size
            errors = np.where(np.isnan(errors), np.inf, errors)
            worst = int(errors.argmax()) if errors.size else 0
            error = float(errors[worst]) if errors.size else 0.0
            place = index[worst] if index is not None and error > 0 else None
            row = Row(mode, check, name, OK, error, tolerance, place, note)
            if error > tolerance:
                off = np.flatnonzero(errors > tolerance)
                wrong = f"got {found.claimed[worst]:.6g}, differences say {found.central[worst]:.6g}"
                row = replace(row, verdict=FAIL, note=_join(wrong, note))
                if found.kink[off].all():
                    elements = (
                        [] if index is None else [int(np.ravel_multi_index(index[j], floats[i].shape)) for j in off]
                    )
                    if index is None or self.is_kink(
                        function, cotangent, gradient[i], sorted(set(elements)), i, double
                    ):
                        row = replace(row, verdict=KINK, note=_KINK)
                        self.kinks_found = True
            yield row

    def second_order(self) -> Iterator[Row]:
        direction = self.draw(self.floats, 2)
        data = (self.cotangent, direction, self.floats, self.carried)
        tolerance = self.tolerance("second_order", numbers.FORMULA)
        projected = partial(derivatives.projected, self.h if self.r is None else self.r, direction)
        # Second derivatives are symmetric: the reference's are the same in both orders of differentiation.
        symmetric = None if self.r is None else self.expected(derivatives.grad_of_grad, *data)
        for check, compute in (("grad of grad", derivatives.grad_of_grad), ("jvp of grad", derivatives.jvp_of_grad)):
            check = f"second order: {check}"
            try:
                if symmetric is not None:
                    actual = derivatives.compiled(partial(compute, self.h))(*data)
                    expected, own, note = symmetric
                    rows = self.rows("second_order", check, self.names, actual, expected, tolerance, note, own)
                    gradient_at = partial(projected, self.cotangent)
                    rows = self.forgive_kinks(rows, gradient_at, (np.ones(()),), actual, expected)
                else:
                    actual = self.in_float64(compute, self.h, *data)
                    with jax.enable_x64(True):
                        gradient_at = partial(projected, derivatives.widen(self.cotangent))
                    rows = self.differenced("second_order", check, gradient_at, (np.ones(()),), actual, True)
                yield from self.at_a_kink(rows)
            except Exception as error:
                yield self.raised("second_order", error, check)

    def jvp(self) -> Iterator[Row]:
        tangents = self.draw(self.floats, 3)
        try:
            _, pushed = derivatives.push(self.h, tangents, self.floats, self.carried)
        except TypeError as error:
            if "custom_vjp" not in str(error):
                raise
            note = "a custom_vjp has no forward mode"
            yield Row("jvp", "jvp", verdict=NOT_AVAILABLE, note=note)
            return
        tolerance = self.tolerance("jvp", numbers.FORMULA)
        if self.r is not None:
            expected, own, note = self.expected(derivatives.push, tangents, self.floats, self.carried)
            rows = self.rows("jvp", "jvp", self.inexact_names, pushed, expected[1], tolerance, note, lambda: own()[1])
            yield from self.at_a_kink(rows)
        pairs = (self.cotangent, pushed), (self.gradient_, tangents)
        left, right = (sum(float(np.real(wide(a) * wide(b)).sum()) for a, b in zip(*p, strict=True)) for p in pairs)
        terms = sum(float(np.abs(wide(a) * wide(b)).sum()) for a, b in zip(*pairs[0], strict=True))
        error = abs(left - right) / (terms or 1.0)
        verdict = OK if error <= tolerance else FAIL
        note = "" if verdict == OK else f"⟨ct, J v⟩ is {left:.6g}, ⟨Jᵀ ct, v⟩ is {right:.6g}"
        yield Row("jvp", "jvp: transpose of the vjp", "", verdict, error, tolerance, None, note)

    def jit(self) -> Iterator[Row]:
        value, gradient = jax.jit(partial(derivatives.pull, self.h))(self.cotangent, self.floats, self.carried)
        tolerance = self.tolerance("jit", numbers.SAME)
        yield from self.rows("jit", "jit: value", self.inexact_names, value, self.value_, tolerance)
        yield from self.rows("jit", "jit: gradient", self.names, gradient, self.gradient_, tolerance)

    def vmap(self) -> Iterator[Row]:
        points = [self.floats, self.moved(11), self.moved(12)]
        rolled = [tuple(jnp.roll(a, k) if _is_numeric(a) else a for a in self.carried) for k in range(3)]
        count = len(self.floats)
        arrays = [(*p, *c) for p, c in zip(points, rolled, strict=True)]
        names = (*self.names, *self.arguments.carried_names)
        mappable = [i for i, a in enumerate(arrays[0]) if i < count or _is_numeric(a)]
        choices = [(names[i], {i}) for i in mappable]
        if len(mappable) > 1:
            choices.append(("(all)", set(mappable)))
        for name, mapped in choices:
            try:
                yield self.mapped(name, mapped, arrays, count)
            except Exception as error:
                yield self.raised("vmap", error, "vmap", name)

    def mapped(self, name: str, mapped: set[int], arrays: Sequence[Sequence[Any]], count: int) -> Row:
        """vmap over some arguments against a loop; what is not mapped is given the sum of its gradients."""
        axes = [0 if i in mapped else None for i in range(len(arrays[0]))]
        stacked = [jnp.stack(a) if i in mapped else a[0] for i, a in enumerate(zip(*arrays, strict=True))]
        calls = [[a[i] if i in mapped else arrays[0][i] for i in range(len(a))] for a in arrays]
        function = jax.vmap(self.h, (tuple(axes[:count]), tuple(axes[count:])))
        outs = [jnp.stack([o, o, o]) for o in self.value_]
        cotangent = self.draw(outs, 13)
        loop = [
            self.compiled(tuple(c[k] for c in cotangent), tuple(call[:count]), tuple(call[count:]))
            for k, call in enumerate(calls)
        ]
        actual = derivatives.compiled(partial(derivatives.pull, function))(
            cotangent, tuple(stacked[:count]), tuple(stacked[count:])
        )
        values = [np.stack(o) for o in zip(*(v for v, _ in loop), strict=True)]
        gradients = [np.stack(g) for g in zip(*(g for _, g in loop), strict=True)]
        gradients = [g if i in mapped else numbers.wide(g).sum(0) for i, g in enumerate(gradients)]
        tolerance = self.tolerance("vmap", numbers.SAME)
        worst = Row("vmap", "vmap", name, OK, 0.0, tolerance)
        named = (("value", self.inexact_names, actual[0], values), ("gradient", self.names, actual[1], gradients))
        for what, names, mine, expected in named:
            for row in self.rows("vmap", "vmap", names, mine, expected, tolerance):
                if row.error is None or row.error > (worst.error or 0.0):
                    note = _join(f"{what} of {row.argument}", row.note) if row.verdict == FAIL else ""
                    worst = replace(row, argument=name, note=note)
                    if row.error is None:
                        return worst
        return worst

    def scan(self) -> Iterator[Row]:
        points = [self.floats, self.moved(11), self.moved(12)]

        def total(stacked: Any) -> Any:
            def step(sum_: Any, floats: Any) -> Any:
                return sum_ + numbers.dot(self.h(floats, self.carried), self.cotangent).astype(sum_.dtype), None

            start = jnp.zeros((), numbers.dot(self.value_, self.cotangent).dtype)
            return jax.lax.scan(step, start, stacked)[0]

        loop = [self.compiled(self.cotangent, floats, self.carried)[1] for floats in points]
        expected = [np.stack(g) for g in zip(*loop, strict=True)]
        actual = derivatives.compiled(jax.grad(total))(tuple(jnp.stack(a) for a in zip(*points, strict=True)))
        yield from self.rows("scan", "scan", self.names, actual, expected, self.tolerance("scan", numbers.SAME))

    def checkpoint(self) -> Iterator[Row]:
        h = jax.checkpoint(self.h)
        _, actual = derivatives.compiled(partial(derivatives.pull, h))(self.cotangent, self.floats, self.carried)
        tolerance = self.tolerance("checkpoint", numbers.SAME)
        yield from self.rows("checkpoint", "checkpoint", self.names, actual, self.gradient_, tolerance)

    def determinism(self) -> Iterator[Row]:
        """Without jit, so that Python state is read anew each time."""
        value, pull = jax.vjp(lambda *floats: self.h(floats, self.carried), *self.floats)
        before = pull(self.cotangent)
        elsewhere = self.moved(11)
        self.h(elsewhere, self.carried)
        derivatives.pull(self.h, self.draw(self.value_, 14), elsewhere, self.carried)
        after = pull(self.cotangent)
        again = derivatives.pull(self.h, self.cotangent, self.floats, self.carried)
        tolerance = self.tolerances.get("determinism", 0.0)
        check = "determinism"
        yield from self.rows("determinism", f"{check}: value", self.inexact_names, again[0], value, tolerance)
        for what, other in (("called again", again[1]), ("after a call elsewhere", after)):
            yield from self.rows("determinism", f"{check}: {what}", self.names, other, before, tolerance)

    def linearity(self) -> Iterator[Row]:
        _, pull = jax.vjp(lambda *floats: self.h(floats, self.carried), *self.floats)
        zero = tuple(jnp.zeros_like(c) for c in self.cotangent)
        yield from self.exactly_zero("linearity: zero", pull(zero))
        tolerance = self.tolerance("linearity", numbers.SAME)
        other = self.draw(self.value_, 4)
        one, two = pull(self.cotangent), pull(other)
        scaled = pull(tuple(c * jnp.asarray(-3, c.dtype) for c in self.cotangent))
        expected = [-3 * wide(g) for g in one]
        yield from self.rows("linearity", "linearity: scaled by -3", self.names, scaled, expected, tolerance)
        added = pull(tuple(a + b for a, b in zip(self.cotangent, other, strict=True)))
        expected = [wide(a) + wide(b) for a, b in zip(one, two, strict=True)]
        yield from self.rows("linearity", "linearity: sum of two", self.names, added, expected, tolerance)
        for exponent in (1, -1):
            yield from self.extreme_zero(zero, exponent)

    def exactly_zero(self, check: str, gradient: Sequence[Any], natural: Sequence[bool] | None = None) -> Iterator[Row]:
        """`natural`: which gradients autodiff of the plain function does not keep at zero either."""
        for i, (name, g) in enumerate(zip(self.names, gradient, strict=True)):
            error, index = numbers.distance(g, np.zeros(g.shape), 1.0)
            if error and natural is not None and natural[i]:
                note = "not zero, as in plain autodiff (0 · ∞)"
                yield Row("linearity", check, name, NOT_AVAILABLE, note=note)
                continue
            note = f"a zero cotangent gives {_element(g, index)}" if error else ""
            yield Row("linearity", check, name, FAIL if error else OK, error, 0.0, index, note)

    def extreme_zero(self, zero: tuple, exponent: int) -> Iterator[Row]:
        """A zero cotangent where residuals are about the root of the largest (smallest) number of the dtype."""

        def extreme(a: jax.Array) -> jax.Array:
            power = exponent * (jnp.finfo(a.dtype).maxexp // 2 - 4)
            return a * jnp.asarray(2.0**power, a.dtype)

        check = f"linearity: zero, arguments {'huge' if exponent > 0 else 'tiny'}"
        floats = tuple(extreme(a) for a in self.floats)
        out, gradient = derivatives.pull(self.h, zero, floats, self.carried)
        if self.r is not None:
            plain = self.compiled_reference(zero, floats, self.carried)[1]
            natural = [not bool(np.all(wide(g) == 0)) for g in plain]
        else:
            finite = all(bool(np.isfinite(wide(o)).all()) for o in out)
            natural = [not finite] * len(self.floats)
        yield from self.exactly_zero(check, gradient, natural)


_KINK = "no derivative here: the two sides differ, and the rule lies between them"

wide = numbers.wide


def _off(actual: Any, expected: Any, row: Row) -> list[int]:
    """The elements that made a row fail, at most as many as can be differenced, the worst first."""
    with np.errstate(all="ignore"):
        apart = np.abs(wide(actual) - wide(expected)).ravel()
    limit = apart.max() * (row.tolerance or 0.0) / row.error if row.error and np.isfinite(row.error) else 0.0
    order = np.argsort(-apart, kind="stable")
    return [int(j) for j in order[: numbers.MANY] if not apart[j] <= limit]


def _is_array(a: Any) -> bool:
    return isinstance(a, jax.Array)


def _is_numeric(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.integer) or jnp.issubdtype(a.dtype, jnp.bool_)


def _dtypes(arrays: Sequence[Any]) -> list[Any]:
    return [a.dtype for a in arrays]


def _element(array: Any, index: tuple[int, ...] | None) -> str:
    return "?" if index is None else f"{wide(array)[index]:.6g}"


def _message(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _name(f: Any) -> str:
    while hasattr(f, "func"):  # functools.partial
        f = f.func
    return getattr(f, "__qualname__", None) or getattr(f, "__name__", None) or type(f).__name__
