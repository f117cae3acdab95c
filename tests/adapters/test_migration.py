"""The page on migration: its before and after compute the same, and the rest of its code runs."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.adapters.alike import alike, normal
from tests.compiling import fast_jit

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
PAIRS = {
    framework: [block for block in BLOCKS if re.search(rf"^[^\n]*{framework}[^\n]*# before", block)]
    for framework in ("flax.linen", "nnx", "equinox", "haiku")
}


@pytest.fixture(autouse=True)
def as_jax_comes():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        yield


def results(framework: str, names: dict[str, Any]) -> list[jax.Array]:
    """Parameters, state and output of a step of training, from the model a block defines."""
    x, key = normal(0, (4, 8, 8, 3), jnp.float32), jax.random.key(0)
    if framework == "flax.linen":
        model = names["Block"]()
        variables = model.init(key, x, True)
        out = fast_jit(lambda: model.apply(variables, x, True, mutable=["batch_stats"]))()
    elif framework == "nnx":
        model = names["Block"](names["nnx"].Rngs(0))
        out, variables = model(x), names["nnx"].to_pure_dict(names["nnx"].state(model))
    elif framework == "equinox":
        model, state = names["eqx"].nn.make_with_state(names["Block"])(key)
        mapped = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        out, variables = fast_jit(mapped)(jnp.moveaxis(x, -1, 1), state), model
    else:
        model = names["hk"].transform_with_state(names["block"])
        variables = model.init(key, x, True)
        out = fast_jit(lambda: model.apply(*variables, None, x, True))()
    return [jnp.asarray(a) for a in jax.tree.leaves((out, variables)) if hasattr(a, "dtype")]


@pytest.mark.slow
@pytest.mark.parametrize("framework", PAIRS)
def test_before_and_after(framework):
    pytest.importorskip(framework, reason="needs the frameworks") if framework != "nnx" else pytest.importorskip("flax")
    (before,) = PAIRS[framework]
    after = BLOCKS[BLOCKS.index(before) + 1]
    assert "# after" in after.splitlines()[0]
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    exec(before, theirs)
    exec(after, ours)
    assert any(getattr(a, "__name__", "").startswith("bnderiv.") for a in ours.values())
    assert not any(getattr(a, "__name__", "").startswith("bnderiv.") for a in theirs.values())
    alike(results(framework, ours), results(framework, theirs))


@pytest.mark.parametrize("block", [b for b in BLOCKS if "# before" not in b and "# after" not in b])
def test_the_rest_runs(block):
    for package in ("flax", "equinox", "haiku", "jmp"):
        if package in block:
            pytest.importorskip(package, reason="needs the frameworks")
    exec(block, {})
