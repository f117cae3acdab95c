"""Which step of a user's own derivation is wrong, by how much, where, and which slip it looks like.

All comparisons are of concrete numbers in float64 NumPy. `rounding.py` says how large rounding errors may be,
`known_slips.py` recognizes slips.
"""

import dataclasses
import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from bnderiv.steps.aliases import ALIASES
from bnderiv.steps.known_slips import about_shapes, explain
from bnderiv.steps.rounding import amplification, distance, floors, largest, tolerance_for, tolerance_for_input, wide
from bnderiv.steps.table import INPUT, OPTION, Field, fields, table

KEPT_AXES = "the numbers are right, but axes of length 1 were kept or added"


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """The first step that disagrees, as `first_difference` returns it.

    Attributes:
      step: the name of the field.
      slip: the likely slip, a sentence, or None.
      amount: largest absolute difference of an element; None if the shapes or the options differ.
      relative: the same over the largest element of the right step; None if the shapes or the options differ.
      place: index of the element with the largest difference; None if the shapes or the options differ.
      mine, right: the two values at that place, or the two shapes, or the two options.
      symbol, label: the step's symbol in the derivation, and its label in `derivation.md`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.tanh(jnp.array([0.5]), jnp.array([1.0]))
      >>> difference = bnderiv.steps.first_difference({"slope": s.slope, "dx": -s.dx}, s)
      >>> difference.step, difference.place
      ('dx', (0,))
    """

    step: str
    slip: str | None
    amount: float | None
    relative: float | None
    place: tuple[int, ...] | None
    mine: Any
    right: Any
    symbol: str = ""
    label: str = ""

    def __repr__(self) -> str:
        if self.label == OPTION:
            return f"{self.step} is {self.mine!r}, here {self.right!r}\n  likely: {self.slip}"
        name = f"{self.step} [{', '.join(part for part in (self.symbol, self.label) if part)}]"
        if self.amount is None:
            what = f"{name} has shape {self.mine}, must have {self.right}"
        else:
            place = f" at {list(self.place)}" if self.place else ""
            what = (
                f"{name} is off by {self.amount:.3g} ({self.relative:.2g} of its largest element){place}: "
                f"{self.mine:.6g}, must be {self.right:.6g}"
            )
        return f"{what}\n  likely: {self.slip}" if self.slip else what


def first_difference(mine: Any, steps: Any, *, rtol: float | None = None) -> Difference | None:
    """The first step of `mine`, in the order of the derivation, that disagrees with `steps`.

    Right numbers with more axes of length 1, as `keepdims=True` leaves them, are reported only if all others agree.

    Two arrays agree if they differ by no more than rounding: `rtol` times the step's largest element. A smaller
    difference is reported too if a known slip explains it (ε outside of the root changes the sixth digit).

    Args:
      mine: your intermediates, any subset of the fields: a mapping of names to arrays (NumPy, JAX or PyTorch) or a
        NamedTuple. Inputs and options are compared as well if `mine` has them. The names that CS231n, Kratzert,
        Karpathy and PyTorch use are known too, such as `dgamma`, `ivar`, `dbnraw` and `grad_input`.
      steps: the right ones, as a function of `bnderiv.steps` returns them for the same arguments.
      rtol: tolerance; by default that of the coarser of the two dtypes (4e-10 for float64, 7e-5 for float32).

    Returns:
      None if all agree; otherwise a `Difference` with `step`, `slip`, `amount` and `place`.

    Raises:
      TypeError: `mine` is neither a mapping nor a NamedTuple, or an entry is not real numbers. Or `steps` is not a
        result of `bnderiv.steps`, or one of the two is traced.
      ValueError: `mine` has names that `steps` does not have, or two names for one step.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> s = bnderiv.steps.tanh(jnp.array([0.5]), jnp.array([1.0]))
      >>> print(bnderiv.steps.first_difference({"dx": s.dy * (1 - s.a)}, s).slip)
      a missing square: 1 − a in place of 1 − a²
    """
    if type(steps).__repr__ is not table:
        raise TypeError(f"steps must be what a function of bnderiv.steps returned, got {type(steps).__name__}")
    named: Any = mine
    if isinstance(mine, tuple) and hasattr(mine, "_asdict"):
        named = named._asdict()
    if not isinstance(named, Mapping):
        raise TypeError(f"mine must be a mapping from names to arrays, or a NamedTuple, got {type(mine).__name__}")
    has = {name: value for name, value in steps._asdict().items() if value is not None}
    # None: a step that a variant does not have.
    named = _by_their_names({name: _array(value) for name, value in named.items() if value is not None}, has, steps)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((dict(named), has))):
        raise TypeError("mine and steps must hold numbers: first_difference compares them, call it outside of jit")

    right = {name: value for name, value in has.items() if hasattr(value, "shape")}
    for name in right:
        dtype = np.asarray(named.get(name, 0.0)).dtype
        if not np.can_cast(dtype, np.float64, "same_kind"):
            raise TypeError(f"mine must hold real numbers, got {dtype} for {name}")

    numbers = {name: wide(value) for name, value in right.items()}
    amplified = amplification(numbers)
    floor = floors(numbers, right, amplified)

    seen_right: list[str] = []

    def compare(name: str, field: Field) -> Difference | None:
        if field.label == OPTION:
            return _compare_options(name, named[name], has[name])
        if name not in right:  # a tree, such as the parameters of a network
            return None
        tolerance, least = tolerance_for(named[name], right[name], amplified), floor[name]
        if field.label == INPUT:
            tolerance, least = tolerance_for_input(named[name], right[name]), 0.0
        found = _compare(
            name, wide(named[name]), numbers[name], tolerance if rtol is None else rtol, least, field, steps, seen_right
        )
        seen_right.append(name)
        return found

    kept: Difference | None = None  # harmless, as NumPy broadcasts: what is wrong after it comes first
    for name, field in fields(type(steps)).items():
        difference = compare(name, field) if name in named else None
        if difference is not None and difference.slip != KEPT_AXES:
            return difference
        kept = kept or difference
    return kept


def _by_their_names(named: Mapping[str, Any], has: Mapping[str, Any], steps: Any) -> dict[str, Any]:
    """The steps by the names that they have here."""
    found: dict[str, Any] = {}
    for given, value in named.items():
        name = given if given in has else next((a for a in ALIASES.get(given, ()) if a in has), None)
        if name is None:
            near = difflib.get_close_matches(str(given), has, 1, 0.75)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"mine has unknown steps {[given]}{hint}; {type(steps).__name__} has {', '.join(has)}")
        if name in found:
            raise ValueError(f"mine has two names for the step {name}")
        found[name] = value
    return found


def _array(value: Any) -> Any:
    """A PyTorch tensor as a NumPy array, anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    return (tensor.float() if str(tensor.dtype) in ("torch.bfloat16", "torch.float16") else tensor).numpy()


def _compare_options(name: str, mine: Any, right: Any) -> Difference | None:
    spelled_out = np.broadcast_to(mine, np.shape(right)) if np.ndim(mine) == 0 else mine  # one number for a pair
    if np.array_equal(spelled_out, right):
        return None
    return Difference(
        name, f"another option: all that follows is for another {name}", None, None, None, mine, right, label=OPTION
    )


def _compare(
    name: str,
    mine: np.ndarray,
    right: np.ndarray,
    tolerance: float,
    floor: float,
    field: Field,
    steps: Any,
    seen_right: Collection[str],
) -> Difference | None:
    symbol, label = field.symbol, field.label

    def slip_of(mine: np.ndarray) -> str | None:
        if label == INPUT:
            return f"another input: all that follows is for another {name}"
        return explain(name, mine, right, tolerance, floor, steps, seen_right)

    shape = mine.shape
    kept = shape != right.shape and [n for n in shape if n != 1] == [n for n in right.shape if n != 1]
    if kept:
        mine = mine.reshape(right.shape)
    if mine.shape != right.shape and not _stretches(mine, right):
        slip = slip_of(mine) or about_shapes(mine, right)
        return Difference(name, slip, None, None, None, mine.shape, right.shape, symbol, label)
    if mine.shape != right.shape:
        mine = np.broadcast_to(mine, right.shape)
    amounts = distance(mine, right)
    scale = largest(right)
    worst = float(amounts.max(initial=0.0))
    gross = worst > max(tolerance * scale, floor)
    slip = slip_of(mine) if gross or (worst > floor and label != INPUT) else None
    if not gross and slip is None:
        return Difference(name, KEPT_AXES, None, None, None, shape, right.shape, symbol, label) if kept else None
    place = tuple(int(i) for i in np.unravel_index(int(amounts.argmax()), amounts.shape))
    relative = worst / scale if scale > 0 else math.inf
    return Difference(name, slip, worst, relative, place, float(mine[place]), float(right[place]), symbol, label)


def _stretches(mine: np.ndarray, right: np.ndarray) -> bool:
    """Whether `mine` has one number for each channel where the step repeats it for every element."""
    if mine.ndim != right.ndim or any(m not in (1, n) for m, n in zip(mine.shape, right.shape, strict=True)):
        return False
    axes = [a for a in range(right.ndim) if mine.shape[a] != right.shape[a]]
    return all((right == right.take([0], axis)).all() for axis in axes)
