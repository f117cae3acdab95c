"""What the tests of the steps share: a step function against its layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bnderiv
from tests.case import Case, random_like
from tests.compiling import fast_jit
from tests.contract import near


def equals_its_layer(case: Case, value: str, gradients: tuple[str, ...]) -> None:
    """The steps named `value` and `gradients` are the layer's value and its VJP with a random cotangent, in float64."""
    drawn = [None if a is None else jnp.asarray(a) for a in case.arrays(np.random.default_rng(0))]
    if case.layer in ("dense", "conv", "conv2d") and len(drawn) == 2:
        drawn.append(None)
    layer, floats = case.bind(bnderiv)

    @fast_jit
    def run(drawn: list[Any], floats: tuple[jax.Array, ...]) -> Any:
        out, pull_back = jax.vjp(layer, *floats)
        back = random_like(out, 3)
        arguments, options = drawn, dict(case.options)
        if isinstance(out, tuple):  # batch norm returns its statistics as well
            options |= {"m_bar": back[1].mean, "v_bar": back[1].var}
        out = out[0] if isinstance(out, tuple) else out
        dy = back[0] if isinstance(back, tuple) else back
        if case.layer == "batch_norm_relu" and len(drawn) == 4:
            arguments, options = drawn[:3], {**options, "residual": drawn[3]}
        return out, pull_back(back), getattr(bnderiv.steps, case.layer)(*arguments, dy=dy, **options)

    out, expected, steps = run(drawn, floats)
    if case.layer == "batch_renorm":
        expected = expected[:3]  # the running statistics have no gradient
    near(getattr(steps, value), out, 1e-12)
    near([getattr(steps, name) for name in gradients[: len(expected)]], expected, 1e-12)
