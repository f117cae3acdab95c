"""Statistics as they travel between calls: of one batch, and the running ones for inference (derivation.md, N27)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import DTypeLike

from bnderiv import _checks
from bnderiv._sharding import automatic


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
    channels = _checks.integer("channels", channels, at_least=1)
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
      TypeError: `running` or `batch` is not what its name says, or `momentum` is no number.
      ValueError: shapes differ, or `momentum` lies outside [0, 1].
    """
    if not isinstance(running, RunningStats):
        raise TypeError(f"running must be a RunningStats, got {type(running).__name__}")
    if not isinstance(batch, BatchStats):
        raise TypeError(f"batch must be a BatchStats, as batch_norm returns it, got {type(batch).__name__}")
    vectors = {"running.var": running.var, "batch.mean": batch.mean, "batch.var": batch.var, "batch.count": batch.count}
    for name, value in vectors.items():
        _checks.shape_is(name, value, running.mean.shape, "the shape of running.mean")
    mean, var, seen = automatic(
        partial(_step, unbiased),
        lambda mean, var, seen, **_: (mean, var, seen),
        mean=running.mean,
        var=running.var,
        seen=jnp.asarray(running.count),
        batch_mean=batch.mean,
        batch_var=batch.var,
        count=batch.count,
        momentum=_weight(momentum, running.mean.dtype),
    )
    return RunningStats(mean, var, seen)


def _step(unbiased, mean, var, seen, batch_mean, batch_var, count, momentum):
    counted = count > 0
    batch_var = batch_var * (count / jnp.maximum(count - 1, 1)) if unbiased else batch_var

    def step(old, new):
        return jnp.where(counted, weighed(momentum, old) + weighed(1 - momentum, new.astype(old.dtype)), old)

    return step(mean, batch_mean), step(var, batch_var), seen + counted.any().astype(seen.dtype)


def weighed(weight: Any, value: jax.Array) -> jax.Array:
    """weight · value; 0 where the weight is, whatever the value."""
    return weight * jnp.where(weight > 0, value, 0)


def _weight(momentum: Any, dtype: Any) -> jax.Array:
    try:
        inside = getattr(momentum, "ndim", 0) == 0 and (isinstance(momentum, Tracer) or bool(0 <= momentum <= 1))
    except TypeError:
        raise TypeError(f"momentum must be a number in [0, 1], got {momentum!r}") from None
    if not inside:
        raise ValueError(f"momentum must lie in [0, 1], it weighs the old value; got {momentum}")
    return jnp.asarray(momentum, dtype)
