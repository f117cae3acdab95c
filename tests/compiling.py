"""A `jit` for tests of formulas: their programs need not be fast, and compiling these is most of the time tests take.

What XLA's optimizations do to roundings, and to the number of kernels, is seen in tests that compile as users do.
"""

from functools import partial

import jax


def _known(options: dict[str, bool]) -> dict[str, bool]:
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
}
fast_jit = partial(jax.jit, compiler_options=QUICKLY)
