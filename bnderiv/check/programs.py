"""Functions compiled for a check, which calls each of them a few times."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax

# Optimizing for a CPU takes longer than it saves: it took two thirds of a check's time.
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
