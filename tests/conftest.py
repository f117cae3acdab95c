"""Settings of every test: float64 available, no silent promotion of dtype or rank, eight devices on the CPU."""

import os

# Before jax is imported: the tests of sharding need more than one device.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import hypothesis
import jax
import pytest

from tests.compiling import compile_quickly

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes the first example slow, so no deadline; derandomized, so that a red test is red for everyone.
hypothesis.settings.register_profile("bnderiv", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("bnderiv")

# Tests of formulas and of arguments. All others compile as users do, among them those of roundings, limits, counts and
# the examples; with AS_USERS_COMPILE=1 in the environment, these too.
TESTS = Path(__file__).parent
QUICK = {
    *TESTS.glob("*/test_steps.py"),
    *(TESTS / "adapters").glob("test_*.py"),
    *(TESTS / "check").glob("test_*.py"),
    *(TESTS / "models").glob("test_*.py"),
    TESTS / "activation" / "test_softmax.py",
    *(TESTS / "convolution" / name for name in ("test_conv2d.py", "test_correlations.py")),
    *(TESTS / "experiments" / name for name in ("test_training.py",)),
    *(TESTS / "loss" / name for name in ("test_softmax_cross_entropy.py", "test_squared_error.py")),
    *(TESTS / "normalization" / name for name in ("test_masks.py",)),
    *(TESTS / "pooling" / name for name in ("test_avg_pool.py", "test_max_pool.py")),
    *(
        TESTS / f"test_{name}.py"
        for name in (
            "every_layer", "exercises", "explicit_sharding", "first_difference", "sharding", "steps",
            "symbolic_shapes", "the_contract_bites", "variants",
        )
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiling(request):
    compile_quickly(request.path in QUICK and not os.environ.get("AS_USERS_COMPILE"))


def pytest_ignore_collect(collection_path, config):
    """With `-m fast` the other files are not even imported: that takes longer than many tests."""
    if config.option.markexpr == "fast" and collection_path.suffix == ".py":
        return True if "mark.fast" not in collection_path.read_text() else None
    return None
