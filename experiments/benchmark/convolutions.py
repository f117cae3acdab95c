"""The ways to a convolution's three correlations beside each other: is the one taken on a CPU the fastest?"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from bnderiv.convolution import banded, correlations, direct, shifted
from bnderiv.convolution.conv import _Geometry
from experiments.benchmark.clock import Effort, interleaved, of_jax


class Shape(NamedTuple):
    """Square images and kernels, stride 1."""

    batch: int
    side: int
    c_in: int
    c_out: int
    kernel: int
    padding: int


SHAPES = (
    Shape(32, 28, 1, 6, 5, 2),
    Shape(32, 14, 6, 16, 5, 0),
    Shape(128, 28, 1, 6, 5, 2),
    Shape(32, 32, 3, 16, 3, 1),
    Shape(32, 32, 3, 32, 5, 2),
    Shape(32, 32, 16, 16, 3, 1),
    Shape(32, 16, 32, 32, 3, 1),
    Shape(32, 8, 64, 64, 3, 1),
    Shape(8, 64, 3, 8, 3, 1),
    Shape(8, 56, 16, 16, 3, 1),
    Shape(8, 56, 3, 64, 7, 3),
    Shape(32, 28, 32, 32, 5, 2),
)
LAYOUTS = {"channels last": (0, 3, 1, 2), "batch last": (3, 0, 1, 2)}  # axes of (batch, channel, rows, columns)
DIRECT = correlations.Correlations(direct.correlation, direct.input_gradient, direct.kernel_gradient)
BANDED = correlations.Correlations(banded.correlation, banded.input_gradient, banded.kernel_gradient)
SHIFTED = BANDED._replace(correlation=shifted.correlation)
WAYS = {"direct": DIRECT, "banded": BANDED, "shifted": SHIFTED}


def measure(effort: Effort) -> Iterator[dict[str, Any]]:
    """Forward and both gradients of each shape, in each layout."""
    for shape in SHAPES[:1] if effort.quick else SHAPES:
        side, k = shape.side, shape.kernel
        for layout, axes in LAYOUTS.items():
            geometry, x, kernel, delta = _problem(shape, axes)
            chosen = correlations.fastest_on_cpu(geometry, x.shape, kernel.shape)
            ways = dict(WAYS)
            if layout != "batch last" or k**2 * shape.c_in > 64:
                del ways["shifted"]  # it is for batch last and few weights
            contestants = {name: of_jax(_all_three(geometry, way), x, kernel, delta) for name, way in ways.items()}
            channels = f"{shape.c_in}→{shape.c_out} channels"
            yield {
                "case": f"batch {shape.batch}, {side}×{side}, {channels}, kernel {k}×{k}",
                "layout": layout,
                "MFLOP": round(6e-6 * delta.size * k**2 * shape.c_in, 1),
                "size/k · C_out": round(side / k * shape.c_out),
                "chosen": next(name for name, way in WAYS.items() if way == chosen),
                "times": interleaved(contestants, effort._replace(rounds=min(effort.rounds, 5), burst=4)),
            }


def _problem(shape: Shape, axes: tuple[int, int, int, int]) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    padding = shape.padding, shape.padding
    geometry = _Geometry((1, 1), (padding, padding), (1, 1), 1, axes)
    side = shape.side + 2 * shape.padding - shape.kernel + 1
    sizes = {"x": (shape.batch, shape.c_in, *[shape.side] * 2), "delta": (shape.batch, shape.c_out, side, side)}
    laid = {name: [size[axes.index(a)] for a in range(4)] for name, size in sizes.items()}
    keys = jax.random.split(jax.random.key(0), 3)
    x, delta = (jax.random.normal(key, laid[name]) for key, name in zip(keys, ("x", "delta"), strict=False))
    kernel = jax.random.normal(keys[2], (shape.kernel, shape.kernel, shape.c_in, shape.c_out))
    return geometry, x, kernel, delta


def _all_three(geometry: Any, way: correlations.Correlations) -> Any:
    def run(x: jax.Array, kernel: jax.Array, delta: jax.Array) -> Any:
        return (
            way.correlation(geometry, x, kernel),
            way.input_gradient(geometry, x.shape, kernel, delta),
            way.kernel_gradient(geometry, kernel.shape, x, delta),
        )

    return jax.jit(run)
