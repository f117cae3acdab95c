"""What the adapters' BatchNorm and BatchRenorm share: the library's functions over any feature axes and dtypes.

A framework's layer may have several feature axes or none, no scale or no bias, and an output dtype unlike its input's.
The library's functions have one channel axis, and y has the dtype of x. Names, shapes and dtypes are up to each
adapter; this file arranges the arrays.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import both_modes, layer
from bnderiv.activation.relu import relu
from bnderiv.normalization.batch_norm import batch_norm, batch_norm_relu
from bnderiv.normalization.batch_renorm import batch_renorm
from bnderiv.normalization.inference import batch_norm_inference
from bnderiv.normalization.running_stats import average, weights


class Batch(NamedTuple):
    """Statistics of one batch in the shape of the features; `counted` is True where any element counted."""

    mean: jax.Array
    var: jax.Array
    counted: jax.Array


class Renorm(NamedTuple):
    """What `batch_renorm` corrects by: the running statistics, in the shape of the features, and the limits."""

    mean: jax.Array
    var: jax.Array
    r_max: Any
    d_max: Any

    @staticmethod
    def after(warmup_steps: int, steps: Any, mean: jax.Array, var: jax.Array, r_max: Any, d_max: Any) -> "Renorm":
        """With limits that open after a number of steps of plain batch norm."""
        warm = jnp.asarray(steps >= warmup_steps)
        r_max, d_max = (jnp.asarray(a, accumulator(var.dtype)) for a in (r_max, d_max))
        return Renorm(mean, var, jnp.where(warm, r_max, 1), jnp.where(warm, d_max, 0))


def real_array(name: str, x: Any) -> jax.Array:
    """`x` as a JAX array; integers and booleans are allowed.

    Raises:
      TypeError: it is complex, or a NumPy array of a dtype that JAX does not have.
    """
    _checks.representable(name, x)
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        raise TypeError(f"{name} must be real, got {x.dtype.name}{list(x.shape)}")
    return x


def check_activation(activation: Any) -> None:
    """Raises ValueError unless it is None or "relu"."""
    if activation not in (None, "relu"):
        raise ValueError(f'activation must be None or "relu", got {activation!r}')


def checked_residual(residual: Any, activation: str | None, x: jax.Array) -> jax.Array | None:
    """`residual`, which is added before the ReLU, as a JAX array of floating dtype.

    Raises:
      TypeError: it is complex, or a NumPy array of a dtype that JAX does not have.
      ValueError: there is no ReLU, or the shape is not that of `x`.
    """
    if residual is None:
        return None
    if activation != "relu":
        raise ValueError(
            f'residual must come with activation="relu", got {activation!r}: otherwise add it to the output'
        )
    residual = real_array("residual", residual)
    _checks.shape_is("residual", residual, x.shape, "that of the input")
    return residual if jnp.issubdtype(residual.dtype, jnp.floating) else residual.astype(jnp.float32)


def feature_axes(axis: Any, ndim: int, name: str = "axis") -> tuple[int, ...]:
    """`axis`, an integer or several, as sorted axes counted from the front, each once. `name` is for the errors.

    Raises:
      TypeError: `axis` is not an integer or a sequence of integers.
      ValueError: an axis is out of range.
    """
    several = axis if isinstance(axis, Sequence) else (axis,)
    return tuple(sorted({_checks.axis(name, a, ndim) for a in several}))


def _check_features(x: jax.Array, axes: tuple[int, ...], *stored: jax.Array | None) -> None:
    """Raises ValueError unless each array of the layer has one number for each feature of `x`."""
    features = math.prod(x.shape[a] for a in axes)
    for a in stored:
        if a is not None and a.size != features:
            raise ValueError(
                f"the input must have the features of the layer, of shape {a.shape}, along its axes {axes}, "
                f"got shape {x.shape}"
            )


def promote(*dtypes: Any) -> Any:
    """The dtype that holds them all. It is asked for explicitly, so it works where implicit promotion is forbidden."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def normalize_by_batch(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    axes: tuple[int, ...],
    *,
    eps: Any,
    dtype: Any,
    activation: str | None,
    residual: Any = None,
    mask: Any = None,
    axis_name: Any = None,
    axis_index_groups: Any = None,
    assumed_mean: jax.Array | None = None,
    renorm: Renorm | None = None,
    forward_mode: bool = False,
) -> tuple[jax.Array, Batch]:
    """Normalizes by the batch's statistics.

    `scale`, `bias` and `assumed_mean` (the running one) have the shape of the features, and `residual` that of x; y has
    `dtype`. `renorm`: for batch renormalization; the ReLU is then a separate rule. `forward_mode`: whether to
    differentiate in both modes.
    """
    check_activation(activation)
    residual = checked_residual(residual, activation, x)
    _check_features(x, axes, scale, bias, assumed_mean, *() if renorm is None else renorm[:2])
    layout = _Layout(x.shape, axes)
    if not x.size:
        nothing = jnp.zeros(layout.features, promote(x.dtype, jnp.float32))
        return x.astype(dtype), Batch(nothing, nothing, jnp.zeros(layout.features, bool))
    if mask is not None:
        mask = layout.merge_mask(mask)
    if residual is not None:
        residual = layout.merge(residual)
    if renorm is not None:
        mean, var = (jnp.reshape(a, -1) for a in renorm[:2])
        normalize = partial(batch_renorm, mean=mean, var=var, r_max=renorm.r_max, d_max=renorm.d_max)
    else:
        assumed_mean = None if assumed_mean is None else jnp.reshape(assumed_mean, -1)
        fused = partial(batch_norm_relu, residual=residual) if activation == "relu" else batch_norm
        normalize = partial(fused, assumed_mean=assumed_mean)
    with both_modes(forward_mode):
        y, stats = normalize(
            layout.merge(x.astype(promote(x.dtype, dtype))),
            *layout.vectors(scale, bias),
            channel_axis=layout.channel_axis,
            eps=eps,
            where=mask,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
        )
        if renorm is not None and activation == "relu":
            y = relu(y if residual is None else y + residual.astype(y.dtype))
    mean, var, count = (a.reshape(layout.features) for a in stats)
    return layout.split(y).astype(dtype), Batch(mean, var, count > 0)


def normalize_by_given(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mean: jax.Array,
    var: jax.Array,
    axes: tuple[int, ...],
    *,
    eps: Any,
    dtype: Any,
    activation: str | None,
    residual: Any = None,
) -> jax.Array:
    """Normalizes by given statistics, in the shape of the features like `scale` and `bias`; y has `dtype`.

    It is elementwise, so forward mode costs nothing here, and both modes are always defined.
    """
    check_activation(activation)
    residual = checked_residual(residual, activation, x)
    _check_features(x, axes, scale, bias, mean, var)
    if not x.size:
        return x.astype(dtype)
    layout = _Layout(x.shape, axes)
    with both_modes():
        y = batch_norm_inference(
            layout.merge(x.astype(promote(x.dtype, dtype))),
            *layout.vectors(scale, bias),
            *(jnp.reshape(a, -1) for a in (mean, var)),
            channel_axis=layout.channel_axis,
            eps=eps,
        )
        y = layout.split(y)
        if residual is not None:
            y = y + residual.astype(y.dtype)
        return (relu(y) if activation == "relu" else y).astype(dtype)


def running_average(momentum: Any, old: jax.Array, new: jax.Array, counted: jax.Array, dtype: Any) -> jax.Array:
    """momentum · old + (1 − momentum) · new, in `dtype`; `old` where nothing was counted.

    Computed in the wider dtype of `old` and `new`, at least float32, and rounded once.
    """
    old_leads, step = weights(momentum, old.dtype, new.dtype)
    return _update(jnp.dtype(dtype), old, new, counted, old_leads, step)


@layer(static=1, result=lambda dtype, old, *_: old)
def _update(dtype, old, new, counted, old_leads, step):
    return jnp.where(counted, average(old_leads, step, old, new, dtype), old.astype(dtype))


def weight_so_far(momentum: Any, updates: jax.Array, dtype: Any) -> jax.Array:
    """1 − momentum^updates: the total weight of all batches in an average that started at 0.

    float32, or float64 for a float64 `dtype`. Computed by expm1: momentum^updates near 1 is rounded, and the
    subtraction would leave little but the rounding.
    """
    dtype = accumulator(dtype)
    if isinstance(momentum, jax.Array):
        log = jnp.log(momentum.astype(accumulator(momentum.dtype))).astype(dtype)
    else:
        log = jnp.asarray(math.log(momentum) if momentum > 0 else -math.inf, dtype)
    return -jnp.expm1(updates.astype(dtype) * log)


class _Layout:
    """Reshapes an array with any feature axes to one with a single channel axis, and back."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]):
        self.shape, self.axes = shape, axes
        self.features = tuple(shape[a] for a in axes)
        self.others = tuple(n for a, n in enumerate(shape) if a not in axes)
        self.one = len(axes) == 1 and len(shape) > 1  # then the array stays as it is
        self.channel_axis = axes[0] if self.one else -1

    def merge(self, x: jax.Array) -> jax.Array:
        if self.one:
            return x
        x = jnp.moveaxis(x, self.axes, range(-len(self.axes), 0))
        return x.reshape(*(x.shape[: len(self.others)] or (1,)), math.prod(self.features))

    def merge_mask(self, mask: Any) -> jax.Array:
        mask = _checks.mask("mask", jnp.asarray(mask, bool), self.shape)  # Flax allows 0 and 1, too
        # Only merged axes need their full length; along the others a small mask stays small.
        full = [n if a in self.axes and not self.one else 1 for a, n in enumerate(self.shape)]
        return self.merge(jnp.broadcast_to(mask, jnp.broadcast_shapes(mask.shape, tuple(full))))

    def split(self, y: jax.Array) -> jax.Array:
        if self.one:
            return y
        return jnp.moveaxis(y.reshape(self.others + self.features), range(-len(self.axes), 0), self.axes)

    def vectors(self, scale: jax.Array | None, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        channels = math.prod(self.features)
        gamma = jnp.ones(channels, jnp.float32) if scale is None else jnp.reshape(scale, channels)
        beta = jnp.zeros(channels, jnp.float32) if bias is None else jnp.reshape(bias, channels)
        return gamma, beta
