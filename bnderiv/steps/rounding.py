"""How far apart two arrays are, and how large the rounding error of a step may be."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a − b|; 0 where both are NaN or the same infinity, inf where only one is."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(a - b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))


def largest(a: np.ndarray) -> float:
    finite = np.abs(a[np.isfinite(a)])
    return float(finite.max(initial=0.0))


def wide(value: Any) -> np.ndarray:
    return np.asarray(value).astype(np.float64)


def tolerance_for(mine: Any, right: Any, amplified: float) -> float:
    """Of a computed step, relative to its largest element."""
    eps = max(_eps(mine), _eps(right))
    return max(eps**0.6, 32 * eps * amplified)


def tolerance_for_input(mine: Any, right: Any) -> float:
    """Of an argument, which is at most converted to another dtype."""
    return 8 * max(_eps(mine), _eps(right))


def amplification(numbers: dict[str, np.ndarray]) -> float:
    """How much x − μ amplifies a relative error of x: 1 + |μ|/σ, the largest of any channel."""
    pairs = [
        (mu, numbers[f"inv_std{name[2:]}"])
        for name, mu in numbers.items()
        if name.startswith("mu") and f"inv_std{name[2:]}" in numbers
    ]
    return 1 + max((largest(mu * inv_std) for mu, inv_std in pairs), default=0.0)


def floors(numbers: dict[str, np.ndarray], right: dict[str, Any], amplified: float) -> dict[str, float]:
    """The rounding error of each step. A gradient that cancels to 0 is as rough as the gradients around it."""
    backward = max((largest(a) for name, a in numbers.items() if _is_backward(name)), default=0.0)
    sizes = {name: backward if _is_backward(name) else largest(a) for name, a in numbers.items()}
    return {name: 8 * _eps(right[name]) * (1 if _is_steady(name) else amplified) * size for name, size in sizes.items()}


def _eps(value: Any) -> float:
    dtype = getattr(value, "dtype", np.dtype("float64"))
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0


def _is_steady(name: str) -> bool:
    """Whether the step does not depend on x − μ; the variance does, but on its square, where the error is small."""
    return name.rstrip("0123456789") in ("mu", "var", "inv_std", "d_beta", "d_x_hat", "d_mu")


def _is_backward(name: str) -> bool:
    return name.startswith(("d_", "dx", "delta"))
