"""Half the squared distance with its gradient in closed form (derivation.md, S1–S2)."""

import jax
import jax.numpy as jnp

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._sharding import like_rows


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """`½ Σ_k (y_k − a_k)²` over the last axis: one value per example.

    The gradient is a − y for the predictions a and y − a for the targets y (derivation.md, S2). Only half the
    difference is saved, which never overflows. Half precision is squared and accumulated in float32.

    Args:
      predictions: a, shape (..., K), floating dtype.
      targets: y, of the same shape (no broadcasting), floating dtype.

    Returns:
      Array of shape (...) and dtype `jnp.result_type(predictions, targets)`.

    Raises:
      TypeError: an argument does not have a floating dtype, or JAX does not promote their dtypes to one (float8).
      ValueError: scalars, empty arrays, or shapes that differ.

    >>> bnderiv.squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]]))
    Array([2.], dtype=float32)
    """
    predictions = _checks.float_array("predictions", predictions)
    targets = _checks.float_array("targets", targets)
    _checks.rank_at_least("predictions", predictions, 1, "(..., K)")
    _checks.nonempty("predictions", predictions)
    _checks.shape_is("targets", targets, predictions.shape, "that of predictions")
    # Cast here, so that `_bwd` needs no dtype but the difference's.
    dtype = _checks.promoted(predictions=predictions, targets=targets)
    return _squared_error(predictions.astype(dtype), targets.astype(dtype))


@closed_form(result=like_rows)
def _squared_error(predictions, targets):
    return _squared_error_fwd(predictions, targets)[0]


def _squared_error_fwd(predictions, targets):
    wide = accumulator(predictions.dtype)
    # a − y can overflow where its gradient fits (6e4 and −6e4 in float16, with a cotangent of 1e-3); half of it cannot.
    half = predictions.astype(wide) / 2 - targets.astype(wide) / 2
    loss = 2 * jnp.square(half).sum(-1)  # (S1)
    return loss.astype(predictions.dtype), half.astype(predictions.dtype)


def _squared_error_bwd(half, delta):
    wide = accumulator(half.dtype)
    da = (2 * (delta[..., None].astype(wide) * half.astype(wide))).astype(half.dtype)  # (S2)
    return da, -da


_squared_error.defvjp(_squared_error_fwd, _squared_error_bwd)
