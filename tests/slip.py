"""A slip is an error people make in a derivation, planted on purpose to see the contract catch it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bnderiv
from tests import contract
from tests.case import Case

Gradients = tuple[Any, ...]
Change = Callable[[Gradients, tuple[Any, ...], Any], Gradients]


@dataclass(frozen=True)
class Slip:
    """`change(gradients, arguments, cotangent)` makes the layer's right gradients the wrong ones; shown at `case`."""

    label: str
    case: Case
    change: Change

    def __str__(self) -> str:
        return f"{self.case.layer}-{self.label}"


class Planted:
    """In the place of `bnderiv` in the contract: one layer, its values right and its gradients those of the slip.

    Made of what the public layer returns at the case, so no slip depends on how a layer is built.
    """

    def __init__(self, case: Case, change: Change):
        value, right = _right(case)

        def wrong(*arguments: Any, **_: Any) -> Any:
            @jax.custom_vjp
            def rule(*arguments: Any) -> Any:
                return value

            def fwd(*arguments: Any) -> Any:
                return value, arguments

            def bwd(arguments: Any, cotangent: Any) -> Any:
                filled = iter(right)
                all_right = tuple(next(filled) if _is_floating(a) else _nothing(a) for a in arguments)
                return change(all_right, arguments, cotangent)

            rule.defvjp(fwd, bwd)
            return rule(*arguments)

        setattr(self, case.layer, wrong)


@lru_cache(maxsize=4)
def _right(case: Case) -> Any:
    """Value and gradients of the layer at the case, from the program that the contract runs."""
    return contract.value_and_gradient(bnderiv, case)


def _is_floating(argument: Any) -> bool:
    return argument is not None and jnp.issubdtype(argument.dtype, jnp.floating)


def _nothing(argument: Any) -> Any:
    """The gradient of an argument that is not differentiated."""
    return None if argument is None else np.zeros(argument.shape, jax.dtypes.float0)


def gradients(layer: Callable, arguments: tuple[Any, ...], cotangent: Any, **options: Any) -> Gradients:
    """What comes back through `layer(*arguments, **options)`."""
    return jax.vjp(lambda *a: layer(*a, **options), *arguments)[1](cotangent)


def unchanged(right: Gradients, arguments: tuple[Any, ...], cotangent: Any) -> Gradients:
    """No slip at all."""
    return right


def scaled(*factors: float) -> Change:
    """The i-th gradient multiplied by `factors[i]` (0 drops it, −1 is a sign error)."""

    def change(right: Gradients, arguments: tuple[Any, ...], cotangent: Any) -> Gradients:
        return tuple(g if factor == 1 else g * factor for g, factor in zip(right, factors, strict=True))

    return change
