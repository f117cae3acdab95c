"""Cases and slips of the linear room."""

import jax.numpy as jnp

from tests.case import Case
from tests.slip import Slip, scaled


def _dense(*lead, features=5, units=3, bias=True):
    return lambda rng: (
        rng.standard_normal((*lead, features)),
        rng.standard_normal((features, units)),
        rng.standard_normal(units) if bias else None,
    )


CASES = (
    DENSE := Case("dense", "rows", _dense(4)),
    Case("dense", "no-bias", _dense(4, bias=False)),
    Case("dense", "one-vector", _dense()),
    Case("dense", "extra-axes", _dense(2, 3)),
    SQUARE := Case("dense", "square-kernel", _dense(4, features=3)),
    Case("dense", "single-unit", _dense(4, features=1, units=1)),
    FLATTEN := Case("flatten", "images", lambda rng: (rng.standard_normal((3, 2, 4, 2)),)),
    Case("flatten", "vectors", lambda rng: (rng.standard_normal((3, 4)),)),
    Case("flatten", "numbers", lambda rng: (rng.standard_normal(3),)),
)


def _kernel_not_transposed(right, arguments, delta):
    """δa = δW in place of δWᵀ, which the shapes of a square kernel let through."""
    return delta @ arguments[1], *right[1:]


def _column_major(right, arguments, delta):
    return (jnp.reshape(delta, arguments[0].shape, order="F"),)


SLIPS = (
    Slip("kernel-not-transposed", SQUARE, _kernel_not_transposed),
    Slip("kernel-gradient-sign", DENSE, scaled(1, -1, 1)),
    Slip("bias-gradient-averaged", DENSE, scaled(1, 1, 1 / 4)),
    Slip("column-major", FLATTEN, _column_major),
)
