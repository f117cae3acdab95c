"""Where a program is going to run, as far as that can be known while it is traced."""

import jax


def on_cpu() -> bool:
    """Whether the default backend is the CPU. Only speed may hang on it: programs can be placed elsewhere."""
    return jax.default_backend() == "cpu"


def on_one_device() -> bool:
    """Whether there is just one device in all, so that no axis can be spread over several."""
    return jax.device_count() == 1
