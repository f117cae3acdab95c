"""Every public function has a docstring with an example, and the examples print what they say."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import pytest

import bnderiv
from bnderiv import _layers
from bnderiv.models import lenet5, mlp

PUBLIC = {f"bnderiv.{name}": getattr(bnderiv, name) for name in _layers.__all__}
PUBLIC |= {f"bnderiv.check.{name}": getattr(bnderiv.check, name) for name in ("compare",)}
PUBLIC |= {f"{m.__name__}.{name}": getattr(m, name) for m in (lenet5, mlp) for name in ("Config", "init", "apply")}

# Still without an example.
TO_COME = {
    "bnderiv.avg_pool",
    "bnderiv.max_pool",
    "bnderiv.batch_norm",
    "bnderiv.batch_norm_relu",
    "bnderiv.batch_norm_inference",
    "bnderiv.BatchStats",
    "bnderiv.RunningStats",
}


def examples(name):
    doc = inspect.getdoc(PUBLIC[name])
    assert doc, f"{name} has no docstring"
    return doctest.DocTestParser().get_doctest(doc, {"bnderiv": bnderiv, "jax": jax, "jnp": jnp}, name, None, None)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_example(name):
    test = examples(name)
    assert bool(test.examples) == (name not in TO_COME), "an example, or a place in TO_COME"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    printed = []
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runner.run(test, out=printed.append)
    assert not runner.failures, "".join(printed)


def test_what_is_to_come_is_public():
    assert set(PUBLIC) >= TO_COME


def test_a_wrong_example_is_seen():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    runner = doctest.DocTestRunner()
    runner.run(test, out=lambda _: None)
    assert runner.failures == 1
