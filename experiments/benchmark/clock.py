"""Times taken in turns: in every round each contestant first runs to get warm, then a few times in a row that count.

In turns, so that what the machine does meanwhile happens to all of them; warm and in a row, so that each finds its
program, its data and the processor as a training loop does; and in every round with its arrays at other addresses, as
a small layer takes up to a fifth more or less by where they lie, which would else be one process's luck. Reported are
the median and the quartiles over all rounds.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Contestant = Callable[[int], list[float]]  # runs so many times; the seconds that each took
Times = dict[str, dict[str, Any]]  # by contestant: {"ms": [quartile, median, quartile], "runs"}, or {"absent": reason}

PAUSE = 0.03  # seconds; the last one's threads wait for more work for a while, and keep a core busy by it
PAGE = 4096  # bytes; addresses that are equal but for pages slow each other down


class Effort(NamedTuple):
    """How long to measure."""

    quick: bool
    rounds: int
    burst: int  # runs of a round that count
    warming: float = 0.05  # seconds; the first dozen steps of LeNet-5 after a pause are up to a fifth slower


FULL = Effort(quick=False, rounds=16, burst=6)
FEWER = FULL._replace(rounds=4, burst=2)  # where a run takes long
QUICK = Effort(quick=True, rounds=2, burst=3, warming=0.01)


class Absent(Exception):
    """This contestant cannot take part, and why."""


def of_jax(f: Callable[..., Any], *args: Any) -> Contestant:
    """Calls of a jitted function, each until its results are there."""
    random = np.random.default_rng(0)

    def run(times: int) -> list[float]:
        gap = jnp.zeros(random.integers(1, PAGE), jnp.uint8)  # moves what is allocated next
        moved = jax.tree.map(lambda a: a.copy() if isinstance(a, jax.Array) else a, args)
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            jax.block_until_ready(f(*moved))
            seconds.append(time.perf_counter() - start)
        del gap
        return seconds

    return run


def interleaved(contestants: Mapping[str, Contestant], effort: Effort, per: int = 1) -> Times:
    """Times of each; `per` is how many steps a run makes, and times are for one of them."""
    times: Times = {}
    warming: dict[str, int] = {}  # how many runs
    for name, contestant in contestants.items():
        try:
            contestant(1)  # compiles
            warming[name] = max(1, math.ceil(effort.warming / contestant(2)[1]))
        except Absent as reason:
            times[name] = {"absent": str(reason)}
    seconds: dict[str, list[float]] = {name: [] for name in warming}
    for _ in range(effort.rounds):
        for name, runs in warming.items():
            time.sleep(PAUSE)
            seconds[name] += contestants[name](runs + effort.burst)[runs:]
    times |= {name: quartiles(taken, per) for name, taken in seconds.items()}
    return {name: times[name] for name in contestants}


def quartiles(seconds: Sequence[float], per: int = 1) -> dict[str, Any]:
    """Of the runs, in milliseconds; `per` as above."""
    found = np.percentile(seconds, [25, 50, 75]) * 1e3 / per
    return {"ms": [float(f"{q:.4g}") for q in found], "runs": len(seconds)}
