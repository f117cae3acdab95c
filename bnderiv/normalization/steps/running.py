"""The running statistics of batch norm after one batch (derivation.md, C.6, N27)."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from bnderiv import _checks
from bnderiv.normalization.running_stats import BatchStats, RunningStats
from bnderiv.steps.table import INPUT, arrays, derivation, gather


@derivation
class UpdateRunningStats(NamedTuple):
    """The steps of `update_running_stats` (N27)."""

    mean: Annotated[jax.Array, "old μ", "(C,)", INPUT, "running mean before this batch"]
    var: Annotated[jax.Array, "old σ²", "(C,)", INPUT, "running variance before this batch"]
    batches: Annotated[jax.Array, "batches", "()", INPUT, "batches before this one"]
    mu: Annotated[jax.Array, "μ_c", "(C,)", INPUT, "mean of the batch"]
    batch_var: Annotated[jax.Array, "σ²_c", "(C,)", INPUT, "biased variance of the batch"]
    count: Annotated[jax.Array, "n_c", "(C,)", INPUT, "elements of the batch that count"]
    momentum: Annotated[jax.Array, "momentum", "()", INPUT, "weight of the old values"]
    unbiased: Annotated[bool, "whether the unbiased variance is stored"]
    correction: Annotated[jax.Array | None, "n/max(n−1, 1)", "(C,)", "(N27)", "Bessel's correction"]
    stored_var: Annotated[jax.Array, "σ² n/max(n−1, 1)", "(C,)", "(N27)", "variance that enters the average"]
    new_mean: Annotated[jax.Array, "new μ", "(C,)", "(N27)", "running mean; as before where nothing counts"]
    new_var: Annotated[jax.Array, "new σ²", "(C,)", "(N27)", "running variance; as before where nothing counts"]
    new_batches: Annotated[jax.Array, "batches + 1", "()", "(N27)", "batches; one more if any channel counts"]


def update_running_stats(
    running: RunningStats, batch: BatchStats, *, momentum: Any = 0.9, unbiased: bool = True
) -> UpdateRunningStats:
    """The average of old and new statistics (N27), line by line. The layer rounds less.

    Args:
      running: the statistics before this batch, shape (C,).
      batch: the statistics of this batch, shape (C,), from `bnderiv.batch_norm`.
      momentum: weight of the old values, in [0, 1].
      unbiased: whether Bessel's correction is applied to the variance.

    Returns:
      `UpdateRunningStats`, fields in the order of the derivation.

    Raises:
      TypeError: an argument of the wrong type.
      ValueError: shapes that differ.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> running = bnderiv.init_running_stats(1)
      >>> batch = bnderiv.BatchStats(mean=jnp.array([2.0]), var=jnp.array([3.0]), count=jnp.array([4.0]))
      >>> s = bnderiv.steps.update_running_stats(running, batch, momentum=0.75)
      >>> s.stored_var.tolist(), s.new_mean.tolist(), s.new_var.tolist()
      ([4.0], [0.5], [1.75])
    """
    if not isinstance(running, RunningStats):
        raise TypeError(f"running must be a RunningStats, got {type(running).__name__}")
    if not isinstance(batch, BatchStats):
        raise TypeError(f"batch must be a BatchStats, as batch_norm returns it, got {type(batch).__name__}")
    count = jnp.asarray(batch.count).astype(jnp.result_type(batch.mean))
    mean, var, mu, batch_var, count = arrays(
        **{"running.mean": running.mean, "running.var": running.var, "batch.mean": batch.mean, "batch.var": batch.var},
        count=count,
    )
    for name, value in (("running.var", var), ("batch.mean", mu), ("batch.var", batch_var), ("batch.count", count)):
        _checks.shape_is(name, value, mean.shape, "that of running.mean")
    batches, momentum = jnp.asarray(running.count), jnp.asarray(momentum, mean.dtype)
    _checks.shape_is("momentum", momentum, (), "one number")
    _checks.boolean("unbiased", unbiased)

    correction = count / jnp.maximum(count - 1, 1) if unbiased else None
    stored_var = batch_var if correction is None else batch_var * correction
    new_mean = jnp.where(count > 0, momentum * mean + (1 - momentum) * mu, mean)  # (N27)
    new_var = jnp.where(count > 0, momentum * var + (1 - momentum) * stored_var, var)  # (N27)
    new_batches = batches + (count > 0).any().astype(batches.dtype)
    return gather(UpdateRunningStats, locals())
