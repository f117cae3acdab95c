"""The derivatives that the modes compare, of a function of flat tuples (floats, carried)."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bnderiv.check import numbers
from bnderiv.check.arguments import is_inexact


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


# A program runs a few times, so optimizing it for a CPU takes longer than it saves: two thirds of all the time.
_QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def quick_jit(function: Callable) -> Any:
    """`jax.jit`, compiled quickly where the backend knows how."""
    return jax.jit(function, compiler_options=_quick_options(jax.default_backend()))


@lru_cache
def _quick_options(backend: str) -> dict[str, Any] | None:
    """Of the options, those that this version of XLA has."""
    known = {}
    for name, setting in _QUICKLY.items() if backend == "cpu" else ():
        try:
            jax.jit(lambda: 0, compiler_options={name: setting})()
        except Exception:
            continue
        known[name] = setting
    return known or None


class Program:
    """A function under jit, or eager if it cannot be traced. One compilation is faster than one for each operation.

    Args:
      function: of arrays.
      optimized: compile as users do.
    """

    def __init__(self, function: Callable, optimized: bool = False):
        self.function, self.jitted = function, (jax.jit if optimized else quick_jit)(function)

    def __call__(self, *args: Any) -> Any:
        try:
            return jax.block_until_ready(self.jitted(*args))  # until then its errors are not raised
        except Exception:
            return self.function(*args)


def fresh(arrays: Sequence[Any]) -> tuple:
    """Copies, so that a function that donates its arguments does not delete them."""
    return tuple(a.copy() if isinstance(a, jax.Array) and not isinstance(a, Tracer) else a for a in arrays)


def widen(tree: Any) -> Any:
    """The tree with its floating arrays in float64 and its complex ones in complex128."""

    def widen(a: Any) -> Any:
        if not is_inexact(a):
            return a
        dtype = jnp.complex128 if jnp.issubdtype(a.dtype, jnp.complexfloating) else jnp.float64
        if isinstance(a, Tracer):
            return a.astype(dtype)
        return jax.device_put(np.asarray(a).astype(dtype))  # by NumPy: there is nothing to compile

    return jax.tree.map(widen, tree)
