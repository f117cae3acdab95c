"""Pools of random windows, strides and padding against Flax's: forward and backward, and the first call of each."""

from typing import Any

import numpy as np

from experiments.benchmark import layers
from experiments.benchmark.clock import Effort, interleaved

SHAPE = (8, 28, 28, 64)
COUNT, SEED = 50, 0


def measure(effort: Effort) -> dict[str, Any]:
    x = layers.normal(0, SHAPE)
    cases = []
    for window, strides, padding in geometries(2 if effort.quick else COUNT):
        for kind in ("max", "avg"):
            contestants = layers.contestants(f"{kind}_pool", x, window=window, strides=strides, padding=padding)
            del contestants["plain autodiff"]
            first = {who: round(1e3 * run(1)[0], 1) for who, run in contestants.items()}
            times = interleaved(contestants, effort._replace(rounds=3, burst=3, warming=0.01))
            name = f"{kind} pool {layers.by(window)}, strides {layers.by(strides)}, {padding}"
            cases.append({"case": name, "times": times, "first call ms": first})
    return {"shape": layers.by(SHAPE), "cases": cases}


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
