"""Every public name has a docstring with an example, and the examples of all modules print what they say."""

import doctest
import importlib
import operator
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import bnderiv
from bnderiv import _layers
from bnderiv.normalization import running_stats

FRAMEWORKS = {
    "linen": "flax",
    "nnx": "flax",
    "equinox": "equinox",
    "haiku": "haiku",
    "haiku_policy": "haiku",
    "flax_pooling": "flax",
}
FRAMEWORKS |= {f"{name}_pooling": name for name in ("equinox", "haiku")}
FRAMEWORKS |= {f"{adapter}_norms": FRAMEWORKS[adapter] for adapter in ("linen", "nnx", "equinox", "haiku")}
MODULES = [m.name for m in pkgutil.walk_packages(bnderiv.__path__, "bnderiv.") if not m.name.endswith("__main__")]
TAKE_SECONDS = (
    "bnderiv.adapters.equinox_norms",
    "bnderiv.equinox",
    "bnderiv.models.lenet5",
    "bnderiv.models.mlp",
    "bnderiv.models.steps",
)
PUBLIC = [
    *_layers.__all__,
    *running_stats.__all__,
    "check.compare",
    "forward_mode.enabled",
    *(f"models.{model}.{name}" for model in ("lenet5", "mlp") for name in ("Config", "init", "apply")),
    *(f"{adapter}.{n}" for adapter in ("linen", "nnx", "equinox", "haiku") for n in ("BatchNorm", "convert", "patch")),
    *(f"{adapter}.{pool}" for adapter in ("linen", "nnx", "haiku") for pool in ("avg_pool", "max_pool")),
    *(f"haiku.{pool}" for pool in ("AvgPool", "MaxPool")),
    *(f"equinox.{a}{pool}{n}d" for a in ("", "Adaptive") for pool in ("AvgPool", "MaxPool") for n in (1, 2, 3)),
    *(
        f"{adapter}.{norm}"
        for adapter in ("linen", "nnx", "haiku")
        for norm in ("LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
    ),
    *(f"{adapter}.{name}" for adapter in ("linen", "nnx") for name in ("BatchRenorm", "Conv")),
    *(f"equinox.{norm}" for norm in ("LayerNorm", "RMSNorm", "GroupNorm")),
]


def need_framework(module):
    if module in FRAMEWORKS:
        pytest.importorskip(FRAMEWORKS[module], reason=f"needs the extra {FRAMEWORKS[module]}")


@pytest.mark.few(10, 16)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in TAKE_SECONDS else []) for name in MODULES],
)
def test_examples_print_what_they_say(name):
    need_framework(name.rpartition(".")[2])
    names = {"bnderiv": bnderiv, "jax": jax, "jnp": jnp}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    printed: list[str] = []
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), extraglobs=names):
            runner.run(test, out=printed.append)
    assert not runner.failures, "".join(printed)


@pytest.mark.fast
@pytest.mark.parametrize("name", PUBLIC)
def test_has_an_example(name):
    need_framework(name.partition(".")[0])
    doc = operator.attrgetter(name)(bnderiv).__doc__
    assert doc, f"{name} has no docstring"
    assert ">>> " in doc


def test_a_wrong_example_is_seen():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    runner = doctest.DocTestRunner()
    runner.run(test, out=lambda _: None)
    assert runner.failures == 1
