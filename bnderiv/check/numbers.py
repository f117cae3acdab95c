"""Tolerances, distances between arrays, and arrays in float64."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# Tolerances against the truth, relative to the largest element. They are wide enough for any order of summation, and
# narrow enough to show a wrong formula. (In float64, ChainRulesTestUtils also has 1e-9; PyTorch's gradcheck has 1e-3.)
FORMULA = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
# Between two runs of one program, such as eager and under jit.
SAME = {"float64": 1e-11, "float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}
# Of differences, beyond the uncertainty that they have themselves.
DIFFERENCES = {"float64": 1e-7, "float32": 5e-2, "float16": 2e-1, "bfloat16": 5e-1}
ULPS = 32.0
# Powers of 2 for cotangents that are far from 1 and neither overflow nor underflow in a usual backward.
_FAR = {"float64": 60, "float32": 20, "bfloat16": 20, "float16": 4}


def is_inexact(a: Any) -> bool:
    return isinstance(a, (float, complex)) or (hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact))


def lookup(table: dict[str, float], dtypes: Sequence[Any]) -> float:
    """The tolerance of the coarsest of the dtypes."""
    return max((table.get(_real(d).name, table["bfloat16"]) for d in dtypes), default=table["float64"])


def far(dtypes: Sequence[Any]) -> int:
    return min(_FAR[_real(d).name] for d in dtypes)


def ulp(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def distance(actual: Any, expected: Any) -> tuple[float, tuple[int, ...] | None]:
    """The largest difference, and its index. NaN equals only NaN, and infinity only itself."""
    if np.shape(actual) != np.shape(expected):
        raise ValueError(f"shape {np.shape(actual)}, expected {np.shape(expected)}")
    apart = elementwise(actual, expected)
    if apart.size == 0 or not apart.any():
        return 0.0, None
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(apart)), apart.shape))
    return float(apart[index]), index


def within(array: Any, dtype: Any) -> np.ndarray:
    """The array, with infinity where it exceeds the range of `dtype`."""
    array = np.asarray(array)
    if np.iscomplexobj(array) or not jnp.issubdtype(dtype, jnp.inexact):
        return array
    limit = np.asarray(jnp.finfo(dtype).max, np.float64)
    if not (np.abs(array) > limit).any():
        return array
    return np.where(np.abs(array) > limit, np.copysign(np.inf, array), array)


def elementwise(actual: Any, expected: Any) -> np.ndarray:
    """|actual − expected|, infinity where one of them alone is NaN or infinite."""
    a, e = wide(actual), wide(expected)
    with np.errstate(all="ignore"):
        apart = np.where((a == e) | (np.isnan(a) & np.isnan(e)), 0.0, np.abs(a - e))
    return np.where(np.isnan(apart), np.inf, apart)


def wide(array: Any) -> np.ndarray:
    """As a NumPy array in float64 or complex128."""
    array = np.asarray(array)
    return array.astype(np.complex128 if np.issubdtype(array.dtype, np.complexfloating) else np.float64)


def widen(tree: Any) -> Any:
    """The tree with its floating arrays in float64 and its complex ones in complex128."""

    def convert(a: Any) -> Any:
        if not is_inexact(a):
            return a
        dtype = jnp.complex128 if jnp.issubdtype(a.dtype, jnp.complexfloating) else jnp.float64
        if isinstance(a, Tracer):
            return a.astype(dtype)
        return jax.device_put(np.asarray(a).astype(dtype))  # converted by NumPy, which compiles nothing

    return jax.tree.map(convert, tree)


def dot(a: Any, b: Any) -> jax.Array:
    """Re Σ aᵢ bᵢ over all leaves, in float32 or float64: the pairing of tangents with cotangents in JAX."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    dtype = jnp.float64 if any(_real(y.dtype).itemsize == 8 for _, y in pairs) else jnp.float32
    return jnp.stack([jnp.real(x.astype(y.dtype) * y).sum(dtype=dtype) for x, y in pairs]).sum()


def double_precision(wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """The context of evaluation in float64, or none."""
    return jax.enable_x64(True) if wanted else contextlib.nullcontext()


def largest(array: Any) -> float:
    """The largest finite element by magnitude, 0 if there is none."""
    with np.errstate(all="ignore"):
        absolute = np.abs(wide(array))
    finite = absolute[np.isfinite(absolute)]
    return float(finite.max()) if finite.size else 0.0


def magnitude(array: Any) -> float:
    """What errors in an array are relative to: its largest finite element, or 1 if all are zero."""
    return largest(array) or 1.0


def _real(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype
