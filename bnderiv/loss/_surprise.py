"""−log softmax under a weight: nothing where the weight is 0, even of a class that is ruled out (S6, S8, S13)."""

import jax.numpy as jnp
from jax import lax

from bnderiv.loss._options import counted


def surprise(t, half, log_sum):
    """Σ t · (−log softmax). The row's log Σ comes after the sum: XLA:CPU would materialize it for each class."""
    return t.sum(-1) * log_sum[..., 0] + times_surprise(t, half, 0).sum(-1)


def gradient_of_weights(delta, half, log_sum, smoothed, class_weights, where):
    """∂J/∂w_k, the sum over the examples (S13)."""
    if class_weights is None:
        return None
    examples = tuple(range(half.ndim - 1))
    return counted(where, times_surprise(delta, half, log_sum, smoothed)).sum(examples).astype(class_weights.dtype)


def times_surprise(weight, half, log_sum, slope=None):
    """weight · slope · (−log softmax), which is 0 where either factor is 0 and the logarithm infinite.

    The weight may be a cotangent, in which a rule must be linear, so it is not compared with 0. The infinity is made of
    two finite factors, and 0 · big · big = 0. The barrier keeps XLA from folding big · big to inf. The slope is
    compared with 0: in the transpose for forward mode it is multiplied after the infinity.
    """
    ruled_out = half == -jnp.inf
    big = lax.optimization_barrier(jnp.finfo(half.dtype).max)
    infinite = weight
    if slope is not None:
        weight, infinite = weight * slope, jnp.where(slope != 0, weight * slope, 0)
    finite = 2 * (weight * (log_sum / 2 - jnp.where(ruled_out, 0, half)))
    return jnp.where(ruled_out, finite + infinite * big * big, finite)
