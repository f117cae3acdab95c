"""A step of training LeNet-5, and an epoch of them in one call."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import steps
from experiments.benchmark.clock import Effort, interleaved, of_jax
from experiments.benchmark.torch_peer import Torch

VARIANTS = (("max", "relu"), ("avg", "tanh"))
EPOCH = 30
MATRIX = 1024


def measure(effort: Effort, torch: Torch) -> dict[str, Any]:
    """One step in one call; and a matrix product, for the rate that the machine has."""
    cases = []
    for pool, activation in VARIANTS[:1] if effort.quick else VARIANTS:
        for size in (32,) if effort.quick else (32, 128):
            networks = steps.networks(size, pool, activation)
            contestants = {who: of_jax(step, *arguments()) for who, (step, arguments) in networks.items()}
            options = {"batch": size, "pool": pool, "activation": activation}
            contestants |= torch.contestants("lenet", not effort.quick, **options)
            name = f"batch {size}, {pool} pool, {activation}"
            cases.append({"case": name, "flops": steps.flops(size), "times": interleaved(contestants, effort)})
    a = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX))
    product = interleaved({"matrix product": of_jax(jax.jit(jnp.matmul), a, a)}, effort)
    return {"cases": cases, **product}


def epochs(effort: Effort, torch: Torch) -> dict[str, Any]:
    """Many steps in one `lax.scan`; the time of one. (PyTorch has nothing like it.)"""
    cases = []
    many = EPOCH // 3 if effort.quick else EPOCH
    for size in (32,) if effort.quick else (32, 128):
        contestants = {}
        for who, step in steps.networks(size, "max", "relu").items():
            f, arguments = steps.epoch(step, many)
            contestants[who] = of_jax(f, *arguments)
        times = interleaved(contestants, effort._replace(rounds=min(effort.rounds, 3), burst=1), per=many)
        cases.append({"case": f"batch {size}, max pool, relu, {many} in a scan", "times": times})
    return {"cases": cases}


def rates(section: dict[str, Any]) -> tuple[float, list[tuple[str, float]]]:
    """GFLOP/s of a matrix product, and of each case of ours."""
    of_ours = [(c["case"], c["flops"] / c["times"]["bnderiv"]["ms"][1] / 1e6) for c in section["cases"]]
    return 2 * MATRIX**3 / section["matrix product"]["ms"][1] / 1e6, of_ours
