"""The Jacobians of batch norm, index by index (derivation.md, part B)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv.steps.table import arrays


def centering_jacobian(n: int) -> jax.Array:
    """∂(h_kl − μ_l)/∂h_il = δ_ik − 1/N, shape (N, N) by [k, i] (N15): the same for every column l.

    Args:
      n: N, the rows of the batch, at least 1.

    Returns:
      Shape (N, N).

    Raises:
      TypeError: no integer.
      ValueError: below 1.

    Example:
      >>> import bnderiv
      >>> bnderiv.steps.centering_jacobian(2).tolist()
      [[0.5, -0.5], [-0.5, 0.5]]
    """
    n = _checks.integer("n", n, at_least=1)
    return jnp.eye(n) - 1 / n  # (N15); the 1/n is (N14)


def variance_jacobian(h: ArrayLike) -> jax.Array:
    """∂σ²_l/∂h_il = 2/N (h_il − μ_l), shape (N, H) by [i, l] (N16). It is 0 for the other columns, j ≠ l.

    Args:
      h: shape (N, H), floating dtype.

    Returns:
      Shape (N, H).

    Raises:
      TypeError: no floating dtype.
      ValueError: another rank, or an empty array.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> bnderiv.steps.variance_jacobian(jnp.array([[1.0], [3.0]])).tolist()
      [[-1.0], [1.0]]
    """
    h = _matrix(h)
    return 2 / h.shape[0] * (h - h.mean(0, keepdims=True))  # (N16)


def normalization_jacobian(h: ArrayLike, eps: ArrayLike) -> jax.Array:
    """∂ĥ_kl/∂h_il for every column l, shape (H, N, N) by [l, k, i] (N17): one symmetric block for each column.

    The whole Jacobian, (N, H, N, H) by [k, l, i, j], has these blocks where j = l and 0 elsewhere.

    Args:
      h: shape (N, H), floating dtype.
      eps: ε, added to the variance.

    Returns:
      Shape (H, N, N).

    Raises:
      TypeError: no floating dtype.
      ValueError: another rank, or an empty array.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> bnderiv.steps.normalization_jacobian(jnp.array([[1.0], [3.0]]), 3.0).tolist()
      [[[0.1875, -0.1875], [-0.1875, 0.1875]]]
    """
    h = _matrix(h)
    c = (h - h.mean(0, keepdims=True)).T  # h_kl − μ_l, (H, N) by [l, k]
    inv_std = 1 / jnp.sqrt((c**2).mean(1) + eps)[:, None, None]
    centering = centering_jacobian(h.shape[0]).astype(h.dtype)[None]
    return centering * inv_std - c[:, :, None] * c[:, None, :] * inv_std**3 / h.shape[0]  # (N17)


def _matrix(h: Any) -> jax.Array:
    (h,) = arrays(h=h)
    _checks.rank_is("h", h, 2, "(N, H)")
    return h
