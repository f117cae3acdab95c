"""A `jit` for tests of formulas: their programs need not be fast, and compiling these is most of the time tests take.

What XLA's optimizations do to roundings, and to the number of kernels, is seen in tests that compile as users do.
"""

import os
from functools import cache, partial
from typing import Any

import jax
from jax._src import compiler
from jax._src.interpreters import mlir


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


def compile_quickly(everything: bool) -> None:
    """From now on compile every program, those of eager operations too, as `fast_jit` does; or as users do."""
    global _all_quickly
    if everything != _all_quickly:
        _all_quickly = everything
        jax.clear_caches()
