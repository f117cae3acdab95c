"""What the jaxpr of a function tells about it."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, including those of nested jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def random_draws(f: Callable, *args: Any) -> list[tuple[Any, ...]]:
    """Bit width and shape of every random draw in `f`, in program order; empty if `f` cannot be traced."""
    draws = [e.params for e in _equations_of(f, *args) if e.primitive.name == "random_bits"]
    return [(params["bit_width"], params["shape"]) for params in draws]


def coarsest_ulp(f: Any, *args: Any) -> float:
    """The ulp of the narrowest floating dtype in `f` or a jaxpr: a cast to float32 rounds to 1e-7 whatever follows."""
    dtypes = [v.aval.dtype for e in _equations_of(f, *args) for v in e.outvars if hasattr(v.aval, "dtype")]
    dtypes += [a.dtype for a in jax.tree.leaves(args)]
    return max((float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.inexact)), default=0.0)


def sees_symbolic_zeros(f: Callable, *args: Any) -> bool:
    """Whether JAX tells a rule in `f` which arguments are differentiated. True if `f` cannot be traced."""
    try:
        jaxpr = jax.make_jaxpr(f)(*args)
    except Exception:
        return True
    return any(e.params.get("symbolic_zeros", False) for e in equations(jaxpr))


def may_not_end(f: Callable, *args: Any) -> bool:
    """Whether a `while_loop` in `f` ends when floating numbers converge, and counts nothing."""
    conditions = _conditions(_equations_of(f, *args))
    return any(_compares(c, jnp.inexact) and not _compares(c, jnp.integer) for c in conditions)


def converges(f: Callable, *args: Any) -> bool:
    """Whether a `while_loop` in `f` ends when floating numbers are small enough, also one hidden in a primitive."""
    found = _equations_of(f, *args)
    if any(e.primitive.name in ("while", "scan") for e in found):
        return any(_compares(c, jnp.inexact) for c in _conditions(found))
    return "stablehlo.while" in jax.jit(f).lower(*args).as_text()


def _equations_of(f: Any, *args: Any) -> list[Any]:
    """Every equation of a function or a jaxpr; none if the function cannot be traced."""
    try:
        return list(equations(f if hasattr(f, "eqns") else jax.make_jaxpr(f)(*args)))
    except Exception:
        return []


def _conditions(found: list[Any]) -> list[Any]:
    """The jaxprs of the conditions of all while loops."""
    return [e.params["cond_jaxpr"] for e in found if e.primitive.name == "while"]


def _compares(condition: Any, kind: Any) -> bool:
    """Whether the condition of a loop compares numbers of this kind."""
    comparisons = [e for e in equations(condition) if e.primitive.name in ("lt", "le", "gt", "ge", "ne", "eq")]
    return any(jnp.issubdtype(e.invars[0].aval.dtype, kind) for e in comparisons)
