"""The ways to a convolution's three correlations beside each other: is the one taken on a CPU the fastest?"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from bnderiv.convolution import banded, correlations, direct, shifted
from bnderiv.convolution.conv import _Geometry
from experiments.benchmark.clock import Effort, interleaved, of_jax
from experiments.benchmark.layers import normal

SHAPES = (  # batch, side of the images, channels in and out, side of the kernel, padding; the stride is 1
    (32, 28, 1, 6, 5, 2),
    (32, 14, 6, 16, 5, 0),
    (128, 28, 1, 6, 5, 2),
    (32, 32, 3, 16, 3, 1),
    (32, 32, 3, 32, 5, 2),
    (32, 32, 16, 16, 3, 1),
    (32, 16, 32, 32, 3, 1),
    (32, 8, 64, 64, 3, 1),
    (8, 64, 3, 8, 3, 1),
    (8, 56, 16, 16, 3, 1),
    (8, 56, 3, 64, 7, 3),
    (32, 28, 32, 32, 5, 2),
)
LAYOUTS = {"channels last": (0, 3, 1, 2), "batch last": (3, 0, 1, 2)}  # axes of (batch, channel, rows, columns)
DIRECT = correlations.Correlations(direct.correlation, direct.input_gradient, direct.kernel_gradient)
BANDED = correlations.Correlations(banded.correlation, banded.input_gradient, banded.kernel_gradient)
SHIFTED = BANDED._replace(correlation=shifted.correlation)
WAYS = {"direct": DIRECT, "banded": BANDED, "shifted": SHIFTED}


def measure(effort: Effort, _: Any) -> Iterator[dict[str, Any]]:
    """Forward and both gradients of each shape, in each layout."""
    for batch, side, c_in, c_out, k, padding in SHAPES[:1] if effort.quick else SHAPES:
        for layout, axes in LAYOUTS.items():
            geometry = _Geometry((1, 1), ((padding, padding),) * 2, (1, 1), 1, axes)
            out = side + 2 * padding - k + 1
            x, delta = (
                normal(seed, [sizes[axes.index(axis)] for axis in range(4)])
                for seed, sizes in enumerate(((batch, c_in, side, side), (batch, c_out, out, out)))
            )
            kernel = normal(2, (k, k, c_in, c_out))
            chosen = correlations.fastest_on_cpu(geometry, x.shape, kernel.shape)
            ways = dict(WAYS)
            if layout != "batch last" or k**2 * c_in > 64:
                del ways["shifted"]  # it is for batch last and few weights
            programs = {name: jax.jit(partial(_all_three, geometry, way)) for name, way in ways.items()}
            contestants = {name: of_jax(program, x, kernel, delta) for name, program in programs.items()}
            yield {
                "case": f"batch {batch}, {side}×{side}, {c_in}→{c_out} channels, kernel {k}×{k}",
                "layout": layout,
                "MFLOP": round(6e-6 * delta.size * k**2 * c_in, 1),
                "size/k · C_out": round(side / k * c_out),
                "chosen": next(name for name, way in WAYS.items() if way == chosen),
                "times": interleaved(contestants, effort._replace(rounds=min(effort.rounds, 5), burst=4)),
            }


def _all_three(geometry: Any, way: correlations.Correlations, x: jax.Array, kernel: jax.Array, delta: jax.Array) -> Any:
    return (
        way.correlation(geometry, x, kernel),
        way.input_gradient(geometry, x.shape, kernel, delta),
        way.kernel_gradient(geometry, kernel.shape, x, delta),
    )
