"""The other norms by `patch` and `convert`, and in forward mode, in each framework."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bnderiv.forward_mode
from tests.adapters.alike import alike, normal
from tests.compiling import fast_jit

NORMS = {"LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"}
PLACES = {"linen": "flax.linen", "nnx": "flax.nnx", "equinox": "equinox.nn", "haiku": "haiku"}


@pytest.fixture(autouse=True)
def _as_the_frameworks_need():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("framework", PLACES)
def test_patch_replaces_them_and_takes_them_back(framework):
    place = pytest.importorskip(PLACES[framework])
    ours = importlib.import_module(f"bnderiv.{framework}")
    names = NORMS & set(ours.__all__)
    before = {name: getattr(place, name) for name in names}
    assert len(names) == (3 if framework == "equinox" else 4)
    with ours.patch():
        assert all(getattr(place, name) is getattr(ours, name) for name in names)
    assert {name: getattr(place, name) for name in names} == before


def built(framework: str) -> tuple[Any, Any]:
    """A model of a layer norm and a group norm of the framework's, and how it is called on a batch."""
    if framework == "linen":
        nn = pytest.importorskip("flax.linen")
        return nn.Sequential([nn.LayerNorm(), nn.GroupNorm(2)]), lambda m, x: m.init_with_output(jax.random.key(0), x)[
            0
        ]
    if framework == "nnx":
        nnx = pytest.importorskip("flax.nnx")
        layers = nnx.LayerNorm(6, rngs=nnx.Rngs(0)), nnx.GroupNorm(6, 2, rngs=nnx.Rngs(0))
        return nnx.Sequential(*layers), lambda m, x: m(x)
    eqx = pytest.importorskip("equinox")
    return eqx.nn.Sequential([eqx.nn.LayerNorm(6), eqx.nn.GroupNorm(2, 6)]), lambda m, x: jax.vmap(m)(x)


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox"])
def test_convert_and_forward_mode(framework):
    model, call = built(framework)
    ours = importlib.import_module(f"bnderiv.{framework}")
    converted = ours.convert(model)
    assert [type(layer) for layer in converted.layers] == [ours.LayerNorm, ours.GroupNorm]
    x, dx = normal(0, (4, 6), jnp.float64), normal(1, (4, 6), jnp.float64)
    with bnderiv.forward_mode.enabled():
        actual = fast_jit(lambda x, dx: jax.jvp(lambda x: call(converted, x), (x,), (dx,)))(x, dx)
    alike(actual, fast_jit(lambda x, dx: jax.jvp(lambda x: call(model, x), (x,), (dx,)))(x, dx))
