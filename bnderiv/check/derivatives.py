"""The derivatives that the modes compare, of a function of flat tuples (floats, carried)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bnderiv.check import numbers
from bnderiv.check.problem import is_inexact


def pull(h: Callable, cotangent: tuple, floats: tuple, carried: tuple) -> tuple[tuple, tuple]:
    """Value and vector-Jacobian product."""
    value, pull = jax.vjp(lambda *f: h(f, carried), *floats)
    return value, pull(tuple(cotangent))


def pulls(h: Callable, cotangents: tuple, floats: tuple, carried: tuple) -> tuple[tuple, ...]:
    """The vector-Jacobian product for each of several cotangents."""
    _, pull = jax.vjp(lambda *f: h(f, carried), *floats)
    return tuple(pull(tuple(cotangent)) for cotangent in cotangents)


def push(h: Callable, tangents: tuple, floats: tuple, carried: tuple) -> tuple[tuple, tuple]:
    """Value and Jacobian-vector product."""
    return jax.jvp(lambda *f: h(f, carried), floats, tangents)


def projected(h: Callable, direction: tuple, cotangent: tuple, floats: tuple, carried: tuple) -> tuple[jax.Array]:
    """⟨gradient, direction⟩. Its gradient is the second derivative along `direction`."""
    double = any(f.dtype in (jnp.float64, jnp.complex128) for f in floats)
    direction, cotangent = (widen(direction), widen(cotangent)) if double else (direction, cotangent)
    return (numbers.dot(pull(h, cotangent, floats, carried)[1], direction),)


def grad_of_grad(h: Callable, cotangent: tuple, direction: tuple, floats: tuple, carried: tuple) -> tuple:
    return jax.grad(lambda f: projected(h, direction, cotangent, f, carried)[0])(floats)


def jvp_of_grad(h: Callable, cotangent: tuple, direction: tuple, floats: tuple, carried: tuple) -> tuple:
    return jax.jvp(lambda f: pull(h, cotangent, f, carried)[1], (floats,), (direction,))[1]


def compiled(function: Callable) -> Callable:
    """`function` under jit, or eager if it cannot be traced. One compilation is faster than one for each operation."""

    def run(*args: Any) -> Any:
        try:
            return jax.jit(function)(*args)
        except Exception:
            return function(*args)

    return run


def widen(tree: Any) -> Any:
    """The tree with its floating arrays in float64 and its complex ones in complex128."""

    def widen(a: Any) -> Any:
        if not is_inexact(a):
            return a
        return jnp.asarray(a, jnp.complex128 if jnp.issubdtype(a.dtype, jnp.complexfloating) else jnp.float64)

    return jax.tree.map(widen, tree)
