"""Settings of every test: float64 available, no silent promotion of dtype or rank, eight devices on the CPU."""

import os

# Before jax is imported: the tests of sharding need more than one device.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes the first example slow, so no deadline; derandomized, so that a red test is red for everyone.
hypothesis.settings.register_profile("bnderiv", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("bnderiv")
