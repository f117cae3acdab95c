"""What the gradients compile to: no gather and no scatter, and no program that grows with the window's area."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bnderiv
from tests.programs import opcodes, writers

OPTIONS = [
    {"window": 2},
    {"window": (2, 3), "padding": ((1, 0), (0, 2))},
    {"window": 3, "strides": 2, "padding": 1},
    {"window": (11, 9), "strides": 1, "padding": "SAME"},
]


def gradient(pool, options, shape=(2, 12, 12, 3)):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.jit(jax.grad(lambda x: (pool(x, **options) ** 2).sum())).lower(x)


def gathers(pool, options):
    return {name for name in opcodes(gradient(pool, options).compile()) if "gather" in name or "scatter" in name}


@pytest.mark.few(3)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layer", ["avg_pool", "max_pool"])
def test_neither_gather_nor_scatter(layer, options):
    assert gathers(getattr(bnderiv, layer), options) == set()


def test_they_would_be_seen():
    assert gathers(bnderiv.reference.max_pool, OPTIONS[2]) >= {"gather", "scatter"}


@pytest.mark.few(1)
@pytest.mark.parametrize("layer", ["avg_pool", "max_pool"])
def test_the_program_grows_with_the_sides_of_the_window_not_with_its_area(layer):
    def lines(side):
        options = {"window": side, "strides": 1, "padding": 3}
        return gradient(getattr(bnderiv, layer), options, (1, 48, 48, 1)).as_text().count("\n")

    assert lines(40) < 2.5 * lines(20)


def test_a_window_over_a_whole_row_does_not_take_its_length_to_compile():
    program = gradient(bnderiv.max_pool, {"window": (1, 500)}, (1, 1, 500, 1))
    assert program.as_text().count("\n") < 500


@pytest.mark.parametrize("layer", ["avg_pool", "max_pool"])
def test_padding_is_no_copy(layer):
    """XLA's operations on windows pad what they read; a padded copy compiles longer than all the rest on a CPU."""
    x = jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32)
    pool = getattr(bnderiv, layer)
    for window in (3, 4):
        program = jax.jit(lambda x, w=window: pool(x, w, strides=2, padding=1)).lower(x)
        padded = "stablehlo.pad" in program.as_text()
        assert padded == ((layer, window) == ("avg_pool", 3))  # there it is one kernel with the sum


def test_what_overlapping_windows_hand_down_is_computed_once():
    """And not for each cell of a window anew, with all that led to it."""

    def loss(x):
        return (bnderiv.avg_pool(jnp.tanh(x), 3, strides=2) ** 2).sum()

    shape = (2, 12, 12, 3)
    program = jax.jit(jax.grad(loss)).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    kernels = [k for k in writers(program, shape) if " pad(" in k]
    assert [k.count(" pad(") for k in kernels] == [9]
    assert not re.search(r" (divide|slice)\(", kernels[0])


@pytest.mark.few(1)
@pytest.mark.parametrize("layer", ["avg_pool", "max_pool"])
@pytest.mark.parametrize(("window", "shape"), [(28, (1, 28, 28, 1)), (200, (1, 203, 202, 1))], ids=str)
def test_few_windows_are_little_work(layer, window, shape):
    """Large ones with stride 1: as much as the windows there are, not as those that might cover a cell."""
    program = gradient(getattr(bnderiv, layer), {"window": window, "strides": 1}, shape)
    assert program.as_text().count("\n") < 1500
    compiled: Any = program.compile()
    assert compiled.cost_analysis()["flops"] < 100 * shape[1] * shape[2]


@pytest.mark.few(1)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("window", [(24, 2), (23, 4), (5, 5), (2, 9)], ids=str)
def test_forward_and_backward_in_one_program_are_no_more_work_than_in_two(window):
    """XLA:CPU would compute the winners again at each use; that takes seconds for some windows."""
    pool = partial(bnderiv.max_pool, window=window, strides=1)
    x = jax.ShapeDtypeStruct((2, 28, 28, 4), jnp.float32)

    def forward(x):
        return jax.vjp(pool, x)

    def both(x, dz):
        z, pull_back = jax.vjp(pool, x)
        return z, pull_back(dz)

    def flops(f, *args):
        compiled: Any = jax.jit(f).lower(*args).compile()
        return compiled.cost_analysis()["flops"]

    z, pull_back = jax.eval_shape(forward, x)
    apart = flops(forward, x) + flops(lambda pull_back, dz: pull_back(dz), pull_back, z)
    assert flops(both, x, z) <= 1.001 * apart


@pytest.mark.few(1)
@pytest.mark.as_users_compile
@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="XLA:CPU drops the barrier before it fuses")
@pytest.mark.parametrize("window", [(1, 3), (2, 1), (2, 2)], ids=str)
def test_what_is_averaged_is_computed_once(window):
    """And not for each cell of a window; a kernel that does is not vectorized either."""

    def average(x):
        return bnderiv.avg_pool(jnp.tanh(x), window, strides=1)

    program = jax.jit(average).lower(jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32)).compile().as_text()
    assert program is not None
    kernels = program.split("\n\n")
    assert any(" tanh(" in kernel for kernel in kernels)
    assert not any(" tanh(" in kernel and " slice(" in kernel for kernel in kernels)
