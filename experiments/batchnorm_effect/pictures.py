"""The two pictures: the paper's first figure, and where training still works as the learning rate grows."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments import _report
from experiments.batchnorm_effect.network import PERCENTILES

STYLES: dict[str, dict[str, Any]] = {
    "with batch norm": {"color": "C0", "ls": "-"},
    "without batch norm": {"color": "C1", "ls": "--"},
}


def first_figure(
    steps: np.ndarray, accuracy: dict[str, np.ndarray], percentiles: dict[str, np.ndarray], units: dict[str, int]
) -> bytes:
    """Laid out as Figure 1 of Ioffe & Szegedy 2015: of the `steps` (T,), with and without batch norm, the accuracy
    (seeds, T) and the percentiles (T, 3) of what the sigmoid of one unit of `units` is given."""
    figure = plt.figure(figsize=(_report.WIDTH, 6.6))
    a, b, c = figure.subplot_mosaic("aa;bc").values()
    for name, style in STYLES.items():
        curves = 100 * accuracy[name]
        a.plot(steps, curves.mean(0), label=name, **style)
        a.fill_between(steps, curves.min(0), curves.max(0), color=style["color"], alpha=0.25, lw=0)
    a.set(title="(a) Test images recognized", ylabel="%", ylim=(70, 100))
    a.legend(loc="lower right", title=f"mean and range of {len(curves)} seeds")
    # Batch norm has no statistics before the first step, so from the second measurement on.
    shown = {name: values[1:] for name, values in percentiles.items()}
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


def rates_figure(rates: np.ndarray, accuracy: dict[str, np.ndarray], steps: int) -> bytes:
    """Test accuracy, (seeds, rates), after so many steps, against the learning rate."""
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
