"""One function at one point: its arguments, its cotangent, and what can be evaluated there. `judge.py` compares."""

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import derivatives, numbers
from bnderiv.check.problem import Arguments, coarsest_ulp, is_inexact, random_draws
from bnderiv.check.report import message
from bnderiv.check.roundings import Roundings, measured
from bnderiv.check.slopes import Lines


class Truth(NamedTuple):
    """What the reference says."""

    arrays: Any  # in float64 if possible
    own: Callable[[], Any]  # the same in the dtype of `f`
    roundings: Callable[[], list[Roundings]]  # of the reference in the dtype of `f`, for each array
    note: str  # why it is not in float64


class Point:
    """The state that the modes share.

    Attributes:
      f, reference: the functions as given.
      h, r: the same two as functions (floats, carried) ↦ flat tuple of floating outputs.
      floats, carried: the arguments that are differentiated, and the other arrays.
      out_leaves, value: all outputs of `f`, and its floating outputs.
      cotangent: an array for each entry of `value`.
      no_truth: why derived checks have no truth here, once a mode has found that out.
      differenced: the gradient by finite differences, for each argument where every element was measured.
    """

    def __init__(self, f: Callable, reference: Any, arguments: Arguments, key: Any, tolerances: dict[str, float]):
        self.f, self.tolerances = f, tolerances
        self.reference: Any = reference
        bits = jax.random.bits(jax.random.key(0) if key is None else key, (4,))
        self.entropy = [int(b) for b in np.asarray(bits)]
        self.arguments = a = arguments
        self.floats, self.carried = a.floats, a.carried
        self.h = a.bind(f)
        self.r: Any = None if reference is None else a.bind(reference)
        given = derivatives.fresh(a.floats), derivatives.fresh(a.carried)
        self.out = f(*a.rebuild(*given))
        if any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(given)):
            self.h = jax.jit(self.h)  # f donates its arguments, which JAX ignores within an outer jit
        flat, self.out_tree = jax.tree_util.tree_flatten_with_path(self.out)
        self.out_leaves = [leaf for _, leaf in flat]
        self.out_names = ["output" + jax.tree_util.keystr(path) for path, _ in flat]
        self.value = tuple(jnp.asarray(leaf) for leaf in self.out_leaves if is_inexact(leaf))
        self.cotangent = self.draw(self.value, 1)
        self.no_truth = ""
        self.differenced: dict[int, np.ndarray] = {}
        self.program = lru_cache(maxsize=None)(self._program)
        self._same_draws: dict[Callable, bool] = {}

    # Random draws

    def random(self, seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, *self.entropy])

    def draw(self, like: Sequence[Any], seed: int) -> tuple[jax.Array, ...]:
        """Standard normal numbers of these shapes and dtypes."""
        rng = self.random(seed)

        def normal(a: Any) -> jax.Array:
            numbers_ = rng.standard_normal(a.shape)
            if jnp.issubdtype(a.dtype, jnp.complexfloating):
                numbers_ = numbers_ + 1j * rng.standard_normal(a.shape)
            return jax.device_put(np.asarray(numbers_).astype(a.dtype))  # for which nothing is compiled

        return tuple(normal(a) for a in like)

    def moved(self, seed: int) -> tuple[jax.Array, ...]:
        """A point nearby: every element shrinks by up to a tenth, so signs and zeros stay."""
        rng = self.random(seed)
        return tuple(
            jax.device_put((np.asarray(a) * (1 - 0.1 * rng.random(a.shape))).astype(a.dtype)) for a in self.floats
        )

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

    # Names and dtypes

    @property
    def names(self) -> list[str]:
        return self.arguments.float_names

    @property
    def inexact_names(self) -> list[str]:
        return [name for name, leaf in zip(self.out_names, self.out_leaves, strict=True) if is_inexact(leaf)]

    @property
    def in_double(self) -> bool:
        return all(a.dtype in (jnp.float64, jnp.complex128) for a in (*self.floats, *self.value))

    @property
    def differentiable(self) -> bool:
        """Whether there is a gradient to check: a floating argument and output that are not empty."""
        return any(a.size for a in self.floats) and any(a.size for a in self.value)

    def tolerance(self, mode: str, table: dict[str, float]) -> float:
        dtypes = [a.dtype for a in (*self.floats, *self.value)]
        return self.tolerances.get(mode, numbers.lookup(table, dtypes))

    # The rule

    @cached_property
    def _eager(self) -> tuple:
        return derivatives.pull(self.h, self.cotangent, self.floats, self.carried)

    @property
    def forward_value(self) -> tuple:
        return self._eager[0]

    @property
    def gradient(self) -> tuple:
        """The gradient of the rule of `f`, eager."""
        return self._eager[1]

    def _program(self, compute: Callable, h: Callable) -> derivatives.Program:
        """`compute(h, ...)`, compiled. Kept, so that modes share programs."""
        return derivatives.Program(partial(compute, h))

    @cached_property
    def compiled(self) -> derivatives.Program:
        """Value and gradient of `f` as a function of (cotangent, floats, carried), compiled as users do."""
        return derivatives.Program(partial(derivatives.pull, self.h), optimized=True)

    @cached_property
    def pulled(self) -> tuple[Any, bool, str]:
        """Value and gradient of `f`, in float64 if possible."""
        return self.in_float64_or_own(derivatives.pull, self.cotangent, self.floats, self.carried)

    def all_roundings(self) -> list[Roundings]:
        """What roundings do to the values of `f`, then to its gradient for each argument."""
        return self._all_roundings

    def of_value(self) -> list[Roundings]:
        return self._all_roundings

    @property
    def roundings(self) -> list[Roundings]:
        return self._all_roundings[len(self.value) :]

    @cached_property
    def _all_roundings(self) -> list[Roundings]:
        return self.roundings_of(derivatives.pull, self.h, self.cotangent, self.floats, self.carried)

    @cached_property
    def conditioning(self) -> list[float]:
        """How far the gradient of `f` in float64 moves if every argument moves by an ulp of its dtype."""
        (_, exact), double, _ = self.pulled
        spreads = [0.0] * len(self.floats)
        for seed in range(31, 34) if double else ():
            rng = self.random(seed)
            floats = [numbers.wide(a) * (1 + numbers.ulp(a.dtype) * rng.uniform(-1, 1, a.shape)) for a in self.floats]
            with jax.enable_x64(True):
                data = (
                    derivatives.widen(self.cotangent),
                    tuple(map(jax.device_put, floats)),
                    derivatives.widen(self.carried),
                )
                _, moved = self.program(derivatives.pull, self.h)(*data)
            apart = [numbers.largest(numbers.wide(m) - e) for m, e in zip(moved, exact, strict=True)]
            spreads = [max(pair) for pair in zip(spreads, apart, strict=True)]
        return spreads

    def roundings_of(self, compute: Callable, h: Callable, *data: Any, truth: Any = None) -> Any:
        """As `roundings.measured`; nothing is known of what cannot be traced."""
        try:
            return measured(partial(compute, h), *data, truth=truth)
        except Exception:
            return [Roundings(0.0, 0.0)] * (len(self.value) + len(self.floats))

    # The truth

    @cached_property
    def truth(self) -> Truth:
        """Value and gradient of the reference; `roundings` are those of the values, then of the gradients."""
        return self.expected(derivatives.pull, self.cotangent, self.floats, self.carried)

    @cached_property
    def true_value(self) -> Truth:
        """The value of the reference, also of one without a gradient."""
        try:
            return self.truth._replace(arrays=self.truth.arrays[0])
        except Exception:
            return self.expected(lambda r, *data: r(*data), self.floats, self.carried)

    @cached_property
    def same_values(self) -> bool:
        """Whether the reference is the same function here, so that differences of `f` say what its gradient must be."""
        tolerance = self.tolerance("value", numbers.FORMULA)
        true = self.true_value.arrays
        return [np.shape(e) for e in true] == [a.shape for a in self.value] and all(
            numbers.distance(a, e, numbers.largest(e) or 1.0).error <= tolerance
            for a, e in zip(self.value, true, strict=True)
        )

    def expected(self, compute: Callable, *data: Any) -> Truth:
        """What the reference returns for `compute`."""
        own = lru_cache(lambda: self.program(compute, self.r)(*data))
        if self.in_double:
            arrays, note = own(), ""
        else:
            try:
                arrays, note = self.in_float64(compute, self.r, *data), ""
            except Exception as error:
                arrays, note = own(), f"the reference cannot be evaluated in float64 ({message(error)})"

        @lru_cache
        def with_own() -> Any:
            flat = jax.tree.leaves(arrays)
            found = self.roundings_of(compute, self.r, *data, truth=flat)
            apart = [numbers.distance(o, a, 1.0).apart for o, a in zip(jax.tree.leaves(own()), flat, strict=True)]
            apart = [a if np.isfinite(a) else 0.0 for a in apart]
            return [
                Roundings(max(f.spread, a), f.terms or a / numbers.ulp(o.dtype))
                for f, a, o in zip(found, apart, jax.tree.leaves(own()), strict=False)
            ]

        return Truth(arrays, own, with_own, note)

    def in_float64(self, compute: Callable, h: Callable, *data: Any) -> Any:
        """`compute(h, *data)` with all data in float64.

        Raises:
          TypeError: the result is not in float64, or `h` would draw other random numbers there.
        """
        if not self._draws_the_same(h):
            raise TypeError("it would draw other random numbers")
        with jax.enable_x64(True):
            result = self.program(compute, h)(*(derivatives.widen(d) for d in data))
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
            own = self.program(compute, self.h)(*data)
            return own, False, f"in the arguments' own dtype: float64 does not work ({message(error)})"

    # Differences

    @cached_property
    def lines(self) -> Lines:
        """⟨cotangent, f⟩ along lines through the point, in float64 if possible."""
        try:
            self.in_float64(lambda h, *data: h(*data), self.h, self.floats, self.carried)
            double = True
        except Exception:
            double = False
        return self.lines_of(self.h, self.cotangent, double)

    def lines_of(self, function: Callable, cotangent: Any, double: bool) -> Lines:
        with double_precision(double):
            floats, carried, cotangent = (self.floats, self.carried, tuple(cotangent))
            if double:
                floats, carried, cotangent = map(derivatives.widen, (floats, carried, cotangent))
            return Lines(function, floats, carried, cotangent, coarsest_ulp(function, floats, carried), double)


def double_precision(wanted: bool) -> Any:
    """The context of float64 evaluation, or of none."""
    return jax.enable_x64(True) if wanted else contextlib.nullcontext()


def join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
