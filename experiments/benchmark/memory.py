"""What is saved between forward and backward, what a compiled stack of layers needs, and what must not grow faster than
its cause: time and memory with the elements, compiling, importing.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bnderiv
from experiments._report import by
from experiments.benchmark import peers, steps
from experiments.benchmark.clock import Effort, interleaved, of_jax, quartiles
from experiments.benchmark.layers import IMAGES, both_ways, normal

DTYPES = ("float32", "bfloat16")
LAYERS = {  # title: layer, options
    "batch norm": ("batch_norm", {}),
    "batch norm + relu": ("batch_norm_relu", {}),
    "max pool 2×2, stride 2": ("max_pool", {"window": 2, "strides": 2}),
    "max pool 3×3, stride 2": ("max_pool", {"window": 3, "strides": 2}),
    "avg pool 2×2, stride 2": ("avg_pool", {"window": 2, "strides": 2}),
    "avg pool 3×3, stride 2": ("avg_pool", {"window": 3, "strides": 2}),
    "relu": ("relu", {}),
    "tanh": ("tanh", {}),
}
DEPTH = 4
TIMED_BATCH = 4
SIZES = tuple(10**k for k in range(4, 9))
PLACES = 10_000  # 10×10 pixels of 100 channels, times the batch


def measure(effort: Effort, _: Any) -> dict[str, Any]:
    return {"residuals": _residuals(), "stack": list(_stack(effort))}


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


def _stack(effort: Effort) -> Iterator[dict[str, Any]]:
    """Value and gradient of four times conv 3×3 → batch norm → ReLU: temporary memory of the program, and its time."""
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
        yield case


def _loss(layer: Callable[..., Any], parameters: Any, x: jax.Array) -> jax.Array:
    return peers.stack(layer, parameters, x).astype(jnp.float32).mean()


def growth(effort: Effort, _: Any) -> dict[str, Any]:
    return {"sizes": list(_sizes(effort)), "compile": _compile(effort), "import": _import(effort)}


def _sizes(effort: Effort) -> Iterator[dict[str, Any]]:
    """Batch norm and max pool forward and backward, from 10⁴ elements to 10⁸."""
    for size in SIZES[:2] if effort.quick else SIZES:
        if size * 4 * 8 > _free_bytes():
            yield {"elements": size, "absent": "too little free memory"}
            continue
        x = normal(0, (size // PLACES, 10, 10, 100))
        case: dict[str, Any] = {"elements": size}
        contestants = {}
        for name, f, arguments in (
            ("batch_norm", lambda *args: bnderiv.batch_norm(*args)[0], (x, x[0, 0, 0], x[0, 0, 1])),
            ("max_pool", partial(bnderiv.max_pool, window=2), (x,)),
        ):
            dy = normal(1, jax.eval_shape(f, *arguments).shape)
            program = both_ways(f)
            needed = program.lower(arguments, dy).compile().memory_analysis()
            case[f"{name}: temporary bytes"] = needed.temp_size_in_bytes
            case[f"{name}: saved bytes"] = saved(f, *arguments)
            contestants[name] = of_jax(program, arguments, dy)
        few = effort._replace(rounds=3, burst=3) if size > 10**7 else effort
        yield {**case, "times": interleaved(contestants, few)}


def _free_bytes() -> float:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return float("inf")
    return 1024 * int(meminfo.read_text().partition("MemAvailable:")[2].split()[0])


def _compile(effort: Effort) -> dict[str, Any]:
    """Seconds to trace, to lower and to compile a step of LeNet-5, everything forgotten before each."""
    seconds: dict[str, list[list[float]]] = {who: [] for who in steps.GRADIENTS}
    for _ in range(2 if effort.quick else 7):
        for who, taken in seconds.items():
            stage, arguments = steps.networks(32, "max", "relu")[who]
            given = jax.eval_shape(arguments)
            jax.clear_caches()
            marks = [time.perf_counter()]
            for go_on in (methodcaller("trace", *given), methodcaller("lower"), methodcaller("compile")):
                stage = go_on(stage)
                marks.append(time.perf_counter())
            taken.append([*np.diff(marks), marks[-1] - marks[0]])
    parts = ("trace", "lower", "compile", "all")
    return {
        who: dict(zip(parts, map(quartiles, zip(*taken[1:], strict=True)), strict=True))
        for who, taken in seconds.items()
    }


def _import(effort: Effort) -> dict[str, Any]:
    """Milliseconds, in fresh processes: `import jax`, then `import bnderiv` in the same one."""
    program = (
        "import time; a = time.perf_counter(); import jax; b = time.perf_counter(); import bnderiv; "
        "print(b - a, time.perf_counter() - b)"
    )
    command, root = [sys.executable, "-c", program], Path(__file__).parents[2]
    taken = []
    for _ in range(2 if effort.quick else 12):
        printed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
        taken.append([float(seconds) for seconds in printed.split()])
    jax_alone, ours = zip(*taken[1:], strict=True)
    return {"jax": quartiles(jax_alone), "bnderiv, after it": quartiles(ours)}
