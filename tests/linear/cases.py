"""Cases and slips of the linear room."""

import jax.numpy as jnp

from bnderiv.linear import dense, flatten
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


def _kernel_not_transposed(bwd):
    """δa = δW in place of δWᵀ, which the shapes of a square kernel let through."""

    def broken(residuals, delta):
        _, dkernel, dbias = bwd(residuals, delta)
        return delta @ residuals[1], dkernel, dbias

    return broken


def _column_major(bwd):
    return lambda shape, _, delta: (jnp.reshape(delta, shape, order="F"),)


SLIPS = (
    Slip("kernel-not-transposed", SQUARE, dense._dense, _kernel_not_transposed),
    Slip("kernel-gradient-sign", DENSE, dense._dense, scaled(1, -1, 1)),
    Slip("bias-gradient-averaged", DENSE, dense._dense, scaled(1, 1, 1 / 4)),
    Slip("column-major", FLATTEN, flatten._flatten, _column_major),
)
