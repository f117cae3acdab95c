"""The same layers by each library: bnderiv, its plain forward differentiated by JAX, and Flax where it is installed."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import jax

import bnderiv

PACKAGES = {"bnderiv": bnderiv, "plain autodiff": bnderiv.reference}


def layers(name: str, **options: Any) -> dict[str, Callable[..., Any]]:
    """By library: the layer of bnderiv's name, of x, and of gamma and beta where it has them.

    Batch norm is that of a step of training: the new running statistics are beside y.
    """
    if name != "group_norm":
        options.pop("groups", None)
    found = {who: partial(ours, package, name, **options) for who, package in PACKAGES.items()}
    if peer := flax():
        found["Flax"] = partial(peer.layer, name, **options)
    return found


def ours(package: Any, name: str, x: jax.Array, *parameters: jax.Array, running: Any = None, **options: Any) -> Any:
    """A layer of bnderiv, or of its reference. Batch norm as models and adapters have it: about the running mean."""
    layer = partial(getattr(package, name), **options)
    if name.startswith("batch_norm"):
        running = package.init_running_stats(x.shape[-1]) if running is None else running
        y, batch = layer(x, *parameters, assumed_mean=running.mean)
        return y, package.update_running_stats(running, jax.lax.stop_gradient(batch))
    return layer(x, *parameters[:1] if name == "rms_norm" else parameters)


def stack(layer: Callable[..., Any], parameters: Sequence[Any], x: jax.Array) -> jax.Array:
    """conv 3×3 of JAX → layer, with the kernel, γ and β of each of `parameters`."""
    for kernel, gamma, beta in parameters:
        z = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y = layer(z, gamma, beta)
        x = y[0] if isinstance(y, tuple) else y
    return x


def flax() -> ModuleType | None:
    """`flax_peer`, where flax is installed."""
    return importlib.import_module("experiments.benchmark.flax_peer") if importlib.util.find_spec("flax") else None
