"""A function without its casts to narrow dtypes. What rounds to bfloat16 inside has no slope that can be measured."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check.problem import inner_of

_LOOPS = ("while", "scan", "cond", "pure_callback", "custom_linear_solve")


def without_casts(function: Callable) -> Callable:
    """`function` of float64 arrays, every floating number in it in float64.

    Raises:
      TypeError: the function holds a loop or a dtype on purpose, such as float8.
    """

    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(
            jax.tree.structure(shape), _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        )

    return run


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], map(_wide, [*consts, *args]), strict=True))
    for e in jaxpr.eqns:
        inputs = [_wide(v.val) if hasattr(v, "val") else values[v] for v in e.invars]
        inner = inner_of(e)
        if e.primitive.name in _LOOPS or any(_is_tiny(v.aval) for v in e.outvars):
            raise TypeError(f"{e.primitive.name} cannot be evaluated in other dtypes")
        if inner is not None:
            outputs = _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
        elif e.primitive.name == "reduce_precision":
            outputs = inputs
        else:
            wide = {name: _wide_dtype(value) for name, value in e.params.items()}
            result = e.primitive.bind(*inputs, **e.primitive.get_bind_params(wide))
            outputs = [_wide(a) for a in (result if e.primitive.multiple_results else [result])]
        values.update(zip(e.outvars, outputs, strict=True))
    return [_wide(v.val) if hasattr(v, "val") else values[v] for v in jaxpr.outvars]


def _wide(a: Any) -> Any:
    return jnp.asarray(a, jnp.float64) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a


def _wide_dtype(value: Any) -> Any:
    is_dtype = isinstance(value, np.dtype) and jnp.issubdtype(value, jnp.floating)
    return jnp.dtype("float64") if is_dtype else value


def _is_tiny(aval: Any) -> bool:
    floating = hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.floating)
    return floating and aval.dtype.itemsize < 2
