"""Layer, group, instance and RMS norm beside Flax's and plain jnp: how far off, how fast, and how long to compile.

    python -m experiments.norms.run
    python -m experiments.norms.run --quick      small shapes, few rounds: to see that it works

Errors are of y and dx in float32, relative to float64 from the same rounded inputs. Times are of a forward and a
backward pass, compiled as one program, taken in turns; memory stays with the process. Compiled are gradients of twenty
layers, in CPU time of tracing, lowering and compiling, everything forgotten before each.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.norms.run", extras="experiments,flax")

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import _options, _report
from experiments.benchmark import allocator, peers
from experiments.benchmark.clock import FULL, QUICK, interleaved
from experiments.benchmark.layers import both_ways, contestants

EPS = 1e-6  # Flax's default
GROUPS = 32
MEANS = (0.0, 1e2, 1e3, 1e4)
SCALES = (1e20, 1e30)
IMAGES = (64, 56, 56, 64)
SHAPES = {  # of the times: a transformer's tokens, a vision transformer's, long and wide ones; images of a ResNet
    "layer_norm": ((8, 512, 768), (32, 197, 768), (16, 4096, 1024)),
    "group_norm": (IMAGES,),
    "instance_norm": (IMAGES,),
    "rms_norm": ((8, 512, 768), (32, 197, 768), (16, 4096, 1024)),
}
OF_ERRORS = {name: (64, 768) if "layer" in name or "rms" in name else (8, 28, 28, 64) for name in SHAPES}

# What is compiled: this many layers, each after a convolution of JAX.
DEPTH, CHANNELS, BATCH = 20, 32, (8, 16, 16)
COMPILED = (*SHAPES, "batch_norm", "batch_norm_relu")

WHO = ("bnderiv", "Flax", "plain autodiff")
NAMES = {"plain autodiff": "plain jnp, two passes"}


class Settings(_options.Measured):
    """What is measured."""

    quick: bool = False
    """Shapes are small and rounds few, to see that it works."""
    seed: _options.Seed = 0
    """The seed of the inputs, the parameters and the cotangents."""


def drawn(shape: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """x, gamma, beta and the cotangent of y."""
    rng = np.random.default_rng(seed)
    sizes = (shape, shape[-1:], shape[-1:], shape)
    return [rng.standard_normal(size).astype(np.float32) for size in sizes]


def errors(name: str, seed: int) -> Iterator[dict[str, Any]]:
    """For each input: the relative errors of y and dx of each contestant; None where one is not finite."""
    x, gamma, beta, delta = drawn(OF_ERRORS[name], seed)
    layers = peers.layers(name, eps=EPS, groups=GROUPS)
    programs = {who: both_ways(norm) for who, norm in layers.items()}
    inputs = {f"mean {mean:g}": x + np.float32(mean) for mean in MEANS}
    inputs |= {f"scale {scale:g}": x * np.float32(scale) for scale in SCALES}
    for title, values in inputs.items():
        arguments = (values, gamma, beta), delta
        with jax.enable_x64(True):
            y, (dx, *_), _ = both_ways(layers["plain autodiff"])(*jax.tree.map(np.float64, arguments))
        found = {}
        for who, program in programs.items():
            ours_y, (ours_dx, *_), _ = program(*arguments)
            found[who] = [_relative(ours_y, y), _relative(ours_dx, dx)]
        yield {"norm": name, "input": title, "errors": found}


def _relative(actual: Any, expected: Any) -> float | None:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    size = np.abs(expected).max()
    error = np.linalg.norm((actual - expected) / size) / np.linalg.norm(expected / size)
    return float(f"{error:.3g}") if np.isfinite(error) else None


def times(name: str, shape: tuple[int, ...], settings: Settings) -> dict[str, Any]:
    arrays = (jnp.asarray(a) for a in drawn(shape, settings.seed)[:3])
    found = contestants(name, *arrays, eps=EPS, groups=GROUPS)
    return {"norm": name, "shape": shape, "times": interleaved(found, QUICK if settings.quick else FULL)}


def compiling(name: str, options: Settings) -> dict[str, Any]:
    """Seconds of CPU time until a gradient of many layers is compiled, the median of five."""
    depth = 2 if options.quick else DEPTH
    x = jax.ShapeDtypeStruct((*BATCH, CHANNELS), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, CHANNELS, CHANNELS), jnp.float32)
    vector = jax.ShapeDtypeStruct((CHANNELS,), jnp.float32)
    layers = peers.layers(name, eps=EPS, groups=GROUPS // 4)
    seconds: dict[str, list[float]] = {who: [] for who in layers}

    def loss(layer: Any, parameters: list[Any], x: jax.Array) -> jax.Array:
        return (peers.stack(layer, parameters, x) ** 2).sum()

    for _ in range(1 if options.quick else 5):
        for who, layer in layers.items():
            jax.clear_caches()
            start = time.process_time()
            jax.jit(jax.grad(partial(loss, layer))).lower([(kernel, vector, vector)] * depth, x).compile()
            seconds[who].append(round(time.process_time() - start, 3))
    return {"norm": name, "layers": depth, "seconds": seconds}


def tables(content: dict[str, Any]) -> list[_report.Part]:
    """Errors, and times over bnderiv's."""

    def shown(pair: list[float | None]) -> str:
        return " / ".join("NaN" if e is None else "all wrong" if e > 0.5 else f"{e:.1e}" for e in pair)

    errors = [[row["norm"], row["input"], *(shown(row["errors"][who]) for who in WHO)] for row in content["errors"]]
    measured, compiled = [], []
    for row in content["times"]:
        ours, *others = (row["times"][who]["ms"][1] for who in WHO)
        ratios = (f"{other / ours:.2f}×" for other in others)
        measured.append([row["norm"], _report.by(row["shape"]), f"{ours:.3g} ms", *ratios])
    for row in content["compiled"]:
        ours, *others = (float(np.median(row["seconds"][who])) for who in WHO)
        compiled.append([row["norm"], f"{ours:.2f} s", *(f"{ours / other:.2f}×" for other in others)])
    of_errors = "Relative error of y / dx in float32. All wrong: more than a half."
    of_times = "Median of a forward and a backward pass; the others' over bnderiv's, above 1 where bnderiv is faster."
    of_compiling = (
        f"CPU time to trace, lower and compile a gradient of {content['compiled'][0]['layers']} layers, each after "
        "a convolution; below 1 where bnderiv is faster."
    )
    columns = ("norm", "input", *(NAMES.get(who, who) for who in WHO))
    return [
        _report.Table("Errors", columns, errors, of_errors),
        _report.Table("Times", ("norm", "shape", "bnderiv", "Flax", "plain jnp"), measured, of_times),
        _report.Table("Compiling", ("norm", "bnderiv", "over Flax's", "over plain jnp's"), compiled, of_compiling),
    ]


def draw(content: dict[str, Any]) -> bytes:
    """The worse error of y and dx against the mean, a panel for each norm."""
    figure, grid = plt.subplots(2, 2, figsize=(_report.WIDTH, 6), sharex=True, sharey=True)
    for axes, name in zip(grid.flat, SHAPES, strict=True):
        rows = [row for row in content["errors"] if row["norm"] == name and row["input"].startswith("mean")]
        for who in ("Flax", "plain autodiff", "bnderiv"):
            worst = [max(e if e is not None else np.nan for e in row["errors"][who]) for row in rows]
            axes.plot(range(len(rows)), worst, label=NAMES.get(who, who), **_report.LOOKS[who])
        axes.axhline(2e-7, color="gray", ls=":", label="promised by bnderiv")
        axes.set(yscale="log", title=name.replace("_", " "))
        axes.set_xticks(range(len(rows)), [row["input"].removeprefix("mean ") for row in rows])
    figure.supxlabel("mean of x (deviation 1)", fontsize=11)
    figure.supylabel("relative error, the worse of y and dx", fontsize=11)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return _report.png(figure)


def present(content: dict[str, Any]) -> _report.Report:
    """The page with picture and tables."""
    caption = "The worse error of y and dx against the mean of x. Dotted: what bnderiv promises up to a mean of 1e4."
    return _report.Report(
        "The other norms",
        "The other norms are right at any mean and scale, as batch norm is.",
        [_report.Picture("Errors against the mean", "norms.png", draw(content), caption), *tables(content)],
        tables="norms.md",
    )


def measure(options: Settings) -> dict[str, Any]:
    """The errors, and then the times."""
    allocator.start_again(keeping=True)
    content = {"eps": EPS, "groups": GROUPS, "seed": options.seed, "errors": [], "times": [], "compiled": []}
    shapes = [(name, (2, 16, 64) if options.quick else shape) for name, some in SHAPES.items() for shape in some]
    with _command.bar(total=len(SHAPES) + len(shapes) + len(COMPILED), desc="norms") as bar:
        for name in SHAPES:
            content["errors"] += errors(name, options.seed)
            bar.update()
        for name, shape in shapes:
            content["times"].append(times(name, shape, options))
            bar.update()
        for name in COMPILED:
            content["compiled"].append(compiling(name, options))
            bar.update()
    return content


main = _report.experiment(Settings, "norms.json", measure, present, "flax")
