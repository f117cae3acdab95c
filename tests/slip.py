"""A slip is an error people make in a derivation, planted on purpose to see the contract catch it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

import bnderiv
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

    Made of the public layer alone, so no slip depends on how a layer is built.
    """

    def __init__(self, layer: str, change: Change):
        setattr(self, layer, _with_gradients(getattr(bnderiv, layer), change))


def _with_gradients(layer: Callable, change: Change) -> Callable:
    def wrong(*arguments: Any, **options: Any) -> Any:
        @jax.custom_vjp
        def rule(*arguments: Any) -> Any:
            return layer(*arguments, **options)

        def fwd(*arguments: Any) -> Any:
            return layer(*arguments, **options), arguments

        def bwd(arguments: Any, cotangent: Any) -> Any:
            return change(gradients(layer, arguments, cotangent, **options), arguments, cotangent)

        rule.defvjp(fwd, bwd)
        return rule(*arguments)

    return wrong


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
