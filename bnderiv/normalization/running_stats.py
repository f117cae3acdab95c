"""The statistics of one batch, and the running statistics for inference (derivation.md, N27)."""

from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import CustomJvp, layer

__all__ = ["BatchStats", "RunningStats", "init_running_stats", "update_running_stats"]


class BatchStats(NamedTuple):
    """Statistics of one batch, shape (C,) each, float32 (float64 for float64 input).

    Attributes:
      mean: μ_c, the mean; 0 for a channel without elements.
      var: σ²_c, the *biased* variance, divided by the count; inf where it exceeds the dtype.
      count: number of elements, summed over `axis_name`; carries no gradient.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x = jnp.array([[1.0, 4.0], [3.0, 8.0]])
      >>> _, batch = bnderiv.batch_norm(x, jnp.ones(2), jnp.zeros(2))
      >>> batch.mean.tolist(), batch.var.tolist(), batch.count.tolist()
      ([2.0, 6.0], [1.0, 4.0], [2.0, 2.0])
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array


class RunningStats(NamedTuple):
    """Exponential averages of batch statistics.

    Attributes:
      mean: shape (C,).
      var: shape (C,); the unbiased or the biased variance, depending on `update_running_stats`.
      count: int32 scalar, the number of batches seen.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> running = bnderiv.RunningStats(jnp.zeros(2), jnp.ones(2), jnp.int32(0))
      >>> bnderiv.batch_norm_inference(jnp.ones((1, 2)), jnp.ones(2), jnp.zeros(2), running.mean, running.var).round(2)
      Array([[1., 1.]], dtype=float32)
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array


# A function that takes or returns them can then be exported and serialized.
jax.export.register_namedtuple_serialization(BatchStats, serialized_name="bnderiv.BatchStats")
jax.export.register_namedtuple_serialization(RunningStats, serialized_name="bnderiv.RunningStats")


def init_running_stats(channels: int, dtype: DTypeLike = jnp.float32) -> RunningStats:
    """Running statistics before the first batch: mean 0, variance 1, count 0.

    Args:
      channels: C, at least 1.
      dtype: floating dtype of mean and variance.

    Returns:
      RunningStats; mean and variance have shape (C,).

    Raises:
      TypeError: `channels` is not an integer, or `dtype` is not floating.
      ValueError: `channels` is below 1.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> running = bnderiv.init_running_stats(2)
      >>> running.mean.tolist(), running.var.tolist(), int(running.count)
      ([0.0, 0.0], [1.0, 1.0], 0)
    """
    channels = _checks.integer("channels", channels, at_least=1)
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(f"dtype must be a floating dtype, got {jnp.dtype(dtype).name}")
    return RunningStats(jnp.zeros(channels, dtype), jnp.ones(channels, dtype), jnp.zeros((), jnp.int32))


def update_running_stats(
    running: RunningStats, batch: BatchStats, *, momentum: float | jax.Array = 0.9, unbiased: bool = True
) -> RunningStats:
    """One step of the exponential average: `momentum * old + (1 - momentum) * batch` (derivation.md, N27).

    There are two conventions for the momentum. Here it weighs the *old* value, as in Flax and Keras; PyTorch's
    `momentum` is one minus ours. The stored variance is the unbiased var·count/max(count − 1, 1), as in PyTorch.
    Flax stores the biased one: `unbiased=False`.

    The step is computed in float32 (float64 where an argument is) and rounded once, to the dtype of `running`. A step
    below half an ulp is lost there: bfloat16 statistics with momentum 0.999 stay where they are unless the batch's
    value is far from them. Keep the statistics in float32.

    Args:
      running: statistics so far, shape (C,).
      batch: statistics of the batch, shape (C,), from `batch_norm`. A channel of count 0 keeps its running values.
      momentum: weight of the old value, in [0, 1]. A Python number is exact; an array is as precise as its dtype.
      unbiased: whether to apply Bessel's correction to the variance.

    Returns:
      RunningStats in the dtype of `running`; its count is one more if any channel has a count above 0.

    Raises:
      TypeError: `running`, `batch` or one of their fields has the wrong type, or `momentum` is not a number.
      ValueError: shapes differ, or `momentum` lies outside [0, 1].

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> running = bnderiv.init_running_stats(2)
      >>> batch = bnderiv.BatchStats(mean=jnp.array([2.0, 4.0]), var=jnp.array([3.0, 8.0]), count=jnp.array([4.0, 5.0]))
      >>> running = bnderiv.update_running_stats(running, batch, momentum=0.75)
      >>> running.mean.tolist(), running.var.tolist(), int(running.count)
      ([0.5, 1.0], [1.75, 3.25], 1)
    """
    running, batch = _checked(running, batch)
    old_leads, step = weights(momentum, running.mean.dtype, running.var.dtype, batch.mean.dtype, batch.var.dtype)
    mean, var = _update(bool(unbiased), *running[:2], *batch, old_leads, step)
    # The count stays outside the layer: under `shard_map`, a layer's results vary over devices if any argument does.
    return RunningStats(mean, var, running.count + (batch.count > 0).any().astype(running.count.dtype))


@layer(static=1, result=lambda unbiased, mean, var, *_: (mean, var))
def _update(unbiased, mean, var, batch_mean, batch_var, count, old_leads, step):
    counted = count > 0
    batch_var, count = batch_var.astype(step.dtype), count.astype(step.dtype)
    batch_var = batch_var * (count / jnp.maximum(count - 1, 1)) if unbiased else batch_var
    mean = jnp.where(counted, average(old_leads, step, mean, batch_mean, mean.dtype), mean)
    var = jnp.where(counted, average(old_leads, step, var, batch_var, var.dtype), var)
    return mean, var


def average(old_leads: jax.Array, step: jax.Array, old: jax.Array, new: jax.Array, dtype: Any) -> jax.Array:
    """momentum · old + (1 − momentum) · new (N27), with the `weights` of a momentum.

    Computed in the dtype of `step` and rounded once, to `dtype`.

    It starts at the value of the larger weight and goes towards the other, so only the smaller weight is ever rounded.
    Two rounded weights would not sum to 1: at 0.99999 in float32 the average of a constant would settle 1.4e-3 off it.
    """
    full = jnp.where(old_leads, old.astype(dtype), new.astype(dtype))
    old, new = old.astype(step.dtype), new.astype(step.dtype)
    start = jnp.where(old_leads, old, new)
    half = new / 2 - old / 2  # new − old can overflow
    finite = jnp.isfinite(half)
    moved = jnp.where(finite, start + step * jnp.where(finite, half, 0), old + new)
    return _moved(step, finite, moved.astype(dtype), full)


@CustomJvp
def _moved(step, finite, moved, full):
    """A value with weight 0 counts nothing, NaN and infinity included.

    The other value, `full`, is not converted to another dtype and back: XLA may flush its subnormals to 0.
    """
    return jnp.where(step != 0, moved, full)


@_moved.defjvp
def _(primals, tangents):
    step, finite, *_ = primals
    # The derivative with respect to the momentum is old − new, even where the momentum is 0 or 1.
    return _moved(*primals), jnp.where((step != 0) | finite, *tangents[2:])


def check_momentum(name: str, momentum: Any) -> None:
    """Refuses what is no number in [0, 1]. The value of a traced momentum is not known, so it is not checked.

    Raises:
      TypeError: it is not a number.
      ValueError: it has a rank, or lies outside [0, 1].
    """
    try:
        inside = np.ndim(momentum) == 0 and (isinstance(momentum, Tracer) or bool(0 <= momentum <= 1))
    except TypeError:
        raise TypeError(f"{name} must be a number in [0, 1], got {momentum!r}") from None
    if not inside:
        raise ValueError(f"{name} must lie in [0, 1], it weighs the old value; got {momentum}")


def weights(momentum: Any, *dtypes: Any) -> tuple[jax.Array, jax.Array]:
    """Whether the old value has the larger weight, and ±2 · the smaller weight; the sign leads to the other value.

    1 − momentum is taken before anything is rounded: in bfloat16 0.999 is 1. It is exact in any dtype where the old
    value leads. The second result has the widest of `dtypes`, at least float32.

    Raises:
      As `check_momentum`.
    """
    check_momentum("momentum", momentum)
    if isinstance(momentum, jax.Array):
        momentum = momentum.astype(accumulator(momentum.dtype))
        old_leads = momentum >= 0.5
        step = jnp.where(old_leads, 2 * (1 - momentum), -2 * momentum)
    else:
        momentum = float(momentum)
        old_leads = momentum >= 0.5
        step = 2 * (1 - momentum) if old_leads else -2 * momentum
    wide = max((accumulator(d) for d in dtypes), key=lambda d: d.itemsize)
    return jnp.asarray(old_leads), jnp.asarray(step, wide)


def _checked(running: Any, batch: Any) -> tuple[RunningStats, BatchStats]:
    """Both with JAX arrays of matching shapes in their fields."""
    if not isinstance(running, RunningStats):
        raise TypeError(f"running must be a RunningStats, got {type(running).__name__}")
    if not isinstance(batch, BatchStats):
        raise TypeError(f"batch must be a BatchStats, as batch_norm returns it, got {type(batch).__name__}")
    mean, var = (_checks.float_array(f"running.{name}", getattr(running, name)) for name in ("mean", "var"))
    batch_mean, batch_var = (_checks.float_array(f"batch.{name}", getattr(batch, name)) for name in ("mean", "var"))
    seen = _number("running.count", running.count, jnp.integer)
    seen = seen if isinstance(running.count, jax.Array) else seen.astype(jnp.int32)
    count = _number("batch.count", batch.count, jnp.integer, jnp.floating)
    _checks.rank_is("running.mean", mean, 1, "(C,)")
    _checks.shape_is("running.count", seen, (), "a scalar, the number of batches")
    vectors = {"running.var": var, "batch.mean": batch_mean, "batch.var": batch_var, "batch.count": count}
    for name, value in vectors.items():
        _checks.shape_is(name, value, mean.shape, "the shape of running.mean")
    return RunningStats(mean, var, seen), BatchStats(batch_mean, batch_var, count)


def _number(name: str, value: Any, *kinds: Any) -> jax.Array:
    value = np.asarray(value) if isinstance(value, (int, float)) else value
    dtype = getattr(value, "dtype", None)
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        allowed = " or ".join(kind.__name__ for kind in kinds)
        got = type(value).__name__ if dtype is None else f"{dtype.name}{list(value.shape)}"
        raise TypeError(f"{name} must be an array of {allowed} dtype, got {got}")
    return jnp.asarray(value)
