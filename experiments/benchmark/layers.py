"""Layers and losses by themselves, forward and backward; and what a call of them costs outside of `jax.jit`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bnderiv
from experiments._report import by
from experiments.benchmark import peers
from experiments.benchmark.clock import FEWER, Contestant, Effort, interleaved, of_jax
from experiments.benchmark.torch_peer import Torch

IMAGES = (64, 56, 56, 64)
FEW_IMAGES = (8, 28, 28, 64)
SHAPES = (IMAGES, (256, 8, 8, 512), (32, 28, 28, 6), (128, 1024), (64, 84))
WINDOWS = ((2, 2, 0), (3, 2, 0), (3, 2, 1))  # and strides, and paddings; the last as before ResNet's first block
LOGITS = ((128, 10), (512, 1000), (256, 32_000))  # digits, ImageNet, words
OTHERS = {  # title: layer, options, shapes of its arguments
    "softmax, 512×1000": ("softmax", {}, [(512, 1000)]),
    "log softmax, 512×1000": ("log_softmax", {}, [(512, 1000)]),
    "relu, 64×56×56×64": ("relu", {}, [IMAGES]),
    "sigmoid, 64×56×56×64": ("sigmoid", {}, [IMAGES]),
    "tanh, 64×56×56×64": ("tanh", {}, [IMAGES]),
    "dense, 128×1024 to 1024": ("dense", {}, [(128, 1024), (1024, 1024), (1024,)]),
    "one axis, conv 3, 32×256×64": ("conv", {}, [(32, 256, 64), (3, 64, 64), (64,)]),
    "three axes, conv 3×3×3, 4×16×16×16×16": ("conv", {}, [(4, 16, 16, 16, 16), (3, 3, 3, 16, 16), (16,)]),
    "one axis, max pool 2, 64×1024×64": ("max_pool", {"window": 2, "strides": 2}, [(64, 1024, 64)]),
    "three axes, max pool 2×2×2, 8×16×16×16×32": ("max_pool", {"window": 2, "strides": 2}, [(8, 16, 16, 16, 32)]),
    "one axis, avg pool 2, 64×1024×64": ("avg_pool", {"window": 2, "strides": 2}, [(64, 1024, 64)]),
    "three axes, avg pool 2×2×2, 8×16×16×16×32": ("avg_pool", {"window": 2, "strides": 2}, [(8, 16, 16, 16, 32)]),
}
RESNET50 = tuple((256, side, side, c) for side, c in ((112, 64), (56, 64), (56, 256), (28, 512), (14, 1024), (7, 2048)))


def pools(kind: str, effort: Effort, torch: Torch) -> Iterator[dict[str, Any]]:
    x = normal(0, (8, *IMAGES[1:]) if effort.quick else IMAGES)
    for window, stride, padding in WINDOWS[1:2] if effort.quick else WINDOWS:
        options = {"window": window, "padding": padding}
        found = contestants(f"{kind}_pool", x, strides=stride, **options)
        found |= torch.contestants("pool", not effort.quick, shape=x.shape, kind=kind, stride=stride, **options)
        found["a copy of x"] = of_jax(jax.jit(lambda x: 2 * x), x)
        name = f"{kind} pool {window}×{window}, stride {stride}{', padding 1' if padding else ''}, {by(x.shape)}"
        yield case(name, found, x, effort)


def random_pools(effort: Effort, _: Any) -> dict[str, Any]:
    """Pools of random windows, strides and padding, and the first call of each, beside Flax's."""
    x = normal(0, FEW_IMAGES)
    cases = []
    for window, strides, padding in _geometries(2 if effort.quick else 50):
        for kind in ("max", "avg"):
            found = contestants(f"{kind}_pool", x, window=window, strides=strides, padding=padding)
            del found["plain autodiff"]
            first = {who: round(1e3 * run(1)[0], 1) for who, run in found.items()}
            times = interleaved(found, effort._replace(rounds=3, burst=3, warming=0.01))
            name = f"{kind} pool {by(window)}, strides {by(strides)}, {padding}"
            cases.append({"case": name, "times": times, "first call ms": first})
    return {"shape": by(FEW_IMAGES), "cases": cases}


def _geometries(count: int) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    """Small windows and windows up to the image, half with stride 1; the first two are the whole image."""
    rng = np.random.default_rng(0)
    found = [((28, 28), (1, 1), "VALID"), ((14, 14), (1, 1), "VALID")]
    while len(found) < count:
        high = int(rng.choice([6, 29]))
        m, n = (int(k) for k in rng.integers(1, high, 2))
        strides = (1, 1) if rng.random() < 0.5 else (int(rng.integers(1, m + 1)), int(rng.integers(1, n + 1)))
        found.append(((m, n), strides, "SAME" if rng.random() < 0.4 else "VALID"))
    return found[:count]


def batch_norms(layer: str, effort: Effort, torch: Torch) -> Iterator[dict[str, Any]]:
    return (batch_norm(effort, torch, shape, "float32", layer) for shape in (SHAPES[2:] if effort.quick else SHAPES))


def batch_norms_of_resnet(effort: Effort, torch: Torch) -> dict[str, Any]:
    """On a GPU; elsewhere nothing."""
    if jax.default_backend() != "gpu":
        return {"cases": [], "absent": "no GPU measured"}
    shapes = RESNET50[-1:] if effort.quick else RESNET50
    return {"cases": [batch_norm(effort, torch, shape, d) for shape in shapes for d in ("float32", "bfloat16")]}


def batch_norm(
    effort: Effort, torch: Torch, shape: Sequence[int], dtype: str, layer: str = "batch_norm"
) -> dict[str, Any]:
    """Everybody, with the running statistics renewed; and what four copies of x take."""
    x, relu = normal(0, shape, dtype), layer.endswith("relu")
    found = contestants(layer, x, jnp.ones(shape[-1]), jnp.zeros(shape[-1]))
    found |= torch.contestants("batch_norm", not effort.quick, shape=shape, relu=relu, dtype=dtype)
    found["4 copies"] = _copies(jax.jit(lambda x: 2 * x), x)
    found["4 copies in place"] = _copies(jax.jit(lambda x: 2 * x, donate_argnums=0), jnp.zeros_like(x), again=True)
    return case(f"batch norm{' + relu' * relu}, {by(shape)}, {dtype}", found, x, effort)


def losses(effort: Effort, _: Any) -> Iterator[dict[str, Any]]:
    """Cross entropies of integer labels and of distributions. Those of Flax's users are optax's."""
    for shape in LOGITS[:1] if effort.quick else LOGITS:
        logits = normal(2, shape)
        integers = jax.random.randint(jax.random.key(0), shape[:1], 0, shape[-1])
        for kind, layer, labels in (
            ("integer labels", "softmax_cross_entropy_with_integer_labels", integers),
            ("distributions", "softmax_cross_entropy", jax.nn.softmax(normal(1, shape))),
        ):
            found = contestants(layer, logits, labels=labels)
            yield case(f"cross entropy, {kind}, {by(shape)}", found, logits, effort)


def others(effort: Effort, _: Any) -> Iterator[dict[str, Any]]:
    """What is in no other section, as people use it."""
    for title, (name, options, shapes) in list(OTHERS.items())[: 2 if effort.quick else None]:
        arguments = [normal(i, shape) for i, shape in enumerate(shapes)]
        yield case(title, contestants(name, *arguments, **options), arguments[0], effort)


def calls(effort: Effort, _: Any) -> Iterator[dict[str, Any]]:
    """On arrays so small that the arithmetic takes no time."""
    for name, (arguments, options) in _calls().items():
        packages = {"bnderiv": bnderiv, "plain jnp": bnderiv.reference}
        layers = {who: partial(getattr(package, name), **options) for who, package in packages.items()}
        ways = {"forward": {who: of_jax(f, *arguments) for who, f in layers.items()}}
        if not effort.quick:
            ways["forward and backward"] = {who: of_jax(_pulled_back, f, arguments) for who, f in layers.items()}
        for way, contestants in ways.items():
            yield {"case": f"{name}, {way}", "times": interleaved(contestants, effort)}


def contestants(name: str, *arguments: jax.Array, **options: Any) -> dict[str, Contestant]:
    """A layer of each library, forward and backward; see `peers.layers`."""
    layers, has_aux = peers.layers(name, **options), name.startswith("batch_norm")
    y, *_ = jax.tree.leaves(jax.eval_shape(layers["bnderiv"], *arguments))
    dy = normal(9, y.shape, y.dtype)
    return {who: of_jax(both_ways(f, has_aux), arguments, dy) for who, f in layers.items()}


def case(name: str, contestants: Mapping[str, Contestant], x: jax.Array, effort: Effort) -> dict[str, Any]:
    few = x.size > 10**6 and not effort.quick
    return {"case": name, "times": interleaved(contestants, FEWER if few else effort)}


def normal(seed: int, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def both_ways(layer: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """Jitted: output, gradients and whatever else the layer gives, from its arguments and a cotangent."""

    def run(arguments: Any, dy: jax.Array) -> Any:
        results: Any = jax.vjp(layer, *arguments, has_aux=has_aux)
        out, pull_back, *more = results
        return out, pull_back(dy), more

    return jax.jit(run)


def _copies(copy: Callable[..., Any], x: jax.Array, again: bool = False) -> Contestant:
    """Four in a row; `again`, each of the last one's result, whose memory it takes."""

    def run() -> None:
        nonlocal x
        for _ in range(4):
            y = jax.block_until_ready(copy(x))
            x = y if again else x

    return of_jax(run)


def _calls() -> dict[str, tuple[tuple[jax.Array, ...], dict[str, Any]]]:
    """Every layer and loss, the arguments it is differentiated by, and the others."""
    x, h, kernel, matrix = map(partial(normal, 0), ((8, 8, 8, 4), (8, 16), (3, 3, 4, 4), (16, 16)))
    ones, zeros = jnp.ones(4), jnp.zeros(4)
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


def _pulled_back(layer: Callable[..., Any], arguments: tuple[jax.Array, ...]) -> Any:
    out, pull_back = jax.vjp(layer, *arguments)
    return pull_back(out)
