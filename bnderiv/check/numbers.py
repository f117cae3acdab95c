"""Distances between arrays, tolerances, and finite differences."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Tolerances against the truth, relative to the largest element. They are wide enough for any order of summation, and
# narrow enough to show a wrong formula. (In float64, ChainRulesTestUtils also has 1e-9; PyTorch's gradcheck has 1e-3.)
FORMULA = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
# Between two runs of one program, such as eager and under jit.
SAME = {"float64": 1e-11, "float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}
DIFFERENCES = {"float64": 1e-5, "float32": 5e-2, "float16": 2e-1, "bfloat16": 5e-1}
ULPS = 32.0
# Terms that cancel completely leave roundings in float64, at most this part of their magnitude.
LOST = 1e3 * 2.0**-52

MANY = 512  # an array of more elements is differenced along random directions, a smaller one element by element


class Distance(NamedTuple):
    error: float
    index: tuple[int, ...] | None


def lookup(table: dict[str, float], dtypes: Sequence[Any]) -> float:
    """The tolerance of the coarsest of the dtypes."""
    return max((table.get(_real(d).name, table["bfloat16"]) for d in dtypes), default=table["float64"])


def ulp(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def magnitudes(expected: Sequence[Any]) -> list[float]:
    """The magnitude that errors in each array are relative to: its largest element.

    An array that should vanish, such as the gradient of a bias before batch norm, holds only rounding errors of the
    other arrays. So the magnitude is at least a thousandth of theirs.
    """
    largest = [_largest(e) for e in expected]
    floor = 1e-3 * max(largest, default=0.0)
    return [max(one, floor) or 1.0 for one in largest]


def magnitudes_of_the_truth(
    expected: Sequence[Any], sizes: Sequence[float], own: Callable[[], Sequence[Any]], tolerances: Sequence[float]
) -> list[float]:
    """As `magnitudes`, for an `expected` in float64, where an array that vanishes differs from one that is only small.

    A small array keeps its largest element as its magnitude, unless the reference is inaccurate there.

    Args:
      expected: the truth.
      sizes: the largest element of each gradient's argument, 1 for values. The effect of a gradient is its largest
        element times this size: if an argument is about 1e20, its gradient of 1e-20 is not small.
      own: returns the reference in the dtype under test.
      tolerances: for each array, the relative error from which the reference counts as inaccurate.
    """
    largest = [_largest(e) for e in expected]
    effects = [one * size for one, size in zip(largest, sizes, strict=True)]
    most, measured = max(effects, default=0.0), magnitudes(expected)
    for i, (one, effect) in enumerate(zip(largest, effects, strict=True)):
        vanishes = effect <= LOST * most
        if measured[i] == one or vanishes:
            continue
        if effect >= 1e-3 * most or distance(own()[i], expected[i], one).error <= tolerances[i]:
            measured[i] = one
    return measured


class Cancelled(NamedTuple):
    """An array that is a sum of larger terms carries their roundings."""

    terms: float  # the magnitude of the terms; 0 if unknown
    vanishes: bool  # the array consists of roundings only, in float64 too

    @property
    def magnitude(self) -> float:
        """The magnitude that errors in an array that vanishes are relative to."""
        return self.terms / 2

    def explains(self, array: Any, dtype: Any) -> bool:
        """Whether another result for the array, computed in this dtype, consists of roundings only."""
        return self.vanishes and _largest(array) <= 1e3 * ulp(dtype) * self.terms


def cancelled(truths: Sequence[Any], others: Sequence[Any]) -> Cancelled:
    """Estimates the terms from the error of `others`: the arrays `truths` (float64), computed with other roundings."""
    errors = [distance(o, t, 1.0).error / ulp(np.asarray(o).dtype) for o, t in zip(others, truths, strict=True)]
    terms = max((error for error in errors if np.isfinite(error)), default=0.0)
    return Cancelled(terms, terms > 0 and max(map(_largest, truths)) <= LOST * terms)


def distance(actual: Any, expected: Any, magnitude: float) -> Distance:
    """The largest difference over `magnitude`, and its index. NaN equals only NaN, and infinity only itself."""
    a, e = wide(actual), wide(expected)
    if a.shape != e.shape:
        raise ValueError(f"shape {a.shape}, expected {e.shape}")
    if a.size == 0:
        return Distance(0.0, None)
    with np.errstate(all="ignore"):
        apart = np.where((a == e) | (np.isnan(a) & np.isnan(e)), 0.0, np.abs(a - e) / magnitude)
    apart = np.where(np.isnan(apart), np.inf, apart)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(apart)), apart.shape))
    return Distance(float(apart[index]), index if apart[index] > 0 else None)


def wide(array: Any) -> np.ndarray:
    """As a NumPy array in float64 or complex128."""
    array = np.asarray(array)
    return array.astype(np.complex128 if np.issubdtype(array.dtype, np.complexfloating) else np.float64)


def dot(a: Any, b: Any) -> jax.Array:
    """Re Σ aᵢ bᵢ over all leaves, in float32 or float64: the pairing of tangents with cotangents in JAX."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    dtype = jnp.float64 if any(_real(y.dtype).itemsize == 8 for _, y in pairs) else jnp.float32
    return jnp.stack([jnp.real(x.astype(y.dtype) * y).sum(dtype=dtype) for x, y in pairs]).sum()


def weight(cotangent: Sequence[Any], value: Sequence[Any]) -> float:
    """The magnitude that the roundings of ⟨cotangent, value⟩ are relative to.

    Roundings add up like a random walk, so it is the root of the sum of squared terms.
    """
    terms = [np.abs(wide(c) * wide(v)).ravel() for c, v in zip(cotangent, value, strict=True)]
    largest = max(map(_largest, terms), default=0.0)
    squares = sum(float(np.square(t[np.isfinite(t)] / largest).sum()) for t in terms) if largest else 0.0
    return largest * squares**0.5


class Differences(NamedTuple):
    """A claimed gradient and differences of the function, one number for each direction."""

    claimed: np.ndarray
    central: np.ndarray  # of two steps, the result nearer to the claim: a kink nearby may lie within the larger step
    roundings: np.ndarray  # the error that roundings may cause in `central`
    kink: np.ndarray  # whether the two sides differ at both steps, and the claim lies between them
    rises: np.ndarray  # 1 if the slope is larger on the side the direction points to, −1 if on the other


def unit_directions(x: Any, elements: Sequence[int]) -> tuple[list[np.ndarray], list[tuple[int, ...]]]:
    """The unit direction of each of these elements (two for a complex one), and the index of the element."""
    x = wide(x)
    directions, index = [], []
    for j, unit in itertools.product(elements, (1, 1j) if np.iscomplexobj(x) else (1,)):
        direction = np.zeros(x.size, x.dtype)
        direction[j] = unit
        directions.append(direction.reshape(x.shape))
        index.append(tuple(int(k) for k in np.unravel_index(j, x.shape)))
    return directions, index


def random_directions(x: Any, rng: np.random.Generator) -> list[np.ndarray]:
    """Eight directions of standard normal numbers."""
    x = wide(x)
    units = (1, 1j) if np.iscomplexobj(x) else (1,)
    return [np.sum([unit * rng.standard_normal(x.shape) for unit in units], axis=0) for _ in range(8)]


def differences(
    function: Callable[[Sequence[Any]], Sequence[Any]],
    cotangent: Sequence[Any],
    point: Sequence[Any],
    gradient: Any,
    i: int,
    directions: Sequence[np.ndarray],
) -> Differences:
    """⟨gradient, v⟩ and (⟨ct, f(x + h v)⟩ − ⟨ct, f(x − h v)⟩)/2h in argument `i`, for each direction v."""
    x, g, dtype = wide(point[i]), wide(gradient), np.asarray(point[i]).dtype
    step = step_of(point[i])
    here = [wide(o) for o in function(point)]

    def along(direction: np.ndarray, h: float, moved: list[np.ndarray]) -> tuple[float, float]:
        """The slopes of the two sides. Outputs are subtracted before they are summed, which cancels less."""
        sides = []
        for signed in (h, -h):
            there = function((*point[:i], (x + signed * direction).astype(dtype), *point[i + 1 :]))
            apart = [wide(t) - o for t, o in zip(there, here, strict=True)]
            sides.append(sum(float(np.real(wide(c) * d).sum()) for c, d in zip(cotangent, apart, strict=True)) / signed)
            for m, d in zip(moved, apart, strict=True):
                m |= d != 0
        return sides[0], sides[1]

    claimed, central, roundings, kink, rises = [], [], [], [], []
    for direction in directions:
        claim, moved = float(np.real(g * direction).sum()), [np.zeros(o.shape, bool) for o in here]
        coarse, fine = along(direction, step, moved), along(direction, step / 10, moved)
        # A small output may be a difference of larger numbers, so every output that moves counts as the largest.
        roundings.append(
            rounding(weight(cotangent, [m * _largest(o) for m, o in zip(moved, here, strict=True)]), point[i])
        )
        slack = max(1e-4 * max(*(abs(d) for d in fine), 1e-3 * _largest(g), 1e-30), 5 * roundings[-1])
        # For a smooth function, the gap between the sides shrinks with the step.
        gap, before = abs(fine[0] - fine[1]), abs(coarse[0] - coarse[1])
        between = min(fine) - slack <= claim <= max(fine) + slack
        claimed.append(claim)
        central.append(min((sum(coarse) / 2, sum(fine) / 2), key=lambda value, claim=claim: abs(value - claim)))
        kink.append(gap > 0.5 * before and gap > 10 * slack and between)
        rises.append(1 if fine[0] >= fine[1] else -1)
    return Differences(np.array(claimed), np.array(central), np.array(roundings), np.array(kink, bool), np.array(rises))


def size_of(x: Any) -> float:
    """The largest element by magnitude, or 1 if all are 0."""
    return _largest(x) or 1.0


def step_of(x: Any) -> float:
    """The larger of the two steps for differences in `x`; it balances truncation and rounding."""
    x = np.asarray(x)
    return size_of(x) * ulp(x.dtype) ** (1 / 3)


def rounding(weight: float, x: Any) -> float:
    """The rounding error of a difference at `step_of(x)`, for a function whose roundings have this `weight`."""
    return 2 * ulp(np.asarray(x).dtype) * weight / step_of(x)


def _largest(array: Any) -> float:
    absolute = np.abs(wide(array))
    finite = absolute[np.isfinite(absolute)]
    return float(finite.max()) if finite.size else 0.0


def _real(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype
