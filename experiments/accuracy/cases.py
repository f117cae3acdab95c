"""The inputs, from harmless to those of which nothing is left, and the truth about each in long double."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

SHAPES = [(32, 28, 28, 6), (64, 84), (256, 32, 32, 8)]  # the first also serves every case that is not drawn in all
EPS = 1e-5
MEANS = ("0", "1", "1e2", "1e3", "1e4", "1e6")
SCALES = ("1e18", "1e20", "1e30")

Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """One kind of input; `draw` makes x in float64, NaN included, and the mask if there is one."""

    name: str
    group: str
    shape: tuple[int, ...]
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    dtype: str = "float32"
    mask: str = ""  # "", "all False", "some"


def normal(mean, deviation, rng, shape):
    return mean + deviation * rng.standard_normal(shape)


def with_outlier(rng, shape):
    x = rng.standard_normal(shape)
    x[0] += 1e5
    return x


def with_nan(places, rng, shape):
    x = rng.standard_normal(shape)
    x[places] = np.nan
    return x


def all_cases(quick: bool = False) -> list[Case]:
    shapes = SHAPES[1:2] if quick else SHAPES
    first, many = shapes[0], 6 if quick else 7
    cases = [Case(f"mean {mean}", "means", s, partial(normal, float(mean), 1.0)) for s in shapes for mean in MEANS]
    cases += [Case("outlier row 1e5", "spread", s, with_outlier) for s in shapes]
    cases += [Case("mean 1, deviation 1e-3", "spread", s, partial(normal, 1.0, 1e-3)) for s in shapes]
    cases += [
        Case(f"scale {scale}", "scales", s, partial(normal, 0.0, float(scale))) for s in shapes for scale in SCALES
    ]
    cases += [Case(f"{d}, 1e3 ± 100", "dtypes", first, partial(normal, 1e3, 100.0), d) for d in ("float16", "bfloat16")]
    return [
        *cases,
        Case("float64, mean 1e4", "dtypes", first, partial(normal, 1e4, 1.0), "float64"),
        Case(f"1e{many} rows, mean 1", "many", (10**many, 1), partial(normal, 1.0, 1.0)),
        Case(f"1e{many} pixels, mean 1", "many", (10 ** (many - 6), 1000, 1000, 1), partial(normal, 1.0, 1.0)),
        Case("constant 1234.567", "degenerate", first, lambda _, shape: np.full(shape, 1234.567)),
        Case("one element per channel", "degenerate", (1, 84), partial(normal, 0.0, 1.0)),
        Case("mask all False", "degenerate", first, partial(normal, 0.0, 1.0), mask="all False"),
        Case("NaN in one channel", "degenerate", first, partial(with_nan, (3, ..., 2))),
        Case("NaN under a mask", "degenerate", first, partial(with_nan, 3), mask="some"),
    ]


def inputs(case: Case, seed: int) -> Arrays:
    """x, γ, β, the mask and the cotangent δ, all but the mask rounded to the dtype of the case."""
    rng = np.random.default_rng(seed)
    dtype = jnp.dtype(case.dtype)
    channels = case.shape[-1]
    x = case.draw(rng, case.shape)
    gamma, beta = rng.uniform(0.5, 1.5, channels), rng.standard_normal(channels)
    dy = rng.standard_normal(case.shape)
    arrays = {"x": x, "gamma": gamma, "beta": beta, "dy": dy}
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}
    if case.mask:
        # One flag for all channels of a place, as for padded examples. x[3] is NaN there, and no loss looks at it.
        arrays["mask"] = rng.random((*case.shape[:-1], 1)) < (0.8 if case.mask == "some" else 0.0)
        arrays["mask"][3] = False
        if case.mask == "some":
            arrays["dy"] = np.where(arrays["mask"], arrays["dy"], 0).astype(dtype)
    return arrays


def truth(arrays: Arrays) -> Arrays:
    """y, dx, dγ, dβ in long double (x̂ in (N3), dx in (N24)), whose range also holds the squares of 1e30.

    A False element counts for nothing in the statistics; one that is not finite, with a zero cotangent, for nothing.
    """
    x, gamma, beta, dy = (_by_channel(arrays[name]) for name in ("x", "gamma", "beta", "dy"))
    eps = np.longdouble(arrays["x"].dtype.type(EPS) if arrays["x"].dtype.itemsize == 8 else np.float32(EPS))
    included = np.ones(arrays["x"].shape, bool) if "mask" not in arrays else arrays["mask"]
    included = _by_channel(np.broadcast_to(included, arrays["x"].shape), bool)
    n = np.maximum(included.sum(1, keepdims=True), 1)
    with np.errstate(invalid="ignore"):  # NaN is among the inputs
        mean = np.where(included, x, 0).sum(1, keepdims=True) / n
        centred = x - mean
        var = np.where(included, centred**2, 0).sum(1, keepdims=True) / n
        r = 1 / np.sqrt(var + eps)
        x_hat = centred * r
        dgamma = np.where(included | (dy != 0), dy * x_hat, 0).sum(1, keepdims=True)
        dbeta = dy.sum(1, keepdims=True)
        dx = gamma * r * (dy - np.where(included, (dbeta + x_hat * dgamma) / n, 0))
        y = gamma * x_hat + beta
    shape = arrays["x"].shape
    full = {"y": y.T.reshape(shape), "dx": dx.T.reshape(shape)}
    return full | {"dgamma": dgamma[:, 0], "dbeta": dbeta[:, 0]}


def _by_channel(a: np.ndarray, dtype: Any = np.longdouble) -> np.ndarray:
    """(C, everything else), each channel contiguous: NumPy then sums it pairwise."""
    return np.ascontiguousarray(a.reshape(-1, a.shape[-1]).T).astype(dtype)
