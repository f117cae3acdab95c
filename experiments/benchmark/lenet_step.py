"""A step of training LeNet-5, and an epoch of them in one call."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import steps
from experiments.benchmark.clock import Effort, interleaved, of_jax
from experiments.benchmark.torch_peer import Torch

EPOCH = 30
MATRIX = 1024


def measure(effort: Effort, torch: Torch) -> dict[str, Any]:
    cases = []
    for pool, activation in (("max", "relu"), ("avg", "tanh")):
        for size in (32,) if effort.quick else (32, 128):
            name = f"batch {size}, {pool} pool, {activation}"
            found = {
                "bnderiv": steps.ours("closed_form", size, pool, activation),
                "plain autodiff": steps.ours("autodiff", size, pool, activation),
                "Flax": steps.flax(size, pool, activation),
            }
            found = {who: step for who, step in found.items() if step is not None}
            contestants = {who: of_jax(f, *arguments) for who, (f, arguments) in found.items()}
            contestants |= torch.contestants("lenet", not effort.quick, batch=size, pool=pool, activation=activation)
            if not cases:
                a = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX))
                contestants["matrix product"] = of_jax(jax.jit(jnp.matmul), a, a)
            times = interleaved(contestants, effort)
            case: dict[str, Any] = {"case": name, "flops": steps.flops(size)}
            if "matrix product" in times:
                case["matrix product"] = times.pop("matrix product")
            cases.append({**case, "times": times})
            if pool == "max" and not effort.quick:
                epochs = {who: steps.epoch(step, EPOCH) for who, step in found.items()}
                contestants = {who: of_jax(f, *arguments) for who, (f, arguments) in epochs.items()}
                few = effort._replace(rounds=3, burst=1)
                times = interleaved(contestants, few, per=EPOCH)
                cases.append({"case": f"{name}, in a scan of {EPOCH}", "flops": steps.flops(size), "times": times})
    return {"cases": cases}


def rates(section: dict[str, Any]) -> tuple[float, list[tuple[str, float]]]:
    """GFLOP/s of a matrix product, and of each case of ours."""
    (product,) = (case["matrix product"] for case in section["cases"] if "matrix product" in case)
    of_ours = [(c["case"], c["flops"] / c["times"]["bnderiv"]["ms"][1] / 1e6) for c in section["cases"]]
    return 2 * MATRIX**3 / product["ms"][1] / 1e6, of_ours
