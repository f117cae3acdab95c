"""How far two arrays are apart, how far they may be, and what finite differences say."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Against the truth, relative to the largest element: a few dozen roundings, so that a wrong formula shows and the
# order of a summation does not. (ChainRulesTestUtils asks 1e-9 of float64 too, PyTorch's gradcheck 1e-3.)
FORMULA = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
# The same program, run in another way.
SAME = {"float64": 1e-11, "float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}
DIFFERENCES = {"float64": 1e-5, "float32": 5e-2, "float16": 2e-1, "bfloat16": 5e-1}
ULPS = 32.0
# Of terms that cancel altogether, what roundings may leave in float64.
LOST = 1e3 * 2.0**-52

MANY = 512  # up to so many elements are differenced one by one, larger arrays along random directions


class Distance(NamedTuple):
    error: float
    index: tuple[int, ...] | None


def lookup(table: dict[str, float], dtypes: Sequence[Any]) -> float:
    """The tolerance of the coarsest of the dtypes."""
    return max((table.get(_real(d).name, table["bfloat16"]) for d in dtypes), default=table["float64"])


def ulp(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def scales(expected: Sequence[Any]) -> list[float]:
    """What an error in each array is measured by: its largest element.

    An array that should vanish, such as the gradient of a bias before batch norm, holds rounding errors of the
    others; it is measured by a thousandth of those.
    """
    largest = [_largest(e) for e in expected]
    floor = 1e-3 * max(largest, default=0.0)
    return [max(one, floor) or 1.0 for one in largest]


def scales_of_the_truth(
    expected: Sequence[Any], sizes: Sequence[float], own: Callable[[], Sequence[Any]], tolerances: Sequence[float]
) -> list[float]:
    """The same, where `expected` was computed in float64, which tells what should vanish from what is small.

    Args:
      expected: the truth.
      sizes: of what each array is the gradient by. A gradient counts by how much it moves the function when its
        argument changes by a part of its size: at arguments of 1e20, one of 1e-20 is as large as any.
      own: gives the reference in the dtype that is looked at.
      tolerances: for each array, relative. Where the reference itself is off by more, a small one is as rough as the
        large ones around it.
    """
    largest = [_largest(e) for e in expected]
    weights = [one * size for one, size in zip(largest, sizes, strict=True)]
    most, measured = max(weights, default=0.0), scales(expected)
    for i, (one, weight) in enumerate(zip(largest, weights, strict=True)):
        if measured[i] == one or weight <= LOST * most:  # the latter vanishes
            continue
        if weight >= 1e-3 * most or distance(own()[i], expected[i], one).error <= tolerances[i]:
            measured[i] = one
    return measured


class Cancelled(NamedTuple):
    """What an array that is a sum of larger terms keeps of their roundings."""

    terms: float  # their size; 0 where it is not known
    vanishes: bool  # the array is nothing but roundings, in float64 too

    @property
    def scale(self) -> float:
        """What an error in an array that vanishes is measured by."""
        return self.terms / 2

    def explains(self, array: Any, dtype: Any) -> bool:
        """Whether another such array, computed in this dtype, is nothing but roundings too."""
        return self.vanishes and _largest(array) <= 1e3 * ulp(dtype) * self.terms


def cancelled(truths: Sequence[Any], others: Sequence[Any]) -> Cancelled:
    """Of arrays in float64, from how far the same, rounded otherwise, are off: by the roundings of the terms."""
    errors = [distance(o, t, 1.0).error / ulp(np.asarray(o).dtype) for o, t in zip(others, truths, strict=True)]
    terms = max((error for error in errors if np.isfinite(error)), default=0.0)
    return Cancelled(terms, terms > 0 and max(map(_largest, truths)) <= LOST * terms)


def distance(actual: Any, expected: Any, scale: float) -> Distance:
    """The largest difference over `scale`, and where; NaN and infinity are far from all but themselves."""
    a, e = wide(actual), wide(expected)
    if a.shape != e.shape:
        raise ValueError(f"shape {a.shape}, expected {e.shape}")
    if a.size == 0:
        return Distance(0.0, None)
    with np.errstate(all="ignore"):
        apart = np.where((a == e) | (np.isnan(a) & np.isnan(e)), 0.0, np.abs(a - e) / scale)
    apart = np.where(np.isnan(apart), np.inf, apart)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(apart)), apart.shape))
    return Distance(float(apart[index]), index if apart[index] > 0 else None)


def wide(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.complex128 if np.issubdtype(array.dtype, np.complexfloating) else np.float64)


def dot(a: Any, b: Any) -> jax.Array:
    """Re Σ aᵢ bᵢ over all leaves (the pairing of tangents and cotangents, complex ones too), in float32 or 64."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    dtype = jnp.float64 if any(_real(y.dtype).itemsize == 8 for _, y in pairs) else jnp.float32
    return jnp.stack([jnp.real(x.astype(y.dtype) * y).sum(dtype=dtype) for x, y in pairs]).sum()


def weight(cotangent: Sequence[Any], value: Sequence[Any]) -> float:
    """Of ⟨cotangent, value⟩, what its roundings are parts of: as these walk, the root of the sum of squared terms."""
    terms = [np.abs(wide(c) * wide(v)).ravel() for c, v in zip(cotangent, value, strict=True)]
    largest = max(map(_largest, terms), default=0.0)
    squares = sum(float(np.square(t[np.isfinite(t)] / largest).sum()) for t in terms) if largest else 0.0
    return largest * squares**0.5


class Differences(NamedTuple):
    """A claimed gradient beside differences of the function, a number per direction."""

    claimed: np.ndarray
    central: np.ndarray  # the nearer to the claim of two steps, so that a kink close by disturbs neither
    roundings: np.ndarray  # that `central` may have
    kink: np.ndarray  # the two sides differ, however small the step, and the claim lies between them
    rises: np.ndarray  # 1 where the side along the direction has the larger slope, −1 where the other has


def unit_directions(x: Any, elements: Sequence[int]) -> tuple[list[np.ndarray], list[tuple[int, ...]]]:
    """The direction of each of these elements (both of a complex one), and its index."""
    x = wide(x)
    directions, index = [], []
    for j, unit in itertools.product(elements, (1, 1j) if np.iscomplexobj(x) else (1,)):
        direction = np.zeros(x.size, x.dtype)
        direction[j] = unit
        directions.append(direction.reshape(x.shape))
        index.append(tuple(int(k) for k in np.unravel_index(j, x.shape)))
    return directions, index


def random_directions(x: Any, rng: np.random.Generator) -> list[np.ndarray]:
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
    """⟨gradient, v⟩ beside (⟨ct, f(x + h v)⟩ − ⟨ct, f(x − h v)⟩)/2h in argument `i`, for each direction v."""
    x, g, own = wide(point[i]), wide(gradient), np.asarray(point[i]).dtype
    step = step_of(point[i])
    here = [wide(o) for o in function(point)]

    def along(direction: np.ndarray, h: float, moved: list[np.ndarray]) -> tuple[float, float]:
        """The derivative from the right and from the left; outputs are subtracted before they are summed."""
        sides = []
        for signed in (h, -h):
            there = function((*point[:i], (x + signed * direction).astype(own), *point[i + 1 :]))
            apart = [wide(t) - o for t, o in zip(there, here, strict=True)]
            sides.append(sum(float(np.real(wide(c) * d).sum()) for c, d in zip(cotangent, apart, strict=True)) / signed)
            for m, d in zip(moved, apart, strict=True):
                m |= d != 0
        return sides[0], sides[1]

    claimed, central, roundings, kink, rises = [], [], [], [], []
    for direction in directions:
        claim, moved = float(np.real(g * direction).sum()), [np.zeros(o.shape, bool) for o in here]
        coarse, fine = along(direction, step, moved), along(direction, step / 10, moved)
        # A small output may have come from larger numbers: each is taken to be as rough as the largest.
        roundings.append(
            rounding(weight(cotangent, [m * _largest(o) for m, o in zip(moved, here, strict=True)]), point[i])
        )
        slack = max(1e-4 * max(*(abs(d) for d in fine), 1e-3 * _largest(g), 1e-30), 5 * roundings[-1])
        # The gap between the sides of a smooth function shrinks with the step.
        gap, before = abs(fine[0] - fine[1]), abs(coarse[0] - coarse[1])
        between = min(fine) - slack <= claim <= max(fine) + slack
        claimed.append(claim)
        central.append(min((sum(coarse) / 2, sum(fine) / 2), key=lambda value, claim=claim: abs(value - claim)))
        kink.append(gap > 0.5 * before and gap > 10 * slack and between)
        rises.append(1 if fine[0] >= fine[1] else -1)
    return Differences(np.array(claimed), np.array(central), np.array(roundings), np.array(kink, bool), np.array(rises))


def size_of(x: Any) -> float:
    """Its largest element, 1 where all are 0."""
    return _largest(x) or 1.0


def step_of(x: Any) -> float:
    """The larger of the two steps that differences in `x` take."""
    x = np.asarray(x)
    return size_of(x) * ulp(x.dtype) ** (1 / 3)


def rounding(weight: float, x: Any) -> float:
    """Of the larger of the two steps in `x`, the error that a function of this weight makes in the differences."""
    return 2 * ulp(np.asarray(x).dtype) * weight / step_of(x)


def _largest(array: Any) -> float:
    magnitudes = np.abs(wide(array))
    finite = magnitudes[np.isfinite(magnitudes)]
    return float(finite.max()) if finite.size else 0.0


def _real(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype
