"""The examples in docstrings print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import bnderiv

FRAMEWORKS = {"linen": "flax", "nnx": "flax", "equinox": "equinox", "haiku": "haiku", "flax_pooling": "flax"}
MODULES = [m.name for m in pkgutil.walk_packages(bnderiv.__path__, "bnderiv.") if not m.name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    framework = FRAMEWORKS.get(name.rpartition(".")[2])
    if framework:
        pytest.importorskip(framework, reason=f"needs the extra {framework}")
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        if test.examples:
            outcome: list[str] = []
            doctest.DocTestRunner(verbose=False).run(test, out=outcome.append)
            assert not outcome, "".join(outcome)


@pytest.mark.parametrize(
    "name",
    ["init_running_stats", "update_running_stats", "models.lenet5.Config", "models.lenet5.init", "models.lenet5.apply"]
    + ["models.mlp.Config", "models.mlp.init", "models.mlp.apply"]
    + [f"{adapter}.BatchNorm" for adapter in ("linen", "nnx", "equinox", "haiku")]
    + [f"{adapter}.{pool}" for adapter in ("linen", "nnx") for pool in ("avg_pool", "max_pool")],
)
def test_has_an_example(name):
    framework = FRAMEWORKS.get(name.partition(".")[0])
    if framework:
        pytest.importorskip(framework, reason=f"needs the extra {framework}")
    found = bnderiv
    for part in name.split("."):
        found = getattr(found, part)
    assert "      >>> " in (found.__doc__ or "")
