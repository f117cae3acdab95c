"""What a call costs outside of `jax.jit`, on arrays so small that the arithmetic takes no time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import bnderiv
from experiments.benchmark.clock import Effort, interleaved, of_jax


def measure(effort: Effort) -> dict[str, Any]:
    ways: dict[str, Callable[..., Any]] = {"forward": lambda f, a: of_jax(f, *a)}
    if not effort.quick:
        ways["forward and backward"] = _both_ways
    cases = []
    for name, arguments in _calls().items():
        packages = {"bnderiv": bnderiv, "plain jnp": bnderiv.reference}
        layers = {who: getattr(package, name) for who, package in packages.items()}
        for what, make in ways.items():
            contestants = {who: make(f, arguments) for who, f in layers.items()}
            cases.append({"case": f"{name}, {what}", "times": interleaved(contestants, effort)})
    return {"cases": cases}


def _calls() -> dict[str, tuple[Any, ...]]:
    """Every layer and loss, and its arguments."""
    key = jax.random.key(0)
    x, h = jax.random.normal(key, (8, 8, 8, 4)), jax.random.normal(key, (8, 16))
    ones, zeros = jnp.ones(4), jnp.zeros(4)
    kernel, matrix = jax.random.normal(key, (3, 3, 4, 4)), jax.random.normal(key, (16, 16))
    return {
        "dense": (h, matrix, jnp.zeros(16)),
        "conv2d": (x, kernel, zeros),
        "avg_pool": (x, 2),
        "max_pool": (x, 2),
        "batch_norm": (x, ones, zeros),
        "batch_norm_relu": (x, ones, zeros),
        "batch_norm_inference": (x, ones, zeros, zeros, ones),
        "relu": (x,),
        "tanh": (x,),
        "sigmoid": (x,),
        "softmax": (h,),
        "flatten": (x,),
        "softmax_cross_entropy": (h, jax.nn.softmax(h)),
        "softmax_cross_entropy_with_integer_labels": (h, jnp.arange(8)),
        "squared_error": (h, h + 1),
    }


def _both_ways(layer: Any, arguments: tuple[Any, ...]) -> Any:
    floats = [i for i, a in enumerate(arguments) if isinstance(a, jax.Array) and a.dtype == jnp.float32]

    def run() -> Any:
        def f(*values: jax.Array) -> Any:
            given = dict(zip(floats, values, strict=True))
            return layer(*(given.get(i, a) for i, a in enumerate(arguments)))

        out, pull_back = jax.vjp(f, *(arguments[i] for i in floats))
        return pull_back(out)

    return of_jax(run)
