"""A ResNet-18-shaped Flax model with Flax's batch norm and with ours: step time, memory, loss, inputs far from 0.

    python -m experiments.dropin.run                        everything
    python -m experiments.dropin.run --parts time-float32   one part
    python -m experiments.dropin.run --redraw               picture, tables and report again, from the numbers

The network is ResNet-18 for small images (3×3 stem, no first pooling), narrower by default; the images are
scikit-learn's digits, each pixel enlarged to 4×4. The stem takes no padding, so that a constant added to the images is
a constant added to what its batch norm sees. Needs `pip install -e ".[experiments,flax]"`.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.dropin.run", extras="experiments,flax")

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bnderiv.linen
from experiments import _options, _report
from experiments._data import load
from experiments._options import AtLeastOne
from experiments.benchmark import flax_peer

Part = Literal["time-float32", "time-bfloat16", "loss-float32", "loss-bfloat16"]
SHIFTS = (0.0, 1e3, 1e4)


class Settings(_options.Measured):
    """What is measured, of which network."""

    parts: tuple[Part, ...] = get_args(Part)
    """The parts that are measured."""
    width: AtLeastOne = 16
    """The channels of the first stage; ResNet-18 has 64."""
    batch: AtLeastOne = 32
    """The images of a batch."""
    steps: AtLeastOne = 40
    """The steps of each training."""
    rounds: Annotated[int, ">= 2"] = 20
    """The timed steps of each variant."""


class Layer(nn.Module):
    """Batch norm, the residual and ReLU under one name whichever they are, so that one set of variables serves all."""

    batch_norm: Any
    relu: bool = True
    fused: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, residual=None):
        options = {"use_running_average": False, "momentum": 0.9, "dtype": self.dtype, "name": "norm"}
        if self.fused and self.relu:
            return self.batch_norm(activation="relu", **options)(x, residual=residual)
        y = self.batch_norm(**options)(x)
        if residual is not None:
            y = residual + y
        return nn.relu(y) if self.relu else y


class Block(nn.Module):
    """Two 3×3 convolutions and the way around them."""

    width: int
    stride: int
    layer: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        y = self.layer()(conv(self.width, (3, 3), self.stride)(x))
        y, last = conv(self.width, (3, 3))(y), self.layer()
        if x.shape != y.shape:
            x = self.layer(relu=False)(conv(self.width, (1, 1), self.stride)(x))
        return last(y, x)


class ResNet18(nn.Module):
    """Eight blocks in four stages, each stage at half the resolution and twice the width of the one before."""

    width: int
    batch_norm: Any
    fused: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        layer = partial(Layer, self.batch_norm, fused=self.fused, dtype=self.dtype)
        x = nn.Conv(self.width, (3, 3), padding="VALID", use_bias=False, dtype=self.dtype)(x)
        x = layer()(x)
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Block(self.width * 2**stage, stride, layer, self.dtype)(x)
        return nn.Dense(10)(x.mean((1, 2)).astype(jnp.float32))


VARIANTS: dict[str, dict[str, Any]] = {
    "Flax": {"batch_norm": nn.BatchNorm},
    "Flax, use_fast_variance=False": {"batch_norm": partial(nn.BatchNorm, use_fast_variance=False)},
    "bnderiv": {"batch_norm": bnderiv.linen.BatchNorm},
    'bnderiv, activation="relu"': {"batch_norm": bnderiv.linen.BatchNorm, "fused": True},
}


def make_step(model: nn.Module) -> Callable[..., Any]:
    """One step of gradient descent with momentum 0.9, as a function of state, images and labels."""
    apply, _ = flax_peer.functions(model)

    def step(state, images, labels):
        params, statistics, momentum = state

        def loss(params):
            logits, updated = apply(params, statistics, images)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -picked.mean(), updated

        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        params = jax.tree.map(lambda p, m: p - 0.02 * m, params, momentum)
        return (params, statistics, momentum), value

    return step


def start(width: int, dtype: Any, images: jax.Array) -> Any:
    """The same first state for every variant."""
    _, init = flax_peer.functions(ResNet18(width, nn.BatchNorm, dtype=dtype))
    params, statistics = init(images)
    return params, statistics, jax.tree.map(jnp.zeros_like, params)


def measure_time(options: Settings, dtype: Any) -> dict[str, Any]:
    """Median and quartiles of single steps, the variants by turns, and the program's temporary memory."""
    images, labels = batches(options, 1)
    state = start(options.width, dtype, images[0])
    steps, results = {}, {}
    for name, variant in VARIANTS.items():
        model = ResNet18(options.width, dtype=dtype, **variant)
        steps[name] = jax.jit(make_step(model)).lower(state, images[0], labels[0]).compile()
        memory = steps[name].memory_analysis()
        results[name] = {"temporary_bytes": int(memory.temp_size_in_bytes), "seconds": []}
    for turn in range(options.rounds + 1):
        for name in list(steps)[turn % len(steps) :] + list(steps)[: turn % len(steps)]:
            begin = time.perf_counter()
            jax.block_until_ready(steps[name](state, images[0], labels[0]))
            if turn:  # the first one warms up
                results[name]["seconds"].append(round(time.perf_counter() - begin, 6))
    return results


def measure_loss(options: Settings, dtype: Any, shifts: tuple[float, ...]) -> dict[str, Any]:
    """Training loss at each step, by variant and shift of the images."""
    images, labels = batches(options, options.steps)
    first = start(options.width, dtype, images[0])
    results: dict[str, Any] = {}
    for name, variant in VARIANTS.items():
        step = jax.jit(make_step(ResNet18(options.width, dtype=dtype, **variant)))
        for shift in shifts:
            state, losses = first, []
            for x, labels_ in zip(images, labels, strict=True):
                state, value = step(state, x + shift, labels_)
                losses.append(float(value))
            results.setdefault(f"{shift:g}", {})[name] = losses
    return results


def batches(options: Settings, count: int) -> tuple[jax.Array, jax.Array]:
    """`count` batches of the digits, images (count, N, 32, 32, 1) and labels (count, N), in a fixed random order."""
    data = load()
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(data.train_labels)) for _ in range(1 + count * options.batch // 1000)])
    chosen = order[: count * options.batch].reshape(count, options.batch)
    return jnp.asarray(data.standardized(data.train_images[chosen])), jnp.asarray(data.train_labels[chosen], jnp.int32)


# What is made of it: the picture and the tables.

PANELS = [("float32", f"{shift:g}") for shift in SHIFTS] + [("bfloat16", "0")]
LOOKS = {  # as everywhere; all of one library's variants have its color
    "Flax": {"color": "tab:red"},
    "Flax, use_fast_variance=False": {"color": "tab:orange", "linestyle": "--"},
    "bnderiv": {"color": "black"},
    'bnderiv, activation="relu"': {"color": "gray", "linestyle": "--"},
}


def draw(numbers: dict[str, Any]) -> bytes:
    """The loss against the step, one panel for each dtype and shift."""
    figure, grid = plt.subplots(2, 2, figsize=(_report.WIDTH, 6.4), sharex=True, sharey=True)
    for ax, (dtype, shift) in zip(grid.flat, PANELS, strict=True):
        for name, losses in numbers.get(f"loss-{dtype}", {}).get(shift, {}).items():
            ax.plot(np.arange(1, len(losses) + 1), losses, label=name, lw=1.6, **LOOKS[name])
        ax.set_title(f"{dtype}, images" + (f" + {float(shift):,.0f}" if float(shift) else " as they are"))
        ax.set_yscale("log")
    for ax in grid[1]:
        ax.set_xlabel("step")
    for ax in grid[:, 0]:
        ax.set_ylabel("training loss (nats)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return _report.png(figure)


def time_table(numbers: dict[str, Any]) -> _report.Table:
    """Rows of variants; step time and memory for each dtype."""

    def cells(result: dict[str, Any] | None) -> list[str]:
        if result is None:
            return ["", ""]
        low, middle, high = (1e3 * q for q in statistics.quantiles(result["seconds"], n=4))
        return [f"{middle:.0f} ({low:.0f}–{high:.0f})", f"{result['temporary_bytes'] / 2**20:.1f}"]

    parts = [numbers.get(f"time-{dtype}", {}) for dtype in ("float32", "bfloat16")]
    rows = [[_code(name), *(cell for part in parts for cell in cells(part.get(name)))] for name in VARIANTS]
    columns = ("batch norm", "float32 step, ms", "temporary, MiB", "bfloat16 step, ms", "temporary, MiB")
    return _report.Table("Time and memory", columns, rows, "Median of a step (quartiles).")


def loss_table(numbers: dict[str, Any]) -> _report.Table:
    """The mean loss of the last ten steps."""
    heads = [f"{dtype}, + {float(shift):g}" if float(shift) else dtype for dtype, shift in PANELS]
    found = (numbers.get(f"loss-{dtype}", {}).get(shift, {}) for dtype, shift in PANELS)
    panels = [{name: f"{np.mean(losses[-10:]):.3f}" for name, losses in panel.items()} for panel in found]
    rows = [[_code(name), *(panel.get(name, "") for panel in panels)] for name in VARIANTS]
    return _report.Table("Loss at the end", ("batch norm", *heads), rows, "Mean of the last ten steps.")


def _code(name: str) -> str:
    return f"`{name}`" if "=" in name else name


def present(numbers: dict[str, Any]) -> _report.Report:
    """The page with picture and tables."""
    steps, tables = numbers.get("time-float32", {}), (time_table(numbers), loss_table(numbers))
    memory = (f"{steps[who]['temporary_bytes'] / 2**20:.1f} MiB with {who}'s" for who in ("bnderiv", "Flax") if steps)
    caption = "Training loss against the step; in two panels with a constant added to the images."
    return _report.Report(
        "One changed import: what a Flax model gains",
        "A ResNet-18-shaped Flax model with Flax's batch norm and with bnderiv's."
        + bool(steps) * f" A step in float32 takes, beside arguments and results, {', '.join(memory)}.",
        [_report.Picture("Loss", "dropin.png", draw(numbers), caption), *tables],
        said=_report.markdown(tables),
    )


def measure(options: Settings) -> dict[str, Any]:
    """Each part."""
    numbers = {}
    for part in options.parts:
        _command.say(f"{part} …")
        kind, dtype = part.split("-")
        if kind == "time":
            numbers[part] = measure_time(options, jnp.dtype(dtype))
        else:
            numbers[part] = measure_loss(options, jnp.dtype(dtype), SHIFTS if dtype == "float32" else (0.0,))
    return numbers


main = _report.experiment(Settings, "dropin.json", measure, present, "flax")
