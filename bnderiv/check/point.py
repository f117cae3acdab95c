"""What can be evaluated of a call: the rule, its truth in float64, roundings, and differences. `judge.py` compares."""

import contextlib
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import derivatives, numbers, programs
from bnderiv.check.call import Call
from bnderiv.check.interpreter import without_casts
from bnderiv.check.jaxprs import coarsest_ulp, random_draws
from bnderiv.check.lines import Lines
from bnderiv.check.report import message
from bnderiv.check.roundings import Roundings, measured

_SINGLE = 1e-6  # ulps beyond that are of half precision


class Truth(NamedTuple):
    """What the reference says."""

    arrays: Any  # in float64 if possible
    roundings: Callable[[], list[Roundings]]  # of the reference in the dtype of `f`, for each array
    note: str  # why it is not in float64


class Point(Call):
    """A call with everything that the modes evaluate there, each once.

    Attributes:
      no_truth: why derived checks have no truth here, once a mode has found that out.
      differenced: the gradient by finite differences, for each argument where every element was measured.
      kept: what a mode keeps for the next.
    """

    def __init__(self, *call: Any):
        super().__init__(*call)
        self.no_truth = ""
        self.differenced: dict[int, np.ndarray] = {}
        self.kept: dict[Any, Any] = {}
        self.program = lru_cache(maxsize=None)(self._program)
        self._same_draws: dict[Callable, bool] = {}

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

    def _program(self, compute: Callable, h: Callable) -> programs.Program:
        """`compute(h, ...)`, compiled. Kept, so that modes share programs."""
        return programs.Program(partial(compute, h))

    @cached_property
    def compiled(self) -> programs.Program:
        """Value and gradient of `f` as a function of (cotangent, floats, carried), compiled as users do."""
        return programs.Program(partial(derivatives.pull, self.h), optimized=True)

    @cached_property
    def pulled(self) -> tuple[Any, bool, str]:
        """Value and gradient of `f`, in float64 if possible."""
        return self.in_float64_or_own(derivatives.pull, self.cotangent, self.floats, self.carried)

    def all_roundings(self) -> list[Roundings]:
        """What roundings do to the values of `f`, then to its gradient for each argument."""
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
                    numbers.widen(self.cotangent),
                    tuple(map(jax.device_put, floats)),
                    numbers.widen(self.carried),
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
        def roundings() -> Any:
            flat = jax.tree.leaves(arrays)
            found = self.roundings_of(compute, self.r, *data, truth=flat)
            apart = [numbers.distance(o, a, 1.0).apart for o, a in zip(jax.tree.leaves(own()), flat, strict=True)]
            apart = [a if np.isfinite(a) else 0.0 for a in apart]
            return [
                Roundings(max(f.spread, a), f.terms or a / numbers.ulp(o.dtype))
                for f, a, o in zip(found, apart, jax.tree.leaves(own()), strict=False)
            ]

        return Truth(arrays, roundings, note)

    def in_float64(self, compute: Callable, h: Callable, *data: Any) -> Any:
        """`compute(h, *data)` with all data in float64.

        Raises:
          TypeError: the result is not in float64, or `h` would draw other random numbers there.
        """
        if not self._draws_the_same(h):
            raise TypeError("it would draw other random numbers")
        with jax.enable_x64(True):
            result = self.program(compute, h)(*(numbers.widen(d) for d in data))
            for leaf in jax.tree.leaves(result):
                if leaf.dtype not in (jnp.float64, jnp.complex128):
                    raise TypeError(f"a result stays {leaf.dtype}")
            return jax.tree.map(np.asarray, result)

    def without_casts(self, compute: Callable, h: Callable, *data: Any) -> Any:
        """`compute(h, *data)` in float64, also where it casts to narrower dtypes.

        Raises:
          TypeError: that cannot be, or there is no cast to half precision.
        """
        if not self._rounds_to_half or not self._draws_the_same(h):
            raise TypeError("nothing is cast to half precision")
        with jax.enable_x64(True):
            function = without_casts(partial(compute, h))
            return jax.tree.map(np.asarray, programs.quick_jit(function)(*map(numbers.widen, data)))

    @cached_property
    def _rounds_to_half(self) -> bool:
        return coarsest_ulp(self.h, numbers.widen(self.floats), self.carried) > _SINGLE

    def _draws_the_same(self, h: Callable) -> bool:
        """Whether `h` draws the same random bits for float64 arguments."""
        if h not in self._same_draws:
            drawn = random_draws(h, self.floats, self.carried)
            with jax.enable_x64(True):
                self._same_draws[h] = random_draws(h, numbers.widen(self.floats), self.carried) == drawn
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

    @cached_property
    def lines_without_casts(self) -> Lines:
        with double_precision(True):
            floats, carried, cotangent = map(numbers.widen, (self.floats, self.carried, self.cotangent))
            return Lines(without_casts(self.h), floats, carried, cotangent, numbers.ulp(jnp.float64), True)

    def lines_of(self, function: Callable, cotangent: Any, double: bool) -> Lines:
        with double_precision(double):
            floats, carried, cotangent = (self.floats, self.carried, tuple(cotangent))
            if double:
                floats, carried, cotangent = map(numbers.widen, (floats, carried, cotangent))
            return Lines(function, floats, carried, cotangent, coarsest_ulp(function, floats, carried), double)


def double_precision(wanted: bool) -> Any:
    """The context of float64 evaluation, or of none."""
    return jax.enable_x64(True) if wanted else contextlib.nullcontext()


def join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
