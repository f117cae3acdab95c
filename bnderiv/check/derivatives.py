"""The derivatives that the modes compare, of a function of flat tuples (floats, carried)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from bnderiv.check import numbers
from bnderiv.check.numbers import is_inexact, widen


def pull(h: Callable, cotangent: tuple, floats: tuple, carried: tuple) -> tuple[tuple, tuple]:
    """Value and vector-Jacobian product."""
    value, pull = vjp(h, floats, carried)
    return value, pull(cotangent)


def vjp(h: Callable, floats: Sequence[Any], carried: tuple) -> tuple[tuple, Callable]:
    """As `jax.vjp`. A backward may return Python numbers: JAX accepts them, here they become arrays."""
    value, pull = jax.vjp(lambda *f: h(f, carried), *floats)

    def as_array(g: Any, a: Any) -> Any:
        """A traced Python number has become an array of integers."""
        number = not hasattr(g, "dtype") or (isinstance(g, Tracer) and not is_inexact(g))
        return jnp.asarray(g, a.dtype) if number else g

    def pull_back(cotangent: Sequence[Any]) -> tuple:
        return tuple(as_array(g, a) for g, a in zip(pull(tuple(cotangent)), floats, strict=True))

    return value, pull_back


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
