"""What is saved between forward and backward, and what a compiled stack of layers needs."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import peers
from experiments.benchmark.clock import Effort, interleaved, of_jax
from experiments.benchmark.layers import IMAGES, by, normal

DTYPES = ("float32", "bfloat16")
LAYERS = {  # title: layer, options
    "batch norm": ("batch_norm", {}),
    "batch norm + relu": ("batch_norm_relu", {}),
    **{
        f"{kind} pool {window}×{window}, stride 2": (f"{kind}_pool", {"window": window, "strides": 2})
        for kind in ("max", "avg")
        for window in (2, 3)
    },
    "relu": ("relu", {}),
    "tanh": ("tanh", {}),
}
DEPTH = 4
TIMED_BATCH = 4


def measure(effort: Effort) -> dict[str, Any]:
    return {"residuals": _residuals(), "stack": _stack(effort)}


def saved(f: Callable[..., Any], *args: Any) -> int:
    """Bytes of everything that the backward of `f` reads on this platform, each array once; of arguments as zeros.

    A max pool hands on what the backward of any platform wants. Which of it is read, the compiled program says.
    """
    y, pull_back = jax.vjp(f, *(jnp.zeros(a.shape, a.dtype) for a in args))
    leaves, structure = jax.tree.flatten(pull_back)
    kept = list({id(leaf): leaf for leaf in leaves}.values())
    places = [next(i for i, leaf in enumerate(kept) if leaf is each) for each in leaves]

    def backward(kept: list[jax.Array], dy: Any) -> Any:
        return jax.tree.unflatten(structure, [kept[i] for i in places])(dy)

    text = str(jax.jit(backward, keep_unused=True).lower(kept, y).compile().as_text())
    entry = text[text.index("ENTRY") :]
    parameters = {int(i): name for name, i in re.findall(r"(%\S+) = \S+ parameter\((\d+)\)", entry)}
    read = (leaf for i, leaf in enumerate(kept) if len(re.findall(rf"{re.escape(parameters[i])}[,)]", entry)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in read)


def _residuals() -> dict[str, Any]:
    """In units of the bytes of x; what a layer saves is x itself, or y, or something else."""
    cases = []
    for dtype in DTYPES:
        x = jax.ShapeDtypeStruct(IMAGES, dtype)
        vector = jax.ShapeDtypeStruct(IMAGES[-1:], jnp.float32)
        for title, (name, options) in LAYERS.items():
            kept = {}
            for who, f in peers.layers(name, **options).items():
                if name.startswith("batch_norm"):  # of y alone
                    kept[who] = saved(lambda *args, f=f: f(*args)[0], x, vector, vector)
                else:
                    kept[who] = saved(f, x)
            of_x = {who: round(size / (x.size * x.dtype.itemsize), 4) for who, size in kept.items()}
            cases.append({"case": f"{title}, {dtype}", "of x": of_x})
    return {"shape": by(IMAGES), "cases": cases}


def _stack(effort: Effort) -> list[dict[str, Any]]:
    """Value and gradient of four times conv 3×3 → batch norm → ReLU: temporary memory of the program, and its time."""
    found = []
    c = IMAGES[-1]
    for dtype in DTYPES:
        block = normal(0, (3, 3, c, c), dtype), normal(1, (c,)), normal(2, (c,))
        x, few = jax.ShapeDtypeStruct(IMAGES, dtype), normal(3, (TIMED_BATCH, *IMAGES[1:]), dtype)
        temporary, contestants = {}, {}
        for who, layer in peers.layers("batch_norm_relu").items():
            program = jax.jit(jax.value_and_grad(partial(_loss, layer), argnums=(0, 1)))
            needed: Any = program.lower([block] * DEPTH, x).compile().memory_analysis()
            temporary[who] = round(needed.temp_size_in_bytes / 2**20, 1)
            contestants[who] = of_jax(program, [block] * DEPTH, few)
        case: dict[str, Any] = {"case": dtype, "shape": by(IMAGES), "temporary MiB": temporary}
        if not effort.quick:
            times = interleaved(contestants, effort._replace(rounds=3, burst=2))
            case |= {"timed shape": by(few.shape), "times": times}
        found.append(case)
    return found


def _loss(layer: Callable[..., Any], parameters: Any, x: jax.Array) -> jax.Array:
    return peers.stack(layer, parameters, x).astype(jnp.float32).mean()
