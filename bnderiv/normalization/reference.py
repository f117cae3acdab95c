"""What the normalization layers must equal: the plain forward, differentiated by JAX."""

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv._numbers import accumulator
from bnderiv.normalization.running_stats import BatchStats, RunningStats

__all__ = [
    "batch_norm",
    "batch_norm_relu",
    "batch_norm_inference",
    "batch_renorm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "BatchStats",
    "RunningStats",
    "init_running_stats",
    "update_running_stats",
]


def batch_norm(
    x, gamma, beta, *, channel_axis=-1, eps=1e-5, where=None, axis_name=None, axis_index_groups=None, assumed_mean=None
):
    """Two-pass batch norm, as one would write it; see `bnderiv.batch_norm`. An assumed mean makes no difference."""
    wide = x.astype(accumulator(x.dtype))
    channels_last = jnp.moveaxis(wide, channel_axis, -1)
    axes = tuple(range(x.ndim - 1))
    if where is None:
        included = jnp.ones(channels_last.shape, wide.dtype)
    else:
        included = jnp.moveaxis(jnp.broadcast_to(where, x.shape), channel_axis, -1).astype(wide.dtype)
    counted = jnp.where(included > 0, channels_last, 0)

    def total(values):
        local = jnp.sum(values, axes)
        return local if axis_name is None else lax.psum(local, axis_name, axis_index_groups=axis_index_groups)

    count = total(included)
    mean = total(counted) / jnp.maximum(count, 1)
    var = total(jnp.where(included > 0, jnp.square(counted - _row(mean, x)), 0)) / jnp.maximum(count, 1)
    y = _scale_and_shift(channels_last, gamma, beta, mean, var, eps)
    return jnp.moveaxis(y, -1, channel_axis).astype(x.dtype), BatchStats(mean, var, lax.stop_gradient(count))


def batch_norm_relu(
    x, gamma, beta, residual=None, *, channel_axis=-1, eps=1e-5, where=None, axis_name=None, axis_index_groups=None,
    assumed_mean=None,
):  # fmt: skip
    """Batch norm, plus the residual, then relu; see `bnderiv.batch_norm_relu`."""
    y, stats = batch_norm(
        x.astype(accumulator(x.dtype)), gamma, beta, channel_axis=channel_axis, eps=eps, where=where,
        axis_name=axis_name, axis_index_groups=axis_index_groups,
    )  # fmt: skip
    if residual is not None:
        y = y + residual.astype(y.dtype)
    return jnp.where(y > 0, y, jnp.where(jnp.isnan(y), y, 0)).astype(x.dtype), stats


def batch_norm_inference(x, gamma, beta, mean, var, *, channel_axis=-1, eps=1e-5):
    """The affine map by given statistics; see `bnderiv.batch_norm_inference`."""
    dtype = accumulator(x.dtype)
    channels_last = jnp.moveaxis(x.astype(dtype), channel_axis, -1)
    y = _scale_and_shift(channels_last, gamma, beta, mean.astype(dtype), var.astype(dtype), eps)
    return jnp.moveaxis(y, -1, channel_axis).astype(x.dtype)


def batch_renorm(
    x, gamma, beta, mean, var, *, r_max=3.0, d_max=5.0, channel_axis=-1, eps=1e-5, where=None, axis_name=None,
    axis_index_groups=None,
):  # fmt: skip
    """Batch norm's x̂, corrected by r and d, which have no derivative; see `bnderiv.batch_renorm`."""
    dtype = accumulator(x.dtype)
    ones = jnp.ones(gamma.shape, dtype)
    x_hat, stats = batch_norm(
        x.astype(dtype), ones, 0 * ones, channel_axis=channel_axis, eps=eps, where=where,
        axis_name=axis_name, axis_index_groups=axis_index_groups,
    )  # fmt: skip
    r_max, d_max = (jnp.asarray(a, dtype) for a in (r_max, d_max))
    deviation = jnp.sqrt(var.astype(dtype) + eps)
    r = jnp.clip(jnp.sqrt(stats.var + eps) / deviation, 1 / r_max, r_max)
    d = jnp.clip((stats.mean - mean.astype(dtype)) / deviation, -d_max, d_max)
    r, d, gamma, beta = (_row(a, x) for a in (*lax.stop_gradient((r, d)), gamma.astype(dtype), beta.astype(dtype)))
    y = gamma * (jnp.moveaxis(x_hat, channel_axis, -1) * r + d) + beta
    return jnp.moveaxis(y, -1, channel_axis).astype(x.dtype), stats


def layer_norm(x, gamma, beta, *, axis=-1, eps=1e-5, where=None):
    """Two-pass layer norm, as one would write it; see `bnderiv.layer_norm`."""
    axes = tuple(sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)))
    y = _standardized(x, axes, eps, where)
    return _affine(y, axes, gamma, beta).astype(x.dtype)


def group_norm(x, gamma, beta, groups, *, channel_axis=-1, eps=1e-5, where=None):
    """Two-pass group norm, of x with an axis for the groups; see `bnderiv.group_norm`."""
    axis = channel_axis % x.ndim
    grouped = (*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
    mask = None if where is None else jnp.broadcast_to(where, x.shape).reshape(grouped)
    axes = tuple(a for a in range(1, x.ndim + 1) if a != axis)
    y = _standardized(x.reshape(grouped), axes, eps, mask).reshape(x.shape)
    return _affine(y, (axis,), gamma, beta).astype(x.dtype)


def instance_norm(x, gamma, beta, *, channel_axis=-1, eps=1e-5, where=None):
    """Two-pass instance norm; see `bnderiv.instance_norm`."""
    axis = channel_axis % x.ndim
    y = _standardized(x, tuple(a for a in range(1, x.ndim) if a != axis), eps, where)
    return _affine(y, (axis,), gamma, beta).astype(x.dtype)


def rms_norm(x, gamma, *, axis=-1, eps=1e-6):
    """x over its root mean square; see `bnderiv.rms_norm`."""
    wide = x.astype(accumulator(x.dtype))
    axes = tuple(sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)))
    y = wide / jnp.sqrt(jnp.mean(wide**2, axes, keepdims=True) + eps)
    return _affine(y, axes, gamma, None).astype(x.dtype)


def _standardized(x, axes, eps, where):
    wide = x.astype(accumulator(x.dtype))
    included = jnp.broadcast_to(True if where is None else where, x.shape)
    count = jnp.maximum(included.sum(axes, keepdims=True), 1).astype(wide.dtype)
    mean = jnp.where(included, wide, 0).sum(axes, keepdims=True) / count
    var = jnp.where(included, (wide - mean) ** 2, 0).sum(axes, keepdims=True) / count
    return (wide - mean) / jnp.sqrt(var + eps)


def _affine(y, axes, gamma, beta):
    others = tuple(a for a in range(y.ndim) if a not in axes)
    gamma, beta = (None if a is None else jnp.expand_dims(a.astype(y.dtype), others) for a in (gamma, beta))
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


def init_running_stats(channels, dtype=jnp.float32):
    """Mean 0, variance 1, no batch seen; see `bnderiv.init_running_stats`."""
    return RunningStats(jnp.zeros(channels, dtype), jnp.ones(channels, dtype), jnp.int32(0))


def update_running_stats(running, batch, *, momentum=0.9, unbiased=True):
    """Exponential average, the momentum on the old value; see `bnderiv.update_running_stats`."""
    wide = max((accumulator(a.dtype) for a in (*running[:2], *batch[:2])), key=lambda dtype: dtype.itemsize)
    old_mean, old_var, new_mean, new_var, count = (a.astype(wide) for a in (*running[:2], *batch))
    if isinstance(momentum, jax.Array):
        momentum = momentum.astype(accumulator(momentum.dtype))
    weight = jnp.asarray(1 - momentum, wide)
    new_var = new_var * count / jnp.maximum(count - 1, 1) if unbiased else new_var
    mean = old_mean + weight * (new_mean - old_mean)
    var = old_var + weight * (new_var - old_var)
    seen = count > 0
    return RunningStats(
        jnp.where(seen, mean, old_mean).astype(running.mean.dtype),
        jnp.where(seen, var, old_var).astype(running.var.dtype),
        running.count + jnp.any(seen).astype(jnp.int32),
    )


def _scale_and_shift(channels_last, gamma, beta, mean, var, eps):
    x_hat = (channels_last - _row(mean, channels_last)) / jnp.sqrt(_row(var, channels_last) + eps)
    gamma, beta = (_row(a.astype(x_hat.dtype), x_hat) for a in (gamma, beta))
    return gamma * x_hat + beta


def _row(vector, like):
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)
