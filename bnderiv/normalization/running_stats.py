"""Statistics as they travel between calls: of one batch, and the running ones for inference (derivation.md, N27)."""

from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import DTypeLike

from bnderiv import _arguments


class BatchStats(NamedTuple):
    """Statistics of one batch, shape (C,) each, float32 (float64 for float64 input).

    Attributes:
      mean: μ_c, the mean; 0 for a channel without elements.
      var: σ²_c, the *biased* variance, divided by the count; inf where it exceeds the dtype.
      count: elements that entered, summed over `axis_name`; carries no gradient.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array


class RunningStats(NamedTuple):
    """Exponential averages of batch statistics.

    Attributes:
      mean: shape (C,).
      var: shape (C,); of unbiased or biased variances, as `update_running_stats` was told.
      count: int32 scalar, the number of batches seen.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array


# So that a function that takes or returns them can be exported and serialized.
jax.export.register_namedtuple_serialization(BatchStats, serialized_name="bnderiv.BatchStats")
jax.export.register_namedtuple_serialization(RunningStats, serialized_name="bnderiv.RunningStats")


def init_running_stats(channels: int, dtype: DTypeLike = jnp.float32) -> RunningStats:
    """Running statistics before the first batch: mean 0, variance 1, count 0.

    Args:
      channels: C, at least 1.
      dtype: of mean and variance, floating.

    Raises:
      TypeError: `channels` is no integer, or `dtype` is not floating.
      ValueError: `channels` is below 1.
    """
    channels = _arguments.integer("channels", channels, at_least=1)
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(f"dtype must be a floating dtype, got {jnp.dtype(dtype).name}")
    return RunningStats(jnp.zeros(channels, dtype), jnp.ones(channels, dtype), jnp.zeros((), jnp.int32))


def update_running_stats(
    running: RunningStats, batch: BatchStats, *, momentum: float | jax.Array = 0.9, unbiased: bool = True
) -> RunningStats:
    """One step of the exponential average: `momentum * old + (1 - momentum) * batch` (derivation.md, N27).

    Two conventions: the momentum weighs the *old* value, as in Flax and Keras (PyTorch's `momentum` is one minus
    ours); the variance that is stored is the unbiased var·count/max(count − 1, 1), as in PyTorch, though the biased one
    normalizes (Flax stores the biased one: `unbiased=False`).

    Args:
      running: statistics so far, shape (C,).
      batch: statistics of the batch, shape (C,), from `batch_norm`. A channel of count 0 keeps its running values.
      momentum: weight of the old value, in [0, 1].
      unbiased: whether to apply Bessel's correction to the variance.

    Returns:
      RunningStats in the dtype of `running`; its count is one more if any channel counted anything.

    Raises:
      TypeError: `running` or `batch` is not what its name says.
      ValueError: shapes differ, or `momentum` lies outside [0, 1].
    """
    if not isinstance(running, RunningStats):
        raise TypeError(f"running must be a RunningStats, got {type(running).__name__}")
    if not isinstance(batch, BatchStats):
        raise TypeError(f"batch must be a BatchStats, as batch_norm returns it, got {type(batch).__name__}")
    for name, value in (("batch.mean", batch.mean), ("batch.var", batch.var), ("batch.count", batch.count)):
        _arguments.shape_is(name, value, running.mean.shape, "the shape of running.mean")
    if not isinstance(momentum, Tracer) and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in [0, 1], it weighs the old value; got {momentum}")

    dtype = running.mean.dtype
    momentum = jnp.asarray(momentum, dtype)
    counted = batch.count > 0
    var = batch.var * (batch.count / jnp.maximum(batch.count - 1, 1)) if unbiased else batch.var

    def step(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(counted, momentum * old + (1 - momentum) * new.astype(dtype), old)

    seen = running.count + counted.any().astype(running.count.dtype)
    return RunningStats(step(running.mean, batch.mean), step(running.var, var), seen)
