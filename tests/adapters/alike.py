"""Comparing what our module computes with what the framework's own does."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Roundings of a few layers and steps. In float64 the two must agree whatever they do; in less, theirs rounds too.
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 6e-2, "float16": 8e-3}


def alike(ours: Any, theirs: Any, tolerance: float | None = None) -> None:
    """Equal trees of equal shapes and dtypes whose values differ by roundings, relative to the largest of each leaf."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    paths = jax.tree_util.tree_leaves_with_path(ours)
    for (path, a), b in zip(paths, jax.tree.leaves(theirs), strict=True):
        where = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), where
        if not jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_equal(a, b, where)
            continue
        wide_a, wide_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        allowed = TOLERANCE[a.dtype.name] if tolerance is None else tolerance
        size = np.nanmax(np.abs(wide_b), initial=0)
        np.testing.assert_allclose(wide_a, wide_b, rtol=0, atol=allowed * max(size, 1e-30), err_msg=where)


# Momenta that are 1, or another number, in the dtype.
NEAR_1 = [
    (jnp.bfloat16, 0.99),
    pytest.param(jnp.bfloat16, 0.999, marks=pytest.mark.slow),
    pytest.param(jnp.float16, 0.9998, marks=pytest.mark.slow),
    (jnp.float32, 0.99999),
]


def averages(seed: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Old and new values of 64 features, the one large for some and the other for others; exact in `dtype`."""
    old, new = np.random.default_rng(seed).standard_normal((2, 64)) * 10.0 ** np.tile([[0, 3], [3, 0]], 32)
    return jnp.asarray(old, dtype), jnp.asarray(new, dtype)


def nearest(average: jax.Array, momentum: float, old: jax.Array, new: jax.Array) -> None:
    """`average` is momentum · old + (1 − momentum) · new, from float32 rounded once to the dtype of `old`."""
    assert average.dtype == old.dtype
    wide_old, wide_new, wide = (np.asarray(a).astype(np.float64) for a in (old, new, average))
    expected = momentum * wide_old + (1 - momentum) * wide_new
    last = np.spacing(np.abs(expected).astype(old.dtype)).astype(np.float64) if old.dtype.itemsize == 2 else 0
    computed = 2**-22 * (momentum * np.abs(wide_old) + (1 - momentum) * np.abs(wide_new))
    assert (np.abs(wide - expected) <= last / 2 + computed).all()


def normal(
    seed: int, shape: Sequence[int], dtype: Any = jnp.float32, mean: float = 1.0, scale: float = 2.0
) -> jax.Array:
    """mean + scale · N(0, 1)."""
    return jnp.asarray(mean + scale * np.random.default_rng(seed).standard_normal(shape), dtype)


def sgd(params: Any, gradient: Any, rate: float = 0.1) -> Any:
    """One step down the gradient."""
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient)
