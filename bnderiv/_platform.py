"""Where a program is going to run, as far as that can be known while it is traced."""

import jax


def on_cpu() -> bool:
    """Whether the default backend is the CPU. Only speed may hang on it: programs can be placed elsewhere."""
    return jax.default_backend() == "cpu"
