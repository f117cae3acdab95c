"""The first figure of Ioffe & Szegedy 2015: what batch norm does to a network of sigmoids, and to its learning rates.

    python -m experiments.batchnorm_effect.run                the digits
    python -m experiments.batchnorm_effect.run --data DIR     a folder of IDX files, such as MNIST
    python -m experiments.batchnorm_effect.run --redraw       pictures and report again, from the numbers

Every seed and every learning rate, with and without batch norm, train at once in one compiled program.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.batchnorm_effect.run")

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import _data, _options, _report
from experiments._options import AtLeastOne, Positive, Seed
from experiments.batchnorm_effect import network
from experiments.batchnorm_effect.network import KINDS, PERCENTILES

STYLES: dict[str, dict[str, Any]] = {
    "with batch norm": {"color": "C0", "ls": "-"},
    "without batch norm": {"color": "C1", "ls": "--"},
}


class Settings(_options.WithData):
    """What is trained."""

    steps: AtLeastOne = 50_000
    """The steps of the first figure; the paper's number."""
    rate: Positive = 0.1
    """The learning rate of the first figure."""
    seeds: AtLeastOne = 5
    """The networks of each kind in the first figure."""
    sweep_rates: tuple[Positive, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    """The learning rates of the second figure."""
    sweep_steps: AtLeastOne = 5_000
    """The steps of the second figure."""
    sweep_seeds: AtLeastOne = 3
    """The networks of each kind and rate in the second figure."""
    every: AtLeastOne = 500
    """The steps between two measurements; this divides both numbers of steps."""
    deviation: Positive = 0.1
    """The standard deviation of the Gaussian that kernels are drawn from."""
    seed: Seed = 0
    """The seed of all kernels and orders of images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "sweep_steps"):
            if getattr(self, name) % self.every:
                raise _command.Refused(f"{name} must be a multiple of every = {self.every}, got {getattr(self, name)}")


def load(settings: _options.WithData) -> _data.Data:
    """The images as rows, (N, D), for `network.train`."""
    data = _data.load(settings.data, memory=settings.memory)
    if (images := len(data.train_labels)) < network.BATCH:
        raise _command.Refused(f"{settings.data}: {images} training images, must be at least {network.BATCH}")
    train, test = (a.reshape(len(a), -1) for a in (data.train_images, data.test_images))
    return jax.tree.map(jnp.asarray, data._replace(train_images=train, test_images=test))


def timed_sweep(keys: jax.Array, rates: Sequence[float], data: _data.Data, **options: Any):
    """The curves as NumPy arrays, and the seconds that compiling and running took."""
    arguments, start = (keys, jnp.array(rates, jnp.float32), data), time.perf_counter()
    program = network.sweep.lower(*arguments, **options).compile()
    compiled = time.perf_counter()
    curves = jax.tree.map(np.asarray, program(*arguments))
    return curves, {"compiling": round(compiled - start, 1), "running": round(time.perf_counter() - compiled, 1)}


def median_range(percentiles: np.ndarray) -> np.ndarray:
    """How far each unit's median over the images moves in training: (..., T, 3, units) -> (..., units).

    Before the first step batch norm has no statistics yet: counted from the second measurement on.
    """
    return np.ptp(percentiles[..., 1:, 1, :], axis=-2)


def typical_unit(percentiles: np.ndarray) -> int:
    """Of the units in (T, 3, units), the one in the middle of the order by `median_range`."""
    order = np.argsort(median_range(percentiles))
    return int(order[len(order) // 2])


def median_unit(percentiles: np.ndarray) -> dict[str, float]:
    """Medians over seeds and units of (seeds, T, 3, units): the range above, and how far 15th and 85th are apart."""
    apart = percentiles[:, :, 2] - percentiles[:, :, 0]
    found = {"median_range": median_range(percentiles), "spread_first": apart[:, 1], "spread_last": apart[:, -1]}
    return {name: round(float(np.median(values)), 3) for name, values in found.items()}


def first_reached(steps: np.ndarray, accuracy: np.ndarray, least: float) -> int | None:
    """The first step noted at which the mean over the seeds, of (seeds, T), is at least so high."""
    there = accuracy.mean(0) >= least
    return int(steps[there.argmax()]) if there.any() else None


def measure(settings: Settings) -> dict[str, Any]:
    """Trains everything; what came out, as JSON takes it."""
    data = load(settings)
    images = f"{len(data.train_labels):,} training images, {len(data.test_labels):,} test images"
    options = {"deviation": settings.deviation, "every": settings.every}
    keys = jax.random.split(jax.random.key(settings.seed), max(settings.seeds, settings.sweep_seeds))
    rates, words = settings.sweep_rates, "seeds with and without"

    _command.say(f"{images}\nrate {settings.rate:g}: {settings.seeds} {words}, {settings.steps:,} steps …")
    curves, seconds = timed_sweep(keys[: settings.seeds], [settings.rate], data, steps=settings.steps, **options)
    curves = {kind: jax.tree.map(lambda a: a[:, 0], of_kind) for kind, of_kind in curves.items()}  # one rate
    _command.say(f"{len(rates)} rates: {settings.sweep_seeds} {words}, {settings.sweep_steps:,} steps …")
    swept, sweep_seconds = timed_sweep(keys[: settings.sweep_seeds], rates, data, steps=settings.sweep_steps, **options)

    steps = np.arange(settings.steps // settings.every + 1) * settings.every
    units = {kind: typical_unit(of_kind.percentiles[0]) for kind, of_kind in curves.items()}
    levels = (0.8, 0.9, 0.93, 0.95)
    return {
        "images": images,
        "first_figure": {
            "seconds": seconds,
            "steps": steps.tolist(),
            "test_accuracy": _report.rounded({k: curves[k].accuracy for k in KINDS}),
            "first_step_of_mean_accuracy": {
                k: {f"{level:.0%}": first_reached(steps, curves[k].accuracy, level) for level in levels} for k in KINDS
            },
            "typical_unit": units,
            "its_percentiles": _report.rounded({k: curves[k].percentiles[0, ..., units[k]] for k in KINDS}, 3),
            "median_unit": {k: median_unit(curves[k].percentiles) for k in KINDS},
        },
        "rates_figure": {
            "seconds": sweep_seconds,
            "rates": rates,
            "test_accuracy": _report.rounded({k: swept[k].accuracy[..., -1] for k in KINDS}),
        },
    }


def arrays(by_name: dict[str, Any]) -> dict[str, np.ndarray]:
    """What `_report.rounded` wrote, read again."""
    return {kind: np.array(by_name[kind], float) for kind in KINDS}


def first_figure(content: dict[str, Any]) -> bytes:
    """Laid out as Figure 1 of Ioffe & Szegedy 2015: of the steps (T,), with and without batch norm, the accuracy
    (seeds, T) and the percentiles (T, 3) of what the sigmoid of one unit is given."""
    steps, accuracy, units = np.array(content["steps"]), arrays(content["test_accuracy"]), content["typical_unit"]
    figure = plt.figure(figsize=(_report.WIDTH, 6.6))
    a, b, c = figure.subplot_mosaic("aa;bc").values()
    for name, style in STYLES.items():
        curves = 100 * accuracy[name]
        a.plot(steps, curves.mean(0), label=name, **style)
        a.fill_between(steps, curves.min(0), curves.max(0), color=style["color"], alpha=0.25, lw=0)
    a.set(title="(a) Test images recognized", ylabel="%", ylim=(70, 100))
    a.legend(loc="lower right", title=f"mean and range of {len(curves)} seeds")
    # Batch norm has no statistics before the first step, so from the second measurement on.
    shown = {name: values[1:] for name, values in arrays(content["its_percentiles"]).items()}
    low, high = min(p.min() for p in shown.values()), max(p.max() for p in shown.values())
    for axes, letter, name in ((b, "b", "without batch norm"), (c, "c", "with batch norm")):
        for values, percentile in zip(shown[name].T, PERCENTILES, strict=True):
            axes.plot(steps[1:], values, color=STYLES[name]["color"], lw=2 if percentile == 50 else 1)
            at_its_end = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 10}
            axes.annotate(f"{percentile} %", (steps[-1], values[-1]), **at_its_end)
        axes.set(title=f"({letter}) {name.capitalize()}", ylim=(low - 0.3, high + 0.3))
        axes.set_xlabel(f"training step\n(unit {units[name]} of the last hidden layer)")
        axes.set_xlim(0, 1.22 * steps[-1])
        axes.locator_params(axis="x", nbins=4)
    b.set_ylabel("what one sigmoid is given,\npercentiles over test images")
    a.set_xlabel("training step")
    for axes in (a, b, c):
        axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step else "0")
    return _report.png(figure)


def rates_figure(content: dict[str, Any], steps: int) -> bytes:
    """Test accuracy, (seeds, rates), after so many steps, against the learning rate."""
    rates, accuracy = content["rates"], arrays(content["test_accuracy"])
    figure, axes = plt.subplots()
    for name, style in STYLES.items():
        curves = 100 * accuracy[name]
        axes.plot(rates, curves.mean(0), label=name, **style)
        axes.plot(rates, curves.T, "o", color=style["color"], ms=4, alpha=0.6)
    axes.axhline(10, color="gray", lw=1, ls=":")
    axes.annotate("guessing", (rates[0], 10), (0, 4), textcoords="offset points", color="gray")
    axes.set(xscale="log", xlabel="learning rate", ylabel="test images recognized, %", ylim=(0, 102))
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    axes.set_title(f"After {steps:,} steps: each dot is one seed, lines are their mean")
    axes.legend(loc="center left", bbox_to_anchor=(0.28, 0.3))
    return _report.png(figure)


def seconds(figure: dict[str, Any]) -> str:
    return ", ".join(f"{what} {value:g} s" for what, value in figure["seconds"].items())


def present(content: dict[str, Any]) -> _report.Report:
    """The page with pictures and table."""
    first, rates, configuration = (content[name] for name in ("first_figure", "rates_figure", "configuration"))
    steps, finals = configuration["sweep_steps"], arrays(rates["test_accuracy"])

    def mean_and_worst(values: np.ndarray) -> str:
        return f"{100 * values.mean():.1f} ({100 * values.min():.1f})"

    table = _report.Table(
        "Accuracy at each rate",
        ("rate", *KINDS),
        [[f"{rate:g}", *(mean_and_worst(finals[k][:, i]) for k in KINDS)] for i, rate in enumerate(rates["rates"])],
        f"Test accuracy in % after {steps:,} steps: mean of the seeds (worst).",
    )
    with_it, without = (
        f"{100 * a[:, -1].mean():.2f} % (range {100 * a[:, -1].min():.2f}–{100 * a[:, -1].max():.2f})"
        for a in arrays(first["test_accuracy"]).values()
    )
    summary = (
        f"After {configuration['steps']:,} steps at the rate {configuration['rate']:g}, {with_it} of the test images "
        f"are recognized with batch norm, {without} without."
    )
    against = "Test accuracy against the learning rate."
    said = "(a) accuracy; (b), (c) the 15th, 50th and 85th percentile of what one unit's sigmoid is given."
    return _report.Report(
        "What batch norm does to a network of sigmoids",
        summary,
        [
            _report.Picture("The paper's first figure", "figure1.png", first_figure(first), said),
            _report.Picture("Learning rates", "rates.png", rates_figure(rates, steps), against),
            table,
        ],
        facts={"images": content["images"], "first figure": seconds(first), "learning rates": seconds(rates)},
        said=f"{summary}\n{_report.table(table.columns, table.rows)}",
    )


main = _report.experiment(Settings, "results.json", measure, present)
