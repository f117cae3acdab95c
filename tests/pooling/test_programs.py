"""What the gradients compile to: no gather and no scatter, and no program that grows with the window's area."""

import re

import jax
import jax.numpy as jnp
import pytest

import bnderiv

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
    program = gradient(pool, options).compile().as_text() or ""
    return set(re.findall(r"[\w-]*(?:gather|scatter)[\w-]*(?=\()", program))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layer", ["avg_pool", "max_pool"])
def test_neither_gather_nor_scatter(layer, options):
    assert gathers(getattr(bnderiv, layer), options) == set()


def test_they_would_be_seen():
    assert gathers(bnderiv.reference.max_pool, OPTIONS[2]) >= {"gather", "scatter"}


@pytest.mark.parametrize("layer", ["avg_pool", "max_pool"])
def test_the_program_grows_with_the_sides_of_the_window_not_with_its_area(layer):
    def lines(side):
        options = {"window": side, "strides": 1, "padding": 3}
        return gradient(getattr(bnderiv, layer), options, (1, 48, 48, 1)).as_text().count("\n")

    assert lines(40) < 2.5 * lines(20)
