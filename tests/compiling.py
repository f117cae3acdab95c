"""A `jit` for tests of formulas: their programs need not be fast, and compiling these is most of the time tests take.

What XLA's optimizations do to roundings, and to the number of kernels, is seen in tests that compile as users do.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax._src import compiler, core
from jax._src.interpreters import mlir
from jax._src.lax import lax
from jax._src.literals import TypedNdArray


def _known(options: dict[str, int]) -> dict[str, int]:
    """Those options, if this version of XLA has them."""
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    **_known({"xla_cpu_use_fusion_emitters": False}),  # halves the time
    **_known({"xla_cpu_parallel_codegen_split_count": 1}),  # a third less: each part of a program costs, however small
}
fast_jit = partial(jax.jit, compiler_options=QUICKLY)


# Of the whole suite: AS_USERS_COMPILE=1 in the environment.
AS_USERS_COMPILE = bool(os.environ.get("AS_USERS_COMPILE"))


def of_a_user(*without: str) -> dict[str, str]:
    """The environment of a command as a user starts it, away from the tests' settings, but that it compiles quickly.

    Without the named variables too.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", *without)}
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())
    return kept if AS_USERS_COMPILE else kept | {"XLA_FLAGS": flags}


_options = compiler.get_compile_options
_all_quickly = False


def _with_quick_options(*args: Any, **options: Any) -> Any:
    if _all_quickly:
        options["env_options_overrides"] = QUICKLY | (options.get("env_options_overrides") or {})
    return _options(*args, **options)


# JAX has no setting for all of these options. Should it move this function, the tests take longer and test the same.
compiler.get_compile_options = _with_quick_options
# JAX 0.10 makes a new context to lower each program, which is a quarter of what a small program takes.
mlir.make_ir_context = cache(mlir.make_ir_context)


def _without_a_program(primitive: Any, of_numpy: Callable[..., np.ndarray | None]) -> None:
    """Outside of programs and meshes, `primitive` is what NumPy finds, put on the device, unless that is None."""
    by_a_program = primitive.impl

    def evaluate(*args: Any, **params: Any) -> Any:
        found = of_numpy(*args, **params) if _all_quickly and jax.sharding.get_abstract_mesh().empty else None
        return by_a_program(*args, **params) if found is None else jax.device_put(found)

    primitive.def_impl(evaluate)


def _from_the_host(x: Any) -> np.ndarray | None:
    """A copy of a number or a NumPy array whose dtype JAX does not change: `device_put` may keep what it is given."""
    is_of_numpy = isinstance(x, (np.ndarray, np.generic, TypedNdArray)) and not getattr(x, "weak_type", False)
    return np.asarray(x).copy() if is_of_numpy and jax.dtypes.canonicalize_dtype(x.dtype) == x.dtype else None


def _converted(x: Any, *, new_dtype: Any, weak_type: bool, sharding: Any) -> np.ndarray | None:
    """Between dtypes that NumPy rounds to as XLA does."""
    x = None if weak_type or sharding is not None else _from_the_host(x)
    if x is None or not (x.dtype == new_dtype or {x.dtype, new_dtype} <= {*map(np.dtype, ("float32", "float64"))}):
        return None
    with np.errstate(over="ignore"):
        return x.astype(new_dtype)


def _filled(value: Any, *, shape: tuple[int, ...], broadcast_dimensions: Any, sharding: Any) -> np.ndarray | None:
    if broadcast_dimensions or sharding is not None or getattr(value, "weak_type", True) or value.committed:
        return None
    return np.full(shape, value)


# To make arrays of numbers, JAX compiles a program for every shape: these were a fifth of all the tests' programs. Only
# where tests compile quickly: XLA's own conversion makes of a subnormal number 0.
_without_a_program(lax.convert_element_type_p, _converted)
_without_a_program(lax.broadcast_in_dim_p, _filled)
if hasattr(core, "stage_p"):
    _without_a_program(core.stage_p, _from_the_host)


def compile_quickly(everything: bool) -> None:
    """From now on compile every program, those of eager operations too, as `fast_jit` does; or as users do."""
    global _all_quickly
    if everything != _all_quickly:
        _all_quickly = everything
        jax.clear_caches()
