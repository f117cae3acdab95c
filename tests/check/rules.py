"""What the three tables share: a row, and how a rule is made."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Case:
    """A rule and what is known of it.

    Attributes:
      how: the way people get there, or what makes it hard.
      make: returns the function with the rule; called anew for each comparison, so that no state is left over.
      plain: the same function for autodiff.
      args: called with a dtype.
      keywords: of `compare`, beside the reference.
      misses: the configurations, such as "float32 alone", that provably cannot tell; the reason is in `how`.
    """

    name: str
    how: str
    make: Callable[[], Callable]
    plain: Callable
    args: Callable[[Any], tuple]
    keywords: dict[str, Any] = field(default_factory=dict)
    misses: tuple[str, ...] = ()


CONFIGURATIONS = ("float32", "float64", "float32 alone", "float64 alone")


def run(compare: Callable, case: Case, configuration: str, **keywords: Any) -> Any:
    """`compare` on a case: in the dtype, and without the reference if `alone`."""
    dtype, _, alone = configuration.partition(" ")
    reference = None if alone else case.plain
    return compare(case.make(), reference, *case.args(np.dtype(dtype)), **{**case.keywords, **keywords})


def rule(forward: Callable, bwd: Callable, fwd: Callable | None = None) -> Any:
    """A custom_vjp whose residuals are the arguments."""
    f = jax.custom_vjp(forward)
    f.defvjp(fwd or (lambda *args: (forward(*args), args)), bwd)
    return f


def normal(*shapes: tuple[int, ...], scale: float = 1.0, shift: float = 0.0, seed: int = 0) -> Callable[[Any], tuple]:
    """Standard normal arguments of these shapes."""

    def args(dtype: Any) -> tuple:
        rng = np.random.default_rng(seed)
        return tuple(jnp.asarray(scale * rng.standard_normal(shape) + shift, dtype) for shape in shapes)

    return args


def positive(*shapes: tuple[int, ...], seed: int = 0) -> Callable[[Any], tuple]:
    """Arguments between 1/2 and 2."""

    def args(dtype: Any) -> tuple:
        rng = np.random.default_rng(seed)
        return tuple(jnp.asarray(2.0 ** rng.uniform(-1, 1, shape), dtype) for shape in shapes)

    return args


def at(*values: Any) -> Callable[[Any], tuple]:
    """These values, the floating ones in the dtype; integers stay integers."""

    def args(dtype: Any) -> tuple:
        arrays = (np.asarray(value) for value in values)
        return tuple(jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else None) for a in arrays)

    return args
