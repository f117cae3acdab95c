"""One function at one point: the arguments, the cotangent, the truth, and the comparison of arrays."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import derivatives, numbers
from bnderiv.check.problem import Arguments, is_inexact, random_draws
from bnderiv.check.report import FAIL, NOT_AVAILABLE, OK, Row


class Point:
    """The state that the modes share.

    Attributes:
      f, reference: the functions as given.
      h, r: the same two as functions (floats, carried) ↦ flat tuple of floating outputs.
      floats, carried: the arguments that are differentiated, and the other arrays.
      out_leaves, value: all outputs of `f`, and its floating outputs.
      cotangent: an array for each entry of `value`.
      kinks_found: whether a mode has found a kink at this point.
    """

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
        self.value = self.inexact(self.out_leaves)
        self.cotangent = self.draw(self.value, 1)
        self.kinks_found = False
        self.reported: list[Exception] = []
        self._same_draws: dict[Callable, bool] = {}

    def inexact(self, like: Sequence[Any]) -> tuple[jax.Array, ...]:
        """The floating and complex leaves."""
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
        """The user's cotangent, flat; raises ValueError if it does not fit the output."""
        try:
            leaves = self.out_tree.flatten_up_to(cotangent)
        except ValueError as error:
            raise ValueError(f"cotangent must have the structure of the output, {self.out_tree}: {error}") from None
        pairs = [(c, o) for c, o in zip(leaves, self.out_leaves, strict=True) if is_inexact(o)]
        for (c, _), o in zip(pairs, self.value, strict=True):
            if np.shape(c) != o.shape:
                raise ValueError(f"cotangent must have the shape of the output, {o.shape}, got {np.shape(c)}")
        return tuple(jnp.asarray(c, o.dtype) for (c, _), o in zip(pairs, self.value, strict=True))

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
    def gradient(self) -> tuple:
        """The gradient of the rule of `f`, eager."""
        return self._pulled[1]

    @property
    def _pulled(self) -> Any:
        if isinstance(self._gradient_or_error, Exception):
            raise self._gradient_or_error
        return self._gradient_or_error

    @cached_property
    def sizes(self) -> list[float]:
        """The largest element of each argument."""
        return [numbers.size_of(a) for a in self.floats]

    @cached_property
    def cancelled(self) -> list[numbers.Cancelled]:
        """For each argument, the terms that cancel in its gradient, estimated with three random cotangents.

        The gradient is computed in float64 and again with other roundings: in the dtype of the arguments, or, if that
        is float64, for three times the cotangent. It is the reference's, or that of `f` without a reference. Without
        float64 nothing is known.
        """
        cotangents = (self.cotangent, self.draw(self.value, 21), self.draw(self.value, 22))
        h, factor = self.h if self.r is None else self.r, 3 if self.in_double else 1
        try:
            exact = self.in_float64(derivatives.pulls, h, cotangents, self.floats, self.carried)
            cotangents = jax.tree.map(lambda c: factor * c, cotangents)
            others = derivatives.compiled(partial(derivatives.pulls, h))(cotangents, self.floats, self.carried)
            others = jax.tree.map(lambda g: g / factor, others)
            by_argument = zip(zip(*exact, strict=True), zip(*others, strict=True), strict=True)
            return [numbers.cancelled(*both) for both in by_argument]
        except Exception:
            return [numbers.Cancelled(0.0, False)] * len(self.floats)

    @property
    def names(self) -> list[str]:
        return self.arguments.float_names

    @property
    def inexact_names(self) -> list[str]:
        return [name for name, leaf in zip(self.out_names, self.out_leaves, strict=True) if is_inexact(leaf)]

    def tolerance(self, mode: str, table: dict[str, float]) -> float:
        dtypes = [a.dtype for a in (*self.floats, *self.value)]
        return self.tolerances.get(mode, numbers.lookup(table, dtypes))

    def nothing_to_differentiate(self, mode: str) -> Row:
        note = f"no {'output' if self.floats else 'argument'} is a floating array"
        return Row(mode, mode.replace("_", " "), verdict=NOT_AVAILABLE, note=note)

    def raised(self, mode: str, error: Exception, check: str = "", argument: str = "") -> Row:
        """A failed row. If the same exception was reported before, the row is "n/a" instead."""
        check = check or mode.replace("_", " ")
        if any(error is other for other in self.reported):
            return Row(mode, check, argument, NOT_AVAILABLE, note="the gradient raises, see above")
        self.reported.append(error)
        return Row(mode, check, argument, FAIL, note=message(error))

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
        gradient: bool = False,
    ) -> Iterator[Row]:
        """A row for each array; with `gradient`, for each argument.

        `own` returns the reference in the dtype of `f`, or with other roundings. If its rounding error exceeds the
        tolerance, four times that error is allowed, at most 100 times the tolerance. Without `own`, the rounding error
        of the gradient takes its place, at most 1,000 times the tolerance. A tolerance from the user is not widened.
        """
        if own is None or note:  # a truth with a note is not in float64
            magnitudes = numbers.magnitudes(expected)
        else:
            sizes = self.sizes if gradient else [1.0] * len(expected)
            magnitudes = numbers.magnitudes_of_the_truth(expected, sizes, own, [tolerance] * len(expected))
        for i, magnitude in enumerate(magnitudes):
            allowed, said = tolerance, note
            try:
                error, index = numbers.distance(actual[i], expected[i], magnitude)
            except ValueError as wrong:
                yield Row(mode, check, names[i], FAIL, note=str(wrong))
                continue
            if error > allowed and mode not in self.tolerances:
                magnitude, allowed, reason = self._allowed_by_roundings(
                    i, actual[i].dtype, expected[i], magnitude, tolerance, own, gradient
                )
                error, index = numbers.distance(actual[i], expected[i], magnitude)
                said = join(note, reason)
            if not error <= allowed:
                said = join(f"got {element(actual[i], index)}, expected {element(expected[i], index)}", said)
            yield Row(mode, check, names[i], OK if error <= allowed else FAIL, error, allowed, index, said)

    def _allowed_by_roundings(
        self, i: int, dtype: Any, expected: Any, magnitude: float, tolerance: float, own: Any, gradient: bool
    ) -> tuple[float, float, str]:
        """The magnitude and tolerance that the roundings of a failed array allow, and a note on the reason."""
        known = [numbers.cancelled([expected], [own()[i]])] if own is not None else []
        known += [self.cancelled[i]] if gradient else []
        for c in known:
            if c.explains(expected, jnp.float64 if own is not None else dtype):
                return max(magnitude, c.magnitude), tolerance, "it vanishes but for roundings"
        off = max((c.terms * numbers.ulp(dtype) / magnitude for c in known), default=0.0)
        if not tolerance < 4 * off < np.inf:
            return magnitude, tolerance, ""
        what, most = ("gradient", 1000) if own is None else ("reference", 100)
        return magnitude, min(4 * off, most * tolerance), f"the {what} itself is off by {off:.1e} in this dtype"

    @cached_property
    def pulled(self) -> tuple[Any, bool, str]:
        """Value and gradient of `f`, in float64 if possible."""
        return self.in_float64_or_own(derivatives.pull, self.cotangent, self.floats, self.carried)

    @cached_property
    def compiled(self) -> Callable:
        """Value and gradient of `f` as a compiled function of (cotangent, floats, carried)."""
        return derivatives.compiled(partial(derivatives.pull, self.h))

    @cached_property
    def compiled_reference(self) -> Callable:
        """The same for the reference."""
        return derivatives.compiled(partial(derivatives.pull, self.r))

    def in_float64(self, compute: Callable, h: Callable, *data: Any) -> Any:
        """`compute(h, *data)` with all data in float64.

        Raises:
          TypeError: the result is not in float64, or `h` would draw other random numbers there.
        """
        if not self._draws_the_same(h):
            raise TypeError("it would draw other random numbers")
        with jax.enable_x64(True):
            result = derivatives.compiled(partial(compute, h))(*(derivatives.widen(d) for d in data))
            for leaf in jax.tree.leaves(result):
                if leaf.dtype not in (jnp.float64, jnp.complex128):
                    raise TypeError(f"a result stays {leaf.dtype}")
            return jax.tree.map(np.asarray, result)

    def _draws_the_same(self, h: Callable) -> bool:
        """Whether `h` draws the same random bits for float64 arguments."""
        if h not in self._same_draws:
            drawn = random_draws(h, self.floats, self.carried)
            with jax.enable_x64(True):
                self._same_draws[h] = random_draws(h, derivatives.widen(self.floats), self.carried) == drawn
        return self._same_draws[h]

    def in_float64_or_own(self, compute: Callable, *data: Any) -> tuple[Any, bool, str]:
        """`compute(h, *data)`, whether it is in float64, and a note if it is not."""
        try:
            return self.in_float64(compute, self.h, *data), True, ""
        except Exception as error:
            own = derivatives.compiled(partial(compute, self.h))(*data)
            return own, False, f"in the arguments' own dtype: float64 does not work ({message(error)})"

    def expected(self, compute: Callable, *data: Any) -> tuple[Any, Callable[[], Any], str]:
        """The reference's result, a function that returns it in the dtype of `f`, and a note.

        The result is in float64; if that is not possible, it is in the dtype of `f`, and the note says why.
        """
        run = self.compiled_reference if compute is derivatives.pull else derivatives.compiled(partial(compute, self.r))
        own = lru_cache(lambda: run(*data))
        if self.in_double:
            return own(), own, ""
        try:
            return self.in_float64(compute, self.r, *data), own, ""
        except Exception as error:
            return own(), own, f"the reference cannot be evaluated in float64 ({message(error)})"

    @property
    def in_double(self) -> bool:
        return all(a.dtype in (jnp.float64, jnp.complex128) for a in (*self.floats, *self.value))

    def widened(self, cotangent: Any, double: bool) -> tuple[tuple[jax.Array, ...], Any]:
        """The arguments and a cotangent, in float64 if `double`."""
        if not double:
            return self.floats, cotangent
        with jax.enable_x64(True):
            return derivatives.widen(self.floats), derivatives.widen(cotangent)

    def moved(self, seed: int) -> tuple[jax.Array, ...]:
        """A point nearby: every element shrinks by up to a tenth, so signs and zeros stay."""
        rng = self.random(seed)
        return tuple(
            jnp.asarray((np.asarray(a) * (1 - 0.1 * rng.random(a.shape))).astype(a.dtype)) for a in self.floats
        )

    @cached_property
    def truth(self) -> tuple[Any, Callable[[], Any], str]:
        """Value and gradient of the reference, as `expected` returns them."""
        return self.expected(derivatives.pull, self.cotangent, self.floats, self.carried)


def element(array: Any, index: tuple[int, ...] | None) -> str:
    return "?" if index is None else f"{numbers.wide(array)[index]:.6g}"


def message(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"


def join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
