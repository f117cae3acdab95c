"""For a Python into which bnderiv was installed: every public name is there, and a gradient is right."""

import importlib.metadata
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import bnderiv

assert Path(bnderiv.__file__).is_relative_to(sys.prefix), bnderiv.__file__  # not a source tree that lies about
assert importlib.metadata.version("bnderiv") == bnderiv.__version__
assert Path(bnderiv.__file__).with_name("py.typed").exists()
for module in (bnderiv, bnderiv.reference, bnderiv.forward_mode, bnderiv.steps, bnderiv.models):
    for name in module.__all__:
        assert getattr(module, name) is not None, f"{module.__name__}.{name}"

x = jax.random.normal(jax.random.key(0), (16, 5, 5, 3))
gamma, beta, delta = jnp.array([1.0, 2.0, 3.0]), jnp.zeros(3), jax.random.normal(jax.random.key(1), x.shape)
ours, expected = (
    jax.grad(lambda *a, layers=layers: jnp.vdot(layers.batch_norm_relu(*a)[0], delta), (0, 1, 2))(x, gamma, beta)
    for layers in (bnderiv, bnderiv.reference)
)
for a, b in zip(ours, expected, strict=True):
    assert jnp.linalg.norm(a - b) < 1e-5 * jnp.linalg.norm(b)
print(f"bnderiv {bnderiv.__version__} is installed")
