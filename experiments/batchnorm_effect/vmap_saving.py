"""How much time one program of all seeds and rates saves: the sweep, and the same runs one after another.

    python experiments/batchnorm_effect/vmap_saving.py [--data DIR]

One after another is the same training, compiled once for each kind and called for every seed and rate.
"""

import dataclasses
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

from experiments import _command, _report
from experiments.batchnorm_effect import network, run


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is timed."""

    data: Path | None = None
    """Folder of IDX files (see experiments/_data.py); without it, scikit-learn's digits."""
    steps: int = 200
    """Of each run."""
    repeats: int = 3
    """The least time counts."""
    out: Path | None = None
    """File of the results; beside this script results/vmap_saving.json, of the digits runs/vmap_saving.json."""

    def __post_init__(self) -> None:
        for name in ("steps", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def seconds(f: Any, repeats: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(f())
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(repeats))


def saving(task: network.Task, seeds: int, rates: tuple[float, ...], settings: Settings) -> dict[str, Any]:
    """Milliseconds of one step of one run, both ways; and the seconds of compiling."""
    options = {"deviation": 0.1, "steps": settings.steps, "every": settings.steps}
    keys, each_rate = jax.random.split(jax.random.key(0), seeds), jnp.array(rates, jnp.float32)
    start = time.perf_counter()
    together = network.sweep.lower(keys, each_rate, task, **options).compile()
    compiled = time.perf_counter()
    singles = [
        jax.jit(partial(network.train, batch_norm=kind, **options)).lower(keys[0], each_rate[0], task).compile()
        for kind in (True, False)
    ]
    compiling = {"together": compiled - start, "one after another": time.perf_counter() - compiled}
    runs = 2 * seeds * len(rates)
    milliseconds = {
        "together": seconds(lambda: together(keys, each_rate, task), settings.repeats),
        "one after another": seconds(
            lambda: [single(key, rate, task) for single in singles for key in keys for rate in each_rate],
            settings.repeats,
        ),
    }
    return {
        "runs": f"{seeds} seeds × {len(rates)} rates × with and without",
        "ms_for_a_step_of_a_run": {
            name: round(1e3 * value / runs / settings.steps, 3) for name, value in milliseconds.items()
        },
        "times_faster": round(milliseconds["one after another"] / milliseconds["together"], 2),
        "seconds_compiling": {name: round(value, 1) for name, value in compiling.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    settings = tyro.cli(Settings, description=__doc__, args=arguments)
    try:
        task = run.load_task(settings.data)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    out = settings.out or (run.RESULTS if settings.data else run.RESULTS.parent / "runs") / "vmap_saving.json"
    _command.make(out.parent)
    # Few images to measure by, so that steps are what is timed.
    task = task._replace(test_images=task.probes[:100], test_labels=task.test_labels[:100], probes=task.probes[:100])
    rates = run.Settings.sweep_rates
    shapes = ((1, (0.1,)), (5, (0.1,)), (1, rates), (3, rates))
    content = {
        "date": _report.today(),
        "machine": _report.machine(),
        "versions": _report.versions(),
        "features": task.train_images.shape[1],
        "steps": settings.steps,
        "measured": [saving(task, seeds, some, settings) for seeds, some in shapes],
    }
    _report.write(out, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    for row in content["measured"]:
        print(row)
    print(out)


if __name__ == "__main__":
    _command.run(main)
