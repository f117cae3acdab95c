"""How far roundings may carry a program: it runs again with the result of every operation off by a random ulp.

One run in another dtype is a single sample: by luck it is exact on one CPU and off by much on another. And a rule that
is wrong may disagree with itself. So nothing here looks at what a rule returns in two ways; the roundings are put in.
(Monte Carlo arithmetic: Parker 1997.)
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import numbers
from bnderiv.check.interpreter import bind, evaluate
from bnderiv.check.jaxprs import coarsest_ulp
from bnderiv.check.programs import quick_jit

_SAMPLES = 4
_LOST = 1e3  # If terms cancel completely, at most this many ulps of their magnitude are left.

# Operations that round nothing.
_EXACT = frozenset(
    """neg abs sign max min select_n clamp floor ceil round eq ne lt le gt ge real imag conj complex iota copy copy_p
    reshape transpose broadcast_in_dim slice dynamic_slice dynamic_update_slice gather concatenate pad rev squeeze
    expand_dims reduce_max reduce_min argmax argmin sort stop_gradient convert_element_type reduce_precision""".split()  # noqa: SIM905
)
# Operations whose terms may cancel inside: their inputs are moved as well.
_SUMS = frozenset(
    """reduce reduce_sum dot_general conv_general_dilated cumsum cumlogsumexp reduce_window reduce_window_sum
    scatter-add psum select_and_scatter_add scan while cond custom_linear_solve triangular_solve cholesky lu qr eigh svd
    pure_callback""".split()  # noqa: SIM905
)


class Roundings(NamedTuple):
    """What roundings do to an array."""

    spread: float  # the largest distance that they carry an element
    terms: float  # the magnitude of the terms that were rounded

    def explain(self, apart: float) -> bool:
        """Whether two arrays may be this far apart. `spread` is of a few samples, so it may be low."""
        return apart <= 4 * self.spread

    def vanishes(self, array: Any) -> bool:
        """Whether an array consists of roundings only: its terms cancel to within what its dtype keeps of them."""
        lost = _LOST * numbers.ulp(np.asarray(array).dtype) * self.terms
        return 0 < self.terms < np.inf and numbers.largest(array) <= lost


def measured(function: Callable, *args: Any, truth: Sequence[Any] | None = None) -> list[Roundings]:
    """The roundings of each array that `function(*args)` returns, in the dtype of the arguments.

    They are measured from `truth`, an array for each result; by default from the first sample.
    """
    closed = jax.make_jaxpr(function)(*args)
    run = quick_jit(_shaken(closed))
    samples = [[numbers.wide(a) for a in jax.tree.leaves(run(jnp.int32(k), *args))] for k in range(_SAMPLES)]
    ulp = coarsest_ulp(closed, *args)
    centers = samples[0] if truth is None else [numbers.wide(a) for a in truth]
    found = []
    for i, center in enumerate(centers):
        with np.errstate(all="ignore"):
            apart = np.stack([np.abs(s[i] - center) for s in samples])
        spread = numbers.largest(apart)
        found.append(Roundings(spread, spread / ulp))
    return found


def _shaken(jaxpr: Any) -> Callable:
    """(seed, *args) ↦ the outputs of the jaxpr, with the result of every operation off by up to an ulp."""

    def run(seed: Any, *args: Any) -> list[Any]:
        count = itertools.count(1)

        def shake(a: Any) -> Any:
            if not (hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact)):
                return a
            # A fixed sequence in place of random numbers, which would take longer to compile than the function.
            place = jax.lax.iota(jnp.float32, a.size).reshape(a.shape)
            turn = place * 0.6180340 + (seed.astype(jnp.float32) + 1) * 0.7548777 + next(count) * 0.5698403
            off = (2 * (turn - jnp.floor(turn)) - 1).astype(jnp.finfo(a.dtype).dtype)
            return (a * (1 + numbers.ulp(a.dtype) * off).astype(a.dtype)).astype(a.dtype)

        def apply(equation: Any, inputs: Sequence[Any]) -> list[Any]:
            name = equation.primitive.name
            outputs = bind(equation, [shake(a) for a in inputs] if name in _SUMS else inputs)
            exact = name in _EXACT and not (name == "convert_element_type" and _narrows(equation))
            return outputs if exact else [shake(a) for a in outputs]

        return evaluate(jaxpr, jax.tree.leaves(args), apply)

    return run


def _narrows(e: Any) -> bool:
    """Whether a cast rounds. A later value in a wide dtype is then off by the ulp of the narrow one."""
    before, after = e.invars[0].aval.dtype, e.outvars[0].aval.dtype
    inexact = all(jnp.issubdtype(d, jnp.inexact) for d in (before, after))
    return inexact and bool(jnp.finfo(before).eps < jnp.finfo(after).eps)
