"""Settings of every test: float64 available, no silent promotion of dtype or rank, eight devices on the CPU."""

import gc
import hashlib
import os
from collections import defaultdict

# Before jax is imported: the tests of sharding need more than one device.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import hypothesis
import jax
import pytest

from tests import compiling

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes the first example slow, so no deadline; derandomized, so that a red test is red for everyone.
hypothesis.settings.register_profile("bnderiv", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("bnderiv")

# Most tests are of formulas or of commands, and compile without optimizations. Those in these files, and those marked
# `as_users_compile`, are of roundings, limits, counts and of whole programs, and compile as users do; with
# AS_USERS_COMPILE=1 in the environment, all do.
TESTS = Path(__file__).parent
AS_USERS_COMPILE = {
    *(TESTS / "activation" / f"test_{name}.py" for name in ("every_activation", "log_softmax", "sigmoid", "tanh")),
    *(TESTS / "experiments" / f"test_{name}.py" for name in ("benchmark", "scale")),
    TESTS / "linear" / "test_dense.py",
    *(TESTS / "normalization" / f"test_{name}.py" for name in ("extremes", "precision")),
    TESTS / "pooling" / "test_programs.py",
    *(
        TESTS / f"test_{name}.py"
        for name in (
            "ahead_of_time", "near_the_limits", "powers_of_two", "what_must_not_grow",
        )
    ),
}  # fmt: skip


def _as_users_compile(item):
    return item.path in AS_USERS_COMPILE or item.get_closest_marker("as_users_compile") is not None


@pytest.hookimpl(tryfirst=True)  # before those are left out whose marks are not asked for
def pytest_collection_modifyitems(items):
    """Marks what is left out by `few`, and puts first what compiles as users do; of either kind what takes long.

    Between the two ways everything compiled is forgotten. First, as with several processes each begins with a long
    piece of the list, and ends with short ones: what a module of experiments prepares for its tests, which takes long,
    is then prepared once.
    """
    few(items)
    items.sort(key=lambda item: (not _as_users_compile(item), item.get_closest_marker("long") is None))


def few(items):
    """`@pytest.mark.few(core, slow)` keeps `core` cases of a test in the core, and `slow` more in `.ci/run`.

    The others become `slow` and, if there is a second number, `exhaustive`. A hash of the name chooses the core, as the
    first cases would be much alike. For `.ci/run` the next case is the one with the most parameters whose values no
    chosen case has. Both choose among what is collected: a case that is asked for alone is kept.
    """
    tests = defaultdict(list)
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("fast"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        core, slow = (*cases[0].get_closest_marker("few").args, len(cases))[:2]
        cases.sort(key=lambda item: hashlib.sha256(item.name.encode()).digest())
        chosen = [item for item in cases if not item.get_closest_marker("slow")][:core]
        others = [item for item in cases if item not in chosen]
        for item in others:
            item.add_marker("slow")
        others = [item for item in others if not item.get_closest_marker("exhaustive")]
        if slow < len(others):
            seen = set().union(*map(_values, chosen))
            for _ in range(slow):
                best = max(others, key=lambda item: len(_values(item) - seen))  # the first of equals
                others.remove(best)
                seen |= _values(best)
            for item in others:
                item.add_marker("exhaustive")


def _values(item):
    """Each parameter with its value, or with the object where that has no hash."""
    params = item.callspec.params.items() if hasattr(item, "callspec") else ()
    return {(name, value if _has_hash(value) else id(value)) for name, value in params}


def _has_hash(value):
    try:
        hash(value)
    except TypeError:
        return False
    return True


def pytest_collection_finish():
    """Looking through all that was imported for garbage, again and again, takes a seventh of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 10, 10)


@pytest.fixture(autouse=True)
def compiled(request):
    compiling.compile_quickly(not (compiling.AS_USERS_COMPILE or _as_users_compile(request.node)))


def pytest_ignore_collect(collection_path, config):
    """With `-m fast` the other files are not even imported: that takes longer than many tests."""
    if config.option.markexpr == "fast" and collection_path.suffix == ".py":
        return True if "mark.fast" not in collection_path.read_text() else None
    return None
