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
from bnderiv.check.derivatives import quick_jit
from bnderiv.check.problem import coarsest_ulp, inner_of

SAMPLES = 4
# Terms that cancel completely leave roundings in float64, at most this part of their magnitude.
LOST = 1e3 * 2.0**-52

# Operations that round nothing.
_EXACT = frozenset(
    """neg abs sign max min select_n clamp floor ceil round eq ne lt le gt ge real imag conj complex iota copy copy_p
    reshape transpose broadcast_in_dim slice dynamic_slice dynamic_update_slice gather concatenate pad rev squeeze
    expand_dims reduce_max reduce_min argmax argmin sort stop_gradient convert_element_type reduce_precision""".split()  # noqa: SIM905
)
# Operations whose terms may cancel inside: their inputs are moved as well.
_SUMS = frozenset(
    """reduce_sum dot_general conv_general_dilated cumsum cumlogsumexp reduce_window_sum scatter-add psum
    select_and_scatter_add scan while cond custom_linear_solve triangular_solve cholesky lu qr eigh svd
    pure_callback""".split()  # noqa: SIM905
)


class Roundings(NamedTuple):
    """What roundings do to an array."""

    spread: float  # the largest distance that they carry an element
    terms: float  # the magnitude of the terms that were rounded

    def explain(self, apart: float) -> bool:
        return apart <= 4 * self.spread

    def vanishes(self, array: Any) -> bool:
        """Whether an array computed in float64 consists of roundings only."""
        return 0 < self.terms < np.inf and numbers.largest(array) <= LOST * self.terms


def measured(function: Callable, *args: Any, truth: Sequence[Any] | None = None) -> list[Roundings]:
    """The roundings of each array that `function(*args)` returns, in the dtype of the arguments.

    With a `truth`, its own distance from that counts as well.
    """
    closed = jax.make_jaxpr(function)(*args)
    run = quick_jit(_shaken(closed))
    samples = [[numbers.wide(a) for a in jax.tree.leaves(run(jnp.int32(k), *args))] for k in range(SAMPLES)]
    ulp = coarsest_ulp(closed, *args)
    centers = samples[0] if truth is None else [numbers.wide(a) for a in truth]
    found = []
    for i, center in enumerate(centers):
        with np.errstate(all="ignore"):
            apart = np.stack([np.abs(s[i] - center) for s in samples])
        spread = numbers.largest(apart)
        found.append(Roundings(spread, spread / ulp))
    return found


def without_rules(function: Callable) -> Callable:
    """A function that returns a tuple, as JAX differentiates it if its rules are left out."""

    def run(*args: Any) -> tuple[Any, ...]:
        closed = jax.make_jaxpr(function)(*args)
        return tuple(_evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), lambda a: a))

    return run


def _shaken(closed: Any) -> Callable:
    def run(seed: Any, *args: Any) -> list[Any]:
        count = itertools.count(1)

        def shake(a: Any) -> Any:
            if not (hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact)):
                return a
            # A fixed sequence in place of random numbers, which would take longer to compile than the function.
            place = jax.lax.iota(jnp.float32, a.size).reshape(a.shape)
            turn = place * 0.6180340 + (seed.astype(jnp.float32) + 1) * 0.7548777 + next(count) * 0.5698403
            off = 2 * (turn - jnp.floor(turn)) - 1
            return (a * (1 + numbers.ulp(a.dtype) * off.astype(jnp.finfo(a.dtype).dtype)).astype(a.dtype)).astype(
                a.dtype
            )

        return _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), shake)

    return run


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], shake: Callable) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(v: Any) -> Any:
        return v.val if hasattr(v, "val") else values[v]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for e in jaxpr.eqns:
        inputs, name = [read(v) for v in e.invars], e.primitive.name
        inner = inner_of(e) if name not in _SUMS else None
        if inner is not None:
            outputs = _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs, shake)
        else:
            inputs = [shake(a) for a in inputs] if name in _SUMS else inputs
            result = e.primitive.bind(*inputs, **e.primitive.get_bind_params(e.params))
            outputs = list(result) if e.primitive.multiple_results else [result]
            narrowed = name == "convert_element_type" and _narrows(e)
            outputs = outputs if name in _EXACT and not narrowed else [shake(a) for a in outputs]
        values.update(zip(e.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _narrows(e: Any) -> bool:
    """Whether a cast rounds. A later value in a wide dtype is then off by the ulp of the narrow one."""
    before, after = e.invars[0].aval.dtype, e.outvars[0].aval.dtype
    inexact = all(jnp.issubdtype(d, jnp.inexact) for d in (before, after))
    return inexact and bool(jnp.finfo(before).eps < jnp.finfo(after).eps)
