"""What must not grow faster than its cause: time and memory with the elements, compiling, importing."""

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bnderiv
from experiments.benchmark import steps
from experiments.benchmark.clock import Effort, interleaved, of_jax, quartiles
from experiments.benchmark.layers import both_ways, normal
from experiments.benchmark.memory import saved

SIZES = tuple(10**k for k in range(4, 9))
PLACES = 10_000  # 10×10 pixels of 100 channels, times the batch


def measure(effort: Effort) -> dict[str, Any]:
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
