"""How much time one program of all seeds and rates saves: the sweep, and the same runs one after another.

    python -m experiments.batchnorm_effect.vmap_saving [--data DIR]

One after another is the same training, compiled once for each kind and called for every seed and rate.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.batchnorm_effect.vmap_saving")

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _data, _options, _report
from experiments._options import AtLeastOne
from experiments.batchnorm_effect import network, run
from experiments.benchmark.clock import FEWER, interleaved, of_jax


class Settings(_options.WithData):
    """What is timed."""

    steps: AtLeastOne = 200
    """The steps of each run."""


def saving(data: _data.Data, seeds: int, rates: tuple[float, ...], steps: int) -> dict[str, Any]:
    """Milliseconds of one step of one run, both ways; and the seconds of compiling."""
    options = {"deviation": 0.1, "steps": steps, "every": steps}
    keys, each_rate = jax.random.split(jax.random.key(0), seeds), jnp.array(rates, jnp.float32)
    _command.say(f"{seeds} seeds, {len(rates)} rates …")
    start = time.perf_counter()
    together = network.sweep.lower(keys, each_rate, data, **options).compile()
    compiled = time.perf_counter()
    singles = [
        jax.jit(partial(network.train, batch_norm=kind, **options)).lower(keys[0], each_rate[0], data).compile()
        for kind in (True, False)
    ]
    compiling = {"together": compiled - start, "one after another": time.perf_counter() - compiled}

    def one_after_another():
        return [single(key, rate, data) for single in singles for key in keys for rate in each_rate]

    times = interleaved(
        {"together": of_jax(together, keys, each_rate, data), "one after another": of_jax(one_after_another)},
        FEWER._replace(rounds=3, burst=1, warming=0),
        per=2 * seeds * len(rates) * steps,
    )
    milliseconds = {name: each["ms"][1] for name, each in times.items()}
    return {
        "runs": f"{seeds} seeds × {len(rates)} rates × with and without",
        "ms_for_a_step_of_a_run": _report.rounded(milliseconds, 3),
        "times_faster": round(milliseconds["one after another"] / milliseconds["together"], 2),
        "seconds_compiling": _report.rounded(compiling, 1),
    }


def present(content: dict[str, Any]) -> _report.Report:
    """The page with the table."""
    ways, rows = ("together", "one after another"), []
    for row in content["measured"]:
        times, compiling = ([row[key][way] for way in ways] for key in ("ms_for_a_step_of_a_run", "seconds_compiling"))
        rows.append([row["runs"], *times, f"{row['times_faster']:g}×", *compiling])
    columns = ("runs", *(f"ms a step, {way}" for way in ways), "faster", *(f"s compiling, {way}" for way in ways))
    table = _report.Table("Time of a step of a run", columns, rows)
    low, high = (of(row["times_faster"] for row in content["measured"]) for of in (min, max))
    return _report.Report(
        "One program for all seeds and rates",
        f"Training all networks in one program is {low:g} to {high:g} times as fast as one after another.",
        [table],
        file="vmap_saving.html",
        said=_report.markdown([table]),
    )


def measure(settings: Settings) -> dict[str, Any]:
    """One network of each kind, several seeds, several rates, and both."""
    data = run.load(settings)
    # Few images to measure by, so that steps are what is timed.
    data = data._replace(test_images=data.test_images[:100], test_labels=data.test_labels[:100])
    rates = run.Settings.sweep_rates
    shapes = ((1, (0.1,)), (5, (0.1,)), (1, rates), (3, rates))
    measured = [saving(data, seeds, some, settings.steps) for seeds, some in shapes]
    return {"features": data.train_images.shape[1], "steps": settings.steps, "measured": measured}


main = _report.experiment(Settings, "vmap_saving.json", measure, present)
