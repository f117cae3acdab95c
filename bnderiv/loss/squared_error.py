"""Half the squared distance with its gradient in closed form (derivation.md, S1–S2)."""

import jax
import jax.numpy as jnp

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import closed_form
from bnderiv._sharding import automatic, spread_like_rows


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """`½ Σ_k (y_k − a_k)²` over the last axis: one value per example (a mean over the batch is the caller's).

    The gradient is −(y − a) = a − y for the predictions a and y − a for the targets y (derivation.md, S2). Only half
    the difference is saved, which never overflows. Half precision is squared and summed in float32.

    Args:
      predictions: a, shape (..., K), floating dtype.
      targets: y, of the same shape (no broadcasting), floating dtype.

    Returns:
      Array of shape (...) and dtype `jnp.result_type(predictions, targets)`.

    Raises:
      TypeError: an argument has no floating dtype.
      ValueError: scalars, empty arrays, or shapes that differ.
    """
    predictions = _checks.float_array("predictions", predictions)
    targets = _checks.float_array("targets", targets)
    _checks.rank_at_least("predictions", predictions, 1, "(..., K)")
    _checks.nonempty("predictions", predictions)
    _checks.shape_is("targets", targets, predictions.shape, "that of predictions")
    dtype = jnp.result_type(predictions, targets)  # cast out here, so that the difference alone says all in `_bwd`
    predictions, targets = _checks.same_varying(predictions.astype(dtype), targets.astype(dtype))
    return automatic(_squared_error, spread_like_rows, predictions=predictions, targets=targets)


@closed_form
def _squared_error(a, y):
    return _half_square(a, y)[0]


def _half_square(a, y):
    wide = accumulator(a.dtype)
    # a − y can overflow where its gradient fits (6e4 and −6e4 in float16, with a cotangent of 1e-3). Half of it cannot,
    # and takes no more memory. It is as exact, unless a or y is below 2 · the smallest normal.
    half = a.astype(wide) / 2 - y.astype(wide) / 2
    return (2 * jnp.square(half).sum(-1)).astype(a.dtype), half.astype(a.dtype)  # (S1)


def _squared_error_fwd(a, y):
    return _half_square(a, y)


def _squared_error_bwd(half, delta):
    wide = accumulator(half.dtype)
    da = (2 * (delta[..., None].astype(wide) * half.astype(wide))).astype(half.dtype)  # (S2)
    return da, -da


_squared_error.defvjp(_squared_error_fwd, _squared_error_bwd)
