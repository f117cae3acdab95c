"""Runs a jaxpr equation by equation, so that each can be changed: without its casts, without its rules."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Jaxprs within these are not run by the interpreter: they are called several times, or not at all.
_LOOPS = ("while", "scan", "cond", "pure_callback", "custom_linear_solve")


def evaluate(jaxpr: Any, args: Sequence[Any], apply: Callable) -> list[Any]:
    """The outputs of a jaxpr, where `apply(equation, inputs)` returns those of an equation.

    Calls of other jaxprs, such as a jit or a rule, are inlined; `apply` does not see them.
    """
    consts, jaxpr = getattr(jaxpr, "consts", ()), getattr(jaxpr, "jaxpr", jaxpr)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(v: Any) -> Any:
        return v.val if hasattr(v, "val") else values[v]

    for e in jaxpr.eqns:
        inputs, inner = [read(v) for v in e.invars], _called(e)
        outputs = apply(e, inputs) if inner is None else evaluate(inner, inputs, apply)
        values.update(zip(e.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def bind(equation: Any, inputs: Sequence[Any], params: dict[str, Any] | None = None) -> list[Any]:
    """The outputs of an equation. If `params` are given, they replace its own."""
    params = equation.params if params is None else params
    result = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
    return list(result) if equation.primitive.multiple_results else [result]


def without_rules(function: Callable) -> Callable:
    """A function that returns a tuple, as JAX differentiates it if its rules are left out."""

    def run(*args: Any) -> tuple[Any, ...]:
        return tuple(evaluate(jax.make_jaxpr(function)(*args), jax.tree.leaves(args), bind))

    return run


def without_casts(function: Callable) -> Callable:
    """A function of float64 arrays, with every floating number inside in float64.

    What rounds to bfloat16 inside has no slope that can be measured.

    Raises:
      TypeError: the function holds a loop, or a dtype on purpose, such as float8.
    """

    def run(*args: Any) -> Any:
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = evaluate(jaxpr, jax.tree.leaves(args), _bind_in_float64)
        return jax.tree.unflatten(jax.tree.structure(shape), map(_in_float64, outputs))

    return run


def _bind_in_float64(equation: Any, inputs: Sequence[Any]) -> list[Any]:
    name = equation.primitive.name
    if name in _LOOPS or any(_is_tiny(v.aval) for v in equation.outvars):
        raise TypeError(f"{name} cannot be evaluated in other dtypes")
    inputs = [_in_float64(a) for a in inputs]
    if name == "reduce_precision":
        return inputs
    return [_in_float64(a) for a in bind(equation, inputs, {k: _as_float64(v) for k, v in equation.params.items()})]


def _called(equation: Any) -> Any:
    """The jaxpr that an equation calls once with its own arguments, such as a jit or a rule; None for any other.

    The jaxpr of a reduction is of scalars, the equation of arrays.
    """
    if equation.primitive.name in _LOOPS:
        return None
    inner = next((equation.params[p] for p in ("jaxpr", "call_jaxpr", "fun_jaxpr") if p in equation.params), None)
    if inner is None:
        return None
    shapes = [[np.shape(v.aval) for v in e.invars] for e in (getattr(inner, "jaxpr", inner), equation)]
    return inner if shapes[0] == shapes[1] else None


def _in_float64(a: Any) -> Any:
    return jnp.asarray(a, jnp.float64) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a


def _as_float64(param: Any) -> Any:
    """A parameter of an equation; float64 if it is another floating dtype."""
    floating = isinstance(param, np.dtype) and jnp.issubdtype(param, jnp.floating)
    return jnp.dtype("float64") if floating else param


def _is_tiny(aval: Any) -> bool:
    floating = hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.floating)
    return floating and aval.dtype.itemsize < 2
