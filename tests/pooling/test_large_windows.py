"""Max pools of large windows: as the loops have it, and scattered only if no device has a part of the array."""

import functools

import jax
import jax.numpy as jnp
import pytest

import bnderiv
from bnderiv import forward_mode
from tests import contract
from tests.devices import traced_for
from tests.pooling import loops
from tests.pooling.cases import MAX_LARGE
from tests.pooling.test_max_pool import PALETTES, equals_the_loops
from tests.programs import opcodes

LARGE = [  # shape, window, strides, padding
    ((1, 6, 7, 2), (4, 3), (1, 1), "SAME"),
    ((2, 7, 6, 1), (3, 4), (2, 1), ((1, 0), (0, 2))),
    ((1, 2, 24), (20,), (1,), "SAME"),  # longer than XLA writes out where there is padding
    ((1, 1, 75), (35,), (1,), "VALID"),  # and where there is none
    ((1, 2, 24), (20,), (18,), ((3, 0),)),  # in which no cell is in many windows
    ((1, 3, 4, 3, 1), (2, 3, 2), (1, 1, 1), "SAME"),
]


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), LARGE)
@pytest.mark.parametrize("devices", [1, 8])
def test_large_windows_equal_the_loops(shape, window, strides, padding, devices):
    """On one device a CPU scatters the gradient."""
    channel_axis = 1 if len(shape) == 3 else -1
    for palette in sorted(PALETTES):
        problem = loops.Problem(shape, window, strides, padding, (1,) * len(window), False, channel_axis, 0, seed=3)
        with traced_for(devices):
            contract.forget()
            equals_the_loops(problem, palette)
    contract.forget()


@pytest.mark.as_users_compile
@pytest.mark.parametrize(("devices", "scattered"), [(1, True), (8, False)])
def test_scattered_if_no_device_has_a_part(devices, scattered):
    """A scatter into a flattened array would gather the parts."""
    x, dy = (jax.ShapeDtypeStruct((2, n, n, 3), jnp.float32) for n in (9, 6))
    with traced_for(devices):
        pool = functools.partial(bnderiv.max_pool, window=4, strides=1)
        program = jax.jit(lambda x, dy: jax.vjp(pool, x)[1](dy)).lower(x, dy).compile()
    assert ("scatter" in opcodes(program)) == scattered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "promises"),
    [(bnderiv, (*contract.PROMISES, *contract.TRANSFORMS)), (forward_mode, contract.EVERYTHING)],
    ids=["bnderiv", "forward_mode"],
)
def test_what_is_scattered_keeps_the_contract(layers, promises):
    with traced_for(1):
        for promise in promises:
            contract.forget()
            promise(layers, MAX_LARGE)
    contract.forget()
