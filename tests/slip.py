"""A slip is an error people make in a derivation, planted on purpose to see the contract catch it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.case import Case


@dataclass(frozen=True)
class Slip:
    """`break_bwd(bwd)` is the backward of `core` with the error in it; it must show at `case`."""

    label: str
    case: Case
    core: Any
    break_bwd: Callable[[Callable], Callable]

    def __str__(self) -> str:
        return f"{self.case.layer}-{self.label}"


def scaled(*factors: float) -> Callable[[Callable], Callable]:
    """A backward whose i-th gradient comes out multiplied by `factors[i]` (0 drops it, −1 is a sign error)."""

    def break_bwd(bwd: Callable) -> Callable:
        def broken(*args: Any) -> Any:
            grads = bwd(*args)
            return tuple(g if g is None else g * factor for g, factor in zip(grads, factors, strict=True))

        return broken

    return break_bwd
