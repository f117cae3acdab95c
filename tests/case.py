"""What a row in a room's table of cases is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, eq=False)
class Case:
    """One layer at one point: `layer(*arrays(rng), **options)`.

    `arrays` draws the positional arguments in float64 (differentiated) and integers or booleans (not). It keeps away
    from kinks and ties, where finite differences mean nothing; those have tests of their own.
    """

    layer: str
    label: str
    arrays: Callable[[np.random.Generator], tuple[np.ndarray | None, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    # Whether the gradient is the value's derivative: not where the layer holds a part of the value constant.
    differentiable: bool = True

    def __str__(self) -> str:
        return f"{self.layer}-{self.label}"

    def bind(self, layers: Any, dtype: Any = np.float64, seed: int = 0) -> tuple[Callable, tuple[jax.Array, ...]]:
        """The layer as a function of its float arguments alone, and those arguments in `dtype`."""
        drawn = self.arrays(np.random.default_rng(seed))
        is_float = [a is not None and np.issubdtype(a.dtype, np.floating) for a in drawn]
        fixed = [None if f or a is None else jnp.asarray(a) for a, f in zip(drawn, is_float, strict=True)]
        floats = tuple(jax.device_put(np.asarray(a, dtype)) for a, f in zip(drawn, is_float, strict=True) if f)
        layer = getattr(layers, self.layer)

        def function(*args: jax.Array) -> Any:
            rest = iter(args)
            return layer(*(next(rest) if f else a for a, f in zip(fixed, is_float, strict=True)), **self.options)

        # `fixed` holds the constants in place; the floats fill the other places in order.
        return function, floats


def random_like(tree: Any, seed: int) -> Any:
    """Standard normal numbers in the shapes and dtypes of `tree`: cotangents, tangents and directions.

    Random, never ones: the gradient of a plain sum through batch norm is zero, and a rule that returns zeros passes.
    """
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jax.device_put(rng.standard_normal(a.shape).astype(a.dtype)), tree)


def spread(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Distinct values, at least 2/size apart and away from 0: no ties for a maximum, no kink at 0 within reach."""
    size = int(np.prod(shape))
    return rng.permutation(np.linspace(-1, 1, 2 * ((size + 1) // 2)))[:size].reshape(shape)
