"""What can be evaluated of a call: the rule, its truth in float64, roundings, and slopes. `agreement.py` compares."""

from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
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

_SINGLE = 1e-6  # ulps above this are of half precision


class Expected(NamedTuple):
    """What arrays are compared with.

    Attributes:
      roundings: what roundings in the dtype of `f` do to each array; measured when asked for. None: nothing.
      note: why the arrays are not in float64, if they should be.
    """

    arrays: Any
    roundings: Callable[[], list[Roundings]] | None = None
    note: str = ""

    def rounding(self, i: int) -> Roundings:
        return self.roundings()[i] if self.roundings else Roundings(0.0, 0.0)

    @property
    def value(self) -> "Expected":
        """Of (value, derivative), the value."""
        return self._replace(arrays=self.arrays[0])

    @property
    def derivative(self) -> "Expected":
        """Of (value, derivative), the derivative."""
        (value, derivative), roundings = self.arrays, self.roundings
        return Expected(derivative, roundings and (lambda: roundings()[len(value) :]), self.note)


class Point(Call):
    """A call with everything that the modes evaluate there, each once.

    Attributes:
      program: (compute, h) ↦ `compute(h, ...)`, compiled once, so that modes share programs.
      no_truth: why derived checks have no truth here, once a mode has found that out.
      differenced: the gradient by finite differences, for each argument where every element was measured.
    """

    def __init__(self, *call: Any):
        super().__init__(*call)
        self.no_truth = ""
        self.differenced: dict[int, np.ndarray] = {}
        self.program = cache(lambda compute, h: programs.Program(partial(compute, h)))
        self._draws_the_same = cache(self._draws_the_same_bits)

    # The rule

    @cached_property
    def _eager(self) -> tuple:
        return derivatives.pull(self.h, self.cotangent, self.floats, self.carried)

    @property
    def forward_value(self) -> tuple:
        """The value that the forward of the rule of `f` returns, eager."""
        return self._eager[0]

    @property
    def gradient(self) -> tuple:
        """The gradient of the rule of `f`, eager."""
        return self._eager[1]

    @cached_property
    def compiled(self) -> programs.Program:
        """Value and gradient of `f` as a function of (cotangent, floats, carried), compiled as users do."""
        return programs.Program(partial(derivatives.pull, self.h), optimized=True)

    def pull_back(self, cotangent: Sequence[Any], floats: Any = None) -> tuple:
        """The gradient of `f` for another cotangent, compiled as users do; at other floats if given."""
        return self.compiled(tuple(cotangent), self.floats if floats is None else floats, self.carried)[1]

    @cached_property
    def precise(self) -> Expected:
        """Value and gradient of `f` itself, in float64 if possible."""
        arrays, note = self.in_float64_or_own(derivatives.pull, self.cotangent, self.floats, self.carried)
        return Expected(arrays, lambda: self._roundings, note)

    def value_roundings(self) -> list[Roundings]:
        """What roundings do to each output of `f`."""
        return self._roundings[: len(self.value)]

    def gradient_roundings(self) -> list[Roundings]:
        """What roundings do to the gradient of `f`, for each argument."""
        return self._roundings[len(self.value) :]

    @cached_property
    def _roundings(self) -> list[Roundings]:
        return self.roundings_of(derivatives.pull, self.h, self.cotangent, self.floats, self.carried)

    @cached_property
    def conditioning(self) -> list[float]:
        """How far the gradient of `f` in float64 moves if every argument moves by an ulp of its dtype."""
        (_, exact), note = self.precise.arrays, self.precise.note
        moves = [0.0] * len(self.floats)
        for seed in () if note else range(31, 34):
            rng = self.random(seed)
            off = [numbers.ulp(a.dtype) * rng.uniform(-1, 1, a.shape) for a in self.floats]
            floats = tuple(numbers.wide(a) * (1 + o) for a, o in zip(self.floats, off, strict=True))
            with jax.enable_x64(True):
                data = map(numbers.widen, (self.cotangent, floats, self.carried))
                _, moved = self.program(derivatives.pull, self.h)(*data)
            apart = [numbers.largest(numbers.wide(m) - e) for m, e in zip(moved, exact, strict=True)]
            moves = [max(pair) for pair in zip(moves, apart, strict=True)]
        return moves

    def roundings_of(self, compute: Callable, h: Callable, *data: Any, truth: Any = None) -> list[Roundings]:
        """As `roundings.measured`; nothing is known of what cannot be traced."""
        try:
            return measured(partial(compute, h), *data, truth=truth)
        except Exception:
            return [Roundings(0.0, 0.0)] * (len(self.value) + len(self.floats))

    # The truth

    @cached_property
    def truth(self) -> Expected:
        """Value and gradient of the reference."""
        return self.truth_of(derivatives.pull, self.cotangent, self.floats, self.carried)

    @cached_property
    def true_value(self) -> Expected:
        """The value of the reference, also of one without a gradient."""
        try:
            return self.truth.value
        except Exception:
            return self.truth_of(lambda r, *data: r(*data), self.floats, self.carried)

    @cached_property
    def same_values(self) -> bool:
        """Whether the reference is the same function here, so that differences of `f` say what its gradient must be."""
        tolerance = self.tolerance("value", numbers.FORMULA)
        true = self.true_value.arrays
        return [np.shape(e) for e in true] == [a.shape for a in self.value] and all(
            numbers.distance(a, e)[0] <= tolerance * numbers.magnitude(e) for a, e in zip(self.value, true, strict=True)
        )

    def truth_of(self, compute: Callable, *data: Any) -> Expected:
        """`compute(reference, *data)`, in float64 if possible."""
        own = cache(lambda: self.program(compute, self.r)(*data))
        if self.in_double:
            arrays, note = own(), ""
        else:
            try:
                arrays, note = self.in_float64(compute, self.r, *data), ""
            except Exception as error:
                arrays, note = own(), f"the reference cannot be evaluated in float64 ({message(error)})"

        @cache
        def roundings() -> list[Roundings]:
            """The larger of what samples say and how far the reference's own arrays are from the truth."""
            truth, results = jax.tree.leaves(arrays), jax.tree.leaves(own())
            apart = [numbers.distance(a, e)[0] for a, e in zip(results, truth, strict=True)]
            apart = [a if np.isfinite(a) else 0.0 for a in apart]
            sampled = self.roundings_of(compute, self.r, *data, truth=truth)
            return [
                Roundings(max(s.spread, a), s.terms or a / numbers.ulp(x.dtype))
                for s, a, x in zip(sampled, apart, results, strict=False)
            ]

        return Expected(arrays, roundings, note)

    # In float64

    def in_float64(self, compute: Callable, h: Callable, *data: Any) -> Any:
        """`compute(h, *data)` with all data in float64.

        Raises:
          TypeError: the result is not in float64, or `h` would draw other random numbers there.
        """
        if not self._draws_the_same(h):
            raise TypeError("it would draw other random numbers")
        with jax.enable_x64(True):
            result = self.program(compute, h)(*map(numbers.widen, data))
            for leaf in jax.tree.leaves(result):
                if leaf.dtype not in (jnp.float64, jnp.complex128):
                    raise TypeError(f"a result stays {leaf.dtype}")
            return jax.tree.map(np.asarray, result)

    def in_float64_or_own(self, compute: Callable, *data: Any) -> tuple[Any, str]:
        """`compute(h, *data)`, and a note if it is not in float64."""
        try:
            return self.in_float64(compute, self.h, *data), ""
        except Exception as error:
            own = self.program(compute, self.h)(*data)
            return own, f"in the arguments' own dtype: float64 does not work ({message(error)})"

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

    def _draws_the_same_bits(self, h: Callable) -> bool:
        """Whether `h` draws the same random bits for float64 arguments."""
        drawn = random_draws(h, self.floats, self.carried)
        with jax.enable_x64(True):
            return random_draws(h, numbers.widen(self.floats), self.carried) == drawn

    # Slopes

    @cached_property
    def lines(self) -> Lines:
        """⟨cotangent, f⟩ along lines through the point, in float64 if possible."""
        try:
            self.in_float64(lambda h, *data: h(*data), self.h, self.floats, self.carried)
        except Exception:
            return self.lines_of(self.h, self.cotangent, double=False)
        return self.lines_of(self.h, self.cotangent, double=True)

    @cached_property
    def lines_without_casts(self) -> Lines:
        """The same of `f` without its casts to half precision."""
        with jax.enable_x64(True):
            floats, carried, cotangent = map(numbers.widen, (self.floats, self.carried, self.cotangent))
            return Lines(without_casts(self.h), floats, carried, cotangent, numbers.ulp(jnp.float64), True)

    def lines_of(self, function: Callable, cotangent: Any, double: bool) -> Lines:
        """⟨cotangent, function⟩ along lines through the point."""
        with numbers.double_precision(double):
            data = (self.floats, self.carried, tuple(cotangent))
            floats, carried, cotangent = map(numbers.widen, data) if double else data
            return Lines(function, floats, carried, cotangent, coarsest_ulp(function, floats, carried), double)


def join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
