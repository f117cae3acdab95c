"""A step of training LeNet-5, of every library's network: value, gradient, SGD and running statistics."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv.models import lenet5
from experiments.benchmark import peers
from experiments.benchmark.clock import Effort, interleaved, of_jax
from experiments.benchmark.torch_peer import Torch

# Jitted (params, state, x, labels) -> (params, state, loss); and its arguments, made when they are asked for.
Step = tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]
VARIANTS = (("max", "relu"), ("avg", "tanh"))
EPOCH = 30
MATRIX = 1024
RATE = 0.01
GRADIENTS = {"bnderiv": "closed_form", "plain autodiff": "autodiff"}


def measure(effort: Effort, torch: Torch) -> dict[str, Any]:
    """One step in one call; and a matrix product, for the rate that the machine has."""
    cases = []
    for pool, activation in VARIANTS[:1] if effort.quick else VARIANTS:
        for size in (32,) if effort.quick else (32, 128):
            steps = networks(size, pool, activation)
            contestants = {who: of_jax(step, *arguments()) for who, (step, arguments) in steps.items()}
            options = {"batch": size, "pool": pool, "activation": activation}
            contestants |= torch.contestants("lenet", not effort.quick, **options)
            name = f"batch {size}, {pool} pool, {activation}"
            cases.append({"case": name, "flops": flops(size), "times": interleaved(contestants, effort)})
    a = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX))
    product = interleaved({"matrix product": of_jax(jax.jit(jnp.matmul), a, a)}, effort)
    return {"cases": cases, **product}


def epochs(effort: Effort, _: Any) -> Iterator[dict[str, Any]]:
    """Many steps in one `lax.scan`, on batches of their own; the time of one. (PyTorch has nothing like it.)"""
    many = EPOCH // 3 if effort.quick else EPOCH
    for size in (32,) if effort.quick else (32, 128):
        contestants = {}
        for who, (step, arguments) in networks(size, "max", "relu").items():
            params, state, *batch = arguments()
            contestants[who] = of_jax(_scanned(step), params, state, *(jnp.stack([a] * many) for a in batch))
        times = interleaved(contestants, effort._replace(rounds=min(effort.rounds, 3), burst=1), per=many)
        yield {"case": f"batch {size}, max pool, relu, {many} in a scan", "times": times}


def networks(size: int, pool: str, activation: str, dtype: str = "float32") -> dict[str, Step]:
    """By library, for a batch of this size: bnderiv's network, its gradients in closed form or by autodiff; Flax's,
    always float32, with optax's loss."""
    found = {}
    for who, gradients in GRADIENTS.items():
        options: dict[str, Any] = {"pool": pool, "activation": activation, "gradients": gradients, "dtype": dtype}
        config = lenet5.Config(**options)
        init = partial(jax.jit(lenet5.init, static_argnums=1), jax.random.key(0), config)
        cross_entropy = peers.PACKAGES[who].softmax_cross_entropy_with_integer_labels
        step = train_step(partial(lenet5.apply, config=config, train=True), cross_entropy)
        found[who] = step, lambda init=init: (*init(), *batch(size))
    if peer := peers.flax():
        apply, flax_init = peer.functions(peer.LeNet5(pool, activation))
        step = train_step(apply, peer.optax.softmax_cross_entropy_with_integer_labels)
        found["Flax"] = step, lambda: (*flax_init(batch(size)[0]), *batch(size))
    return found


def batch(size: int) -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(1), (size, 28, 28, 1), jnp.float32)
    return x, jax.random.randint(jax.random.key(2), (size,), 0, 10)


def flops(size: int) -> int:
    """Multiplications and additions of the convolutions and dense layers, counted from the shapes.

    Each product in three: forward, gradient of the weights, gradient of the input; the images need none.
    """
    convolutions = [(28 * 28, 5 * 5 * 1, 6), (10 * 10, 5 * 5 * 6, 16)]
    dense = [(1, 400, 120), (1, 120, 84), (1, 84, 10)]
    forward = [2 * size * places * inputs * outputs for places, inputs, outputs in convolutions + dense]
    return 3 * sum(forward) - forward[0]


def train_step(apply: Callable[..., Any], cross_entropy: Callable[..., Any]) -> Callable[..., Any]:
    """(params, state, x, labels) -> (params, state, loss): gradients, SGD and running statistics."""

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            logits, new = apply(params, state, x)
            return cross_entropy(logits, labels).mean(), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradient), new, value

    return step


def _scanned(step: Callable[..., Any]) -> Callable[..., Any]:
    def body(network: Any, batch: Any) -> Any:
        params, state, loss = step(*network, *batch)
        return (params, state), loss

    return jax.jit(lambda params, state, *batches: lax.scan(body, (params, state), batches))
