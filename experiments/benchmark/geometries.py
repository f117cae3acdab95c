"""Pools of random windows, strides and padding against Flax's: forward and backward, and the first call of each."""

import time
from typing import Any

import jax
import numpy as np

from experiments.benchmark import peers
from experiments.benchmark.clock import Effort, interleaved, of_jax
from experiments.benchmark.layers import both_ways

SHAPE = (8, 28, 28, 64)
COUNT, SEED = 50, 0


def measure(effort: Effort) -> dict[str, Any]:
    x = jax.random.normal(jax.random.key(0), SHAPE)
    cases = []
    for window, strides, padding in geometries(2 if effort.quick else COUNT):
        for kind in ("max", "avg"):
            layers = peers.layers(f"{kind}_pool", window=window, strides=strides, padding=padding)
            del layers["plain autodiff"]
            dy = jax.random.normal(jax.random.key(1), jax.eval_shape(layers["bnderiv"], x).shape)
            contestants, first = {}, {}
            for who, f in layers.items():
                program, start = both_ways(f), time.perf_counter()
                jax.block_until_ready(program((x,), dy))
                first[who] = round(1e3 * (time.perf_counter() - start), 1)
                contestants[who] = of_jax(program, (x,), dy)
            times = interleaved(contestants, effort._replace(rounds=3, burst=3, warming=0.01))
            name = f"{kind} pool {'×'.join(map(str, window))}, strides {'×'.join(map(str, strides))}, {padding}"
            cases.append({"case": name, "times": times, "first call ms": first})
    return {"shape": "×".join(map(str, SHAPE)), "cases": cases}


def geometries(count: int) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    """Small windows and windows up to the image, half with stride 1; the first two are the whole image."""
    rng = np.random.default_rng(SEED)
    found = [((28, 28), (1, 1), "VALID"), ((14, 14), (1, 1), "VALID")]
    while len(found) < count:
        high = int(rng.choice([6, 29]))
        m, n = (int(k) for k in rng.integers(1, high, 2))
        strides = (1, 1) if rng.random() < 0.5 else (int(rng.integers(1, m + 1)), int(rng.integers(1, n + 1)))
        found.append(((m, n), strides, "SAME" if rng.random() < 0.4 else "VALID"))
    return found[:count]
