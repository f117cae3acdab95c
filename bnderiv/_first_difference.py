"""Which step of somebody's own derivation is the wrong one, by how much, where, and which slip it looks like.

Everything here compares concrete numbers in float64 NumPy. What people get wrong in a particular layer is known to
that layer's room (its `slips.py`); what they get wrong anywhere, to this file.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bnderiv._steps import fields, table
from bnderiv.activation import slips as activation
from bnderiv.activation import steps as activation_steps
from bnderiv.convolution.slips import of_conv2d
from bnderiv.convolution.steps import Conv2d
from bnderiv.linear.slips import of_dense
from bnderiv.linear.steps import Dense
from bnderiv.models.slips import of_lenet5
from bnderiv.models.steps import LeNet5
from bnderiv.normalization.slips import of_batch_norm
from bnderiv.normalization.steps import BatchNorm, BatchNormGraph, BatchNormRelu

Candidate = tuple[str, np.ndarray]

# (step, sentence, what the slip would have given), for every slip that the room knows.
_ROOMS: dict[type, Callable[[Any], Iterable[tuple[str, str, np.ndarray]]]] = {
    BatchNorm: of_batch_norm,
    BatchNormRelu: of_batch_norm,
    BatchNormGraph: of_batch_norm,
    Dense: of_dense,
    Conv2d: of_conv2d,
    activation_steps.Tanh: activation.of_tanh,
    activation_steps.Sigmoid: activation.of_sigmoid,
    activation_steps.Softmax: activation.of_softmax,
    LeNet5: of_lenet5,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """The first step that disagrees.

    Attributes:
      step: the name of the field.
      slip: the likely slip, a sentence, or None.
      amount: largest absolute difference of an element; None where the shapes differ.
      relative: the same over the largest element of the right step; None where the shapes differ.
      place: index of the element with the largest difference; None where the shapes differ.
      mine, right: the two values at that place, or the two shapes.
      symbol, label: what the derivation calls the step, and where it is in `derivation.md`.
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

    Two arrays agree where they differ by no more than rounding: `rtol` times the step's largest element. A difference
    that small is reported all the same if a known slip explains it (ε outside of the root changes the sixth digit).

    Args:
      mine: your intermediates, any subset of the fields: a mapping of names to arrays (NumPy or JAX) or a NamedTuple.
      steps: the right ones: what a function of `bnderiv.steps` returned for the same arguments.
      rtol: tolerance; by default what suits the coarser of the two dtypes (4e-10 for float64, 7e-5 for float32).

    Returns:
      None where all agree; else a `Difference` with `step`, `slip`, `amount` and `place`.

    Raises:
      TypeError: `mine` is neither a mapping nor a NamedTuple, `steps` no result of `bnderiv.steps`, or one is traced.
      ValueError: `mine` has names that `steps` has not.
    """
    if type(steps).__repr__ is not table:
        raise TypeError(f"steps must be what a function of bnderiv.steps returned, got {type(steps).__name__}")
    named: Any = mine
    if isinstance(mine, tuple) and hasattr(mine, "_asdict"):
        named = named._asdict()
    if not isinstance(named, Mapping):
        raise TypeError(f"mine must be a mapping from names to arrays, or a NamedTuple, got {type(mine).__name__}")
    named = {name: value for name, value in named.items() if value is not None}  # steps that a variant does not have
    right = {name: value for name, value in steps._asdict().items() if hasattr(value, "shape")}
    unknown = [name for name in named if name not in right and not (name in steps._fields and name == "state")]
    if unknown:
        raise ValueError(f"mine has unknown steps {unknown}; {type(steps).__name__} has {', '.join(right)}")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((dict(named), right))):
        raise TypeError("mine and steps must hold numbers: first_difference compares them, call it outside of jit")

    numbers = {name: _wide(value) for name, value in right.items()}
    amplified = _amplification(numbers)
    floor = _rounding_floor(numbers, right, amplified)
    for name in right:
        if name in named:
            tolerance = _tolerance(named[name], right[name], amplified) if rtol is None else rtol
            found = _compare(name, _wide(named[name]), numbers[name], tolerance, floor, steps)
            if found is not None:
                return found
    return None


def _compare(
    name: str, mine: np.ndarray, right: np.ndarray, tolerance: float, floor: dict[str, float], steps: Any
) -> Difference | None:
    field = fields(type(steps))[name]
    symbol, label = field.symbol, field.label
    if mine.shape != right.shape and not _stretches(mine, right):
        slip = _explain(name, mine, right, tolerance, floor[name], steps) or _about_shapes(mine, right)
        return Difference(name, slip, None, None, None, mine.shape, right.shape, symbol, label)
    if mine.shape != right.shape:
        mine = np.broadcast_to(mine, right.shape)
    amounts = _distance(mine, right)
    scale = _largest(right)
    worst = float(amounts.max(initial=0.0))
    allowed = max(tolerance * scale, floor[name])
    slip = None
    if worst > 0 and worst > floor[name]:
        slip = _explain(name, mine, right, tolerance, floor[name], steps)
    if worst <= allowed and slip is None:
        return None
    place = tuple(int(i) for i in np.unravel_index(int(amounts.argmax()), amounts.shape))
    relative = worst / scale if scale > 0 else math.inf
    return Difference(name, slip, worst, relative, place, float(mine[place]), float(right[place]), symbol, label)


def _explain(name: str, mine: np.ndarray, right: np.ndarray, tolerance: float, floor: float, steps: Any) -> str | None:
    """The known slip that gives these numbers, if there is one."""
    off = float(_distance(mine, right).max(initial=0.0)) if mine.shape == right.shape else math.inf
    allowed = max(tolerance * _largest(right), floor)
    # A gross difference is explained by a slip that leaves none; one near the rounding by a slip much nearer still.
    enough = allowed if off > allowed else off / 16
    gross = off > allowed
    for sentence, candidate in _candidates(name, mine, right, steps, gross):
        known = np.isfinite(candidate)
        if candidate.shape != mine.shape or not known.any():
            continue
        left = float(_distance(mine, candidate)[known].max())
        here = float(_distance(mine, right)[known].max()) if gross and mine.shape == right.shape else off
        size = max(tolerance * _largest(candidate[known]), floor) if gross else enough
        if left <= size and here > size:
            return sentence
    return None


def _candidates(name: str, mine: np.ndarray, right: np.ndarray, steps: Any, gross: bool) -> Iterator[Candidate]:
    """What slips would have given: those of the room, then those of anywhere."""
    for step, sentence, value in _ROOMS.get(type(steps), lambda _: ())(steps):
        if step == name:
            yield sentence, np.asarray(value)
    if not gross:
        return
    yield "the sign: it is minus the right value", -right
    if right.ndim >= 2:
        for axes in itertools.permutations(range(right.ndim)):
            if axes != tuple(range(right.ndim)):
                yield f"a transpose: the right array with its axes in the order {axes}", right.transpose(axes)
        yield from _flips(right)
    if mine.shape == right.shape and np.isfinite(mine).all() and np.isfinite(right).all() and right.any():
        factor = float((mine * right).sum() / (right * right).sum())
        sentence = _about_factor(factor, steps, right.size)
        if sentence is not None:
            yield sentence, factor * right


def _flips(right: np.ndarray) -> Iterator[Candidate]:
    if right.ndim == 4:
        yield "a flipped kernel: it is turned by 180° (rows and columns)", right[::-1, ::-1]
        yield "a flipped image: it is turned by 180° (rows and columns)", right[:, ::-1, ::-1]
        yield "a flipped image: it is turned by 180° (rows and columns)", right[:, :, ::-1, ::-1]
    for axis in range(right.ndim):
        yield f"flipped: axis {axis} runs backwards", np.flip(right, axis)


def _about_factor(factor: float, steps: Any, size: int) -> str | None:
    if factor == 0 or math.isclose(factor, 1, rel_tol=1e-3):
        return None
    shape = max((np.shape(value) for value in steps if hasattr(value, "shape")), key=len, default=())
    products = {}
    for length in range(1, len(shape) + 1):
        for axes in itertools.combinations(range(len(shape)), length):
            n = math.prod(shape[a] for a in axes)
            if n > 1:
                products.setdefault(n, f"{'·'.join(str(shape[a]) for a in axes)}")
    for n, written in products.items():
        if math.isclose(abs(factor), n, rel_tol=1e-6):
            named = written if written == str(n) else f"{written} = {n}"
            return f"too large by the factor {named}: a missing 1/m, a sum where a mean belongs"
        if math.isclose(abs(factor), 1 / n, rel_tol=1e-6):
            named = written if written == str(n) else f"{written} = {n}"
            return f"too small by the factor {named}: divided by m once too often, a mean where a sum belongs"
    if size < 3:
        return None  # any number is some multiple of another
    return f"every element is {factor:.6g} times the right value: a factor is missing or wrong"


def _about_shapes(mine: np.ndarray, right: np.ndarray) -> str | None:
    if [n for n in mine.shape if n != 1] == [n for n in right.shape if n != 1]:
        same = np.allclose(mine.ravel(), right.ravel(), rtol=1e-4, equal_nan=True)
        return "the numbers are right, but axes of length 1 were kept or added" if same else None
    if sorted(mine.shape) == sorted(right.shape):
        return "a transpose: the same axes in another order"
    if mine.ndim != right.ndim:
        return "a sum over the wrong axes: axes are left over or gone"
    return None


def _stretches(mine: np.ndarray, right: np.ndarray) -> bool:
    """One number for a whole channel, kept as one where the step spells it out for every element."""
    if mine.ndim != right.ndim or any(m not in (1, n) for m, n in zip(mine.shape, right.shape, strict=True)):
        return False
    axes = [a for a in range(right.ndim) if mine.shape[a] != right.shape[a]]
    return all((right == right.take([0], axis)).all() for axis in axes)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a − b|, 0 where both are the same NaN or infinity, inf where one alone is."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(a - b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))


def _largest(a: np.ndarray) -> float:
    finite = np.abs(a[np.isfinite(a)])
    return float(finite.max(initial=0.0))


def _wide(value: Any) -> np.ndarray:
    return np.asarray(value).astype(np.float64)


def _tolerance(mine: Any, right: Any, amplified: float) -> float:
    eps = max(_eps(mine), _eps(right))
    return max(eps**0.6, 32 * eps * amplified)


def _eps(value: Any) -> float:
    dtype = getattr(value, "dtype", np.dtype("float64"))
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0


def _amplification(numbers: dict[str, np.ndarray]) -> float:
    """How much x − μ enlarges a relative error of x: 1 + |μ|/σ, the most of any channel."""
    pairs = [
        (mu, numbers[f"inv_std{name[2:]}"])
        for name, mu in numbers.items()
        if name.startswith("mu") and f"inv_std{name[2:]}" in numbers
    ]
    return 1 + max((_largest(mu * inv_std) for mu, inv_std in pairs), default=0.0)


def _rounding_floor(numbers: dict[str, np.ndarray], right: dict[str, Any], amplified: float) -> dict[str, float]:
    """What rounding alone may leave, per step: a gradient that cancels to 0 is as rough as the gradients around it."""
    backward = max((_largest(a) for name, a in numbers.items() if _is_backward(name)), default=0.0)
    sizes = {name: backward if _is_backward(name) else _largest(a) for name, a in numbers.items()}
    return {name: 8 * _eps(right[name]) * (1 if _is_steady(name) else amplified) * size for name, size in sizes.items()}


def _is_steady(name: str) -> bool:
    """Whether no rounded μ is subtracted on the way; in the variance its error counts squared."""
    return name.rstrip("0123456789") in ("mu", "var", "inv_std", "d_beta", "d_x_hat", "d_mu")


def _is_backward(name: str) -> bool:
    return name.startswith(("d_", "dx", "delta"))
