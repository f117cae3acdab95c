"""What a call costs outside of `jax.jit`, on arrays so small that the arithmetic takes no time."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import bnderiv
from experiments.benchmark.clock import Effort, interleaved, of_jax


def measure(effort: Effort) -> Iterator[dict[str, Any]]:
    for name, (arguments, options) in _calls().items():
        packages = {"bnderiv": bnderiv, "plain jnp": bnderiv.reference}
        layers = {who: partial(getattr(package, name), **options) for who, package in packages.items()}
        contestants = {"forward": {who: of_jax(f, *arguments) for who, f in layers.items()}}
        if not effort.quick:
            contestants["forward and backward"] = {who: of_jax(_both_ways, f, arguments) for who, f in layers.items()}
        for what, of_each in contestants.items():
            yield {"case": f"{name}, {what}", "times": interleaved(of_each, effort)}


def _calls() -> dict[str, tuple[tuple[jax.Array, ...], dict[str, Any]]]:
    """Every layer and loss, the arguments it is differentiated by, and the others."""
    key = jax.random.key(0)
    x, h = jax.random.normal(key, (8, 8, 8, 4)), jax.random.normal(key, (8, 16))
    ones, zeros = jnp.ones(4), jnp.zeros(4)
    kernel, matrix = jax.random.normal(key, (3, 3, 4, 4)), jax.random.normal(key, (16, 16))
    return {
        "dense": ((h, matrix, jnp.zeros(16)), {}),
        "conv2d": ((x, kernel, zeros), {}),
        "avg_pool": ((x,), {"window": 2}),
        "max_pool": ((x,), {"window": 2}),
        "batch_norm": ((x, ones, zeros), {}),
        "batch_norm_relu": ((x, ones, zeros), {}),
        "batch_norm_inference": ((x, ones, zeros, zeros, ones), {}),
        "relu": ((x,), {}),
        "tanh": ((x,), {}),
        "sigmoid": ((x,), {}),
        "softmax": ((h,), {}),
        "flatten": ((x,), {}),
        "softmax_cross_entropy": ((h, jax.nn.softmax(h)), {}),
        "softmax_cross_entropy_with_integer_labels": ((h,), {"labels": jnp.arange(8)}),
        "squared_error": ((h, h + 1), {}),
    }


def _both_ways(layer: Callable[..., Any], arguments: tuple[jax.Array, ...]) -> Any:
    out, pull_back = jax.vjp(layer, *arguments)
    return pull_back(out)
