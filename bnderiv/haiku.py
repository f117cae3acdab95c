"""Norms and pooling for Haiku, under its names: change the import, keep the model and its checkpoints."""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv._types import Activation
from bnderiv.activation.relu import relu
from bnderiv.adapters import missing
from bnderiv.adapters.batch_norm import (
    check_activation,
    checked_residual,
    feature_axes,
    normalize_by_batch,
    normalize_by_given,
    promote,
    real_array,
    running_average,
    weight_so_far,
)
from bnderiv.adapters.patching import Patch
from bnderiv.normalization.running_stats import check_momentum

try:
    import haiku as hk
except ImportError as error:
    raise missing("bnderiv.haiku", "Haiku", "haiku") from error

from bnderiv.adapters.haiku_norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from bnderiv.adapters.haiku_policy import Follower, follow_policy
from bnderiv.adapters.haiku_pooling import AvgPool, MaxPool, avg_pool, max_pool

__all__ = [
    "AvgPool",
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "MaxPool",
    "RMSNorm",
    "avg_pool",
    "convert",
    "max_pool",
    "patch",
]


_HaikuBatchNorm = hk.BatchNorm  # what Haiku has; `patch` puts ours at that name


class BatchNorm(Follower, _HaikuBatchNorm):
    """`haiku.BatchNorm` computed by `bnderiv.batch_norm`: its arguments, defaults, parameters, state and names.

    The parameters `scale` and `offset` and the two averages have Haiku's paths, shapes and dtypes, so the trees of
    either fit the other. Differences from Haiku:

    * Statistics and gradient are right at any mean and scale. The gradient is the closed form and saves only x and
      vectors. Forward-mode differentiation in training must be asked for.
    * Half precision is computed in float32, the step of the averages and their debiasing included. The averages are
      stored in the dtype of the input, as in Haiku. A decay rate near 1 leaves the batch its weight in any dtype.
    * Complex input raises. With an infinite variance in the state y is NaN.

    A policy that `haiku.mixed_precision` has for `haiku.BatchNorm` when the layer is made applies to it, too, unless
    there is one for this class. One for `haiku.ExponentialMovingAverage` applies to the averages.

    Args:
      activation: None, or "relu" to fuse it into the same rule, at no cost in residuals. The call then takes a
        `residual` to add before it.
      forward_mode: whether training differentiates in forward mode too, as within `bnderiv.forward_mode.enabled()`.
        Evaluation always does.
      others: as in `haiku.BatchNorm`.

    Raises:
      ValueError: an unknown activation, a decay rate outside [0, 1], or as in `haiku.BatchNorm`.

    Example:
      >>> import bnderiv.haiku, haiku, jax, jax.numpy as jnp
      >>> model = haiku.transform_with_state(lambda x: bnderiv.haiku.BatchNorm(True, True, 0.5)(x, is_training=True))
      >>> x = jnp.array([[1.0, 4.0], [3.0, 8.0]])
      >>> params, state = model.init(jax.random.key(0), x)
      >>> y, state = model.apply(params, state, None, x)
      >>> y.round(2).tolist(), state["batch_norm/~/mean_ema"]["average"].tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [[2.0, 6.0]])
    """

    _theirs = _HaikuBatchNorm

    def __init__(
        self,
        create_scale: bool,
        create_offset: bool,
        decay_rate: float,
        eps: float = 1e-5,
        scale_init: hk.initializers.Initializer | None = None,
        offset_init: hk.initializers.Initializer | None = None,
        axis: Sequence[int] | None = None,
        cross_replica_axis: str | Sequence[str] | None = None,
        cross_replica_axis_index_groups: Sequence[Sequence[int]] | None = None,
        data_format: str = "channels_last",
        name: str | None = None,
        *,
        activation: Activation | None = None,
        forward_mode: bool = False,
    ):
        check_activation(activation)
        check_momentum("decay_rate", decay_rate)
        super().__init__(
            create_scale,
            create_offset,
            decay_rate,
            eps,
            scale_init,
            offset_init,
            axis,
            cross_replica_axis,
            cross_replica_axis_index_groups,
            data_format,
            name,
        )
        self.activation = activation
        self.forward_mode = forward_mode
        # Haiku's averages become ours and keep their names, so that checkpoints of either load into the other.
        follow_policy(_Average, hk.ExponentialMovingAverage)
        for average in (self.mean_ema, self.var_ema):
            average.__class__ = _Average

    def __call__(
        self,
        inputs: ArrayLike,
        is_training: bool,
        test_local_stats: bool = False,
        scale: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        *,
        residual: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `inputs` by its own statistics or by the averages.

        Args:
          inputs: real, in the layout of `data_format`.
          is_training: whether to use the statistics of `inputs`, which then update the averages.
          test_local_stats: whether to use the statistics of `inputs` without updating the averages.
          scale, offset: arrays that broadcast to the shape of `inputs`, if the module creates none itself.
          residual: for `activation="relu"`, added before it; of the shape of `inputs`. The dtype of the output does not
            depend on it.

        Returns:
          Array of the shape of `inputs`.

        Raises:
          TypeError: `inputs` is complex, or has a dtype that JAX does not have.
          ValueError: `scale` or `offset` is given though the module creates it, an axis is out of range, or a residual
            has another shape or comes without the ReLU.
        """
        if self.create_scale and scale is not None:
            raise ValueError("scale must not be given at call time where create_scale=True")
        if self.create_offset and offset is not None:
            raise ValueError("offset must not be given at call time where create_offset=True")
        inputs = real_array("inputs", inputs)
        residual = checked_residual(residual, self.activation, inputs)
        rank = inputs.ndim
        if self.axis is None:
            axes = feature_axes(self.channel_index, rank) if rank else ()
        else:
            reduced = feature_axes(tuple(self.axis), rank)
            axes = tuple(a for a in range(rank) if a not in reduced)
        shape = [n if a in axes else 1 for a, n in enumerate(inputs.shape)]
        # Haiku's parameters keep the length of an axis that is given as a negative number.
        listed = self.axis if self.axis is not None else [a for a in range(rank) if a not in axes]
        of_parameters = [1 if a in listed else n for a, n in enumerate(inputs.shape)]
        features = [inputs.shape[a] for a in axes]
        stored = inputs.dtype if jnp.issubdtype(inputs.dtype, jnp.floating) else promote(inputs.dtype, jnp.float32)

        by_batch = is_training or test_local_stats
        averages: Any = () if by_batch else (self.mean_ema.average, self.var_ema.average)
        if self.create_scale:
            scale = hk.get_parameter("scale", of_parameters, inputs.dtype, self.scale_init)
        if self.create_offset:
            offset = hk.get_parameter("offset", of_parameters, inputs.dtype, self.offset_init)

        dtype = jnp.result_type(stored, *(a for a in (scale, offset) if a is not None))
        # Scale and offset enter the rule if there is one value for each feature; otherwise they are applied after it.
        within = all(a is None or _one_per_feature(jnp.shape(a), shape) for a in (scale, offset))
        fused: dict[str, Any] = {"activation": None}
        if within:
            fused = {"activation": self.activation, "residual": residual}

        def vector(a: Any) -> jax.Array | None:
            if a is None or not within:
                return None
            return jnp.broadcast_to(jnp.asarray(a, dtype), shape).reshape(features)

        gamma, beta = vector(scale), vector(offset)
        if by_batch:
            assumed_mean = None
            if is_training and not hk.running_init():  # an average that is read in `init` would start at zero
                self.mean_ema.initialize(shape, stored)  # the state may be empty, where parameters alone were loaded
                assumed_mean = self.mean_ema.average
            y, batch = normalize_by_batch(
                inputs,
                gamma,
                beta,
                axes,
                eps=self.eps,
                dtype=dtype,
                **fused,
                axis_name=self.cross_replica_axis or None,
                axis_index_groups=self.cross_replica_axis_index_groups,
                assumed_mean=assumed_mean,
                forward_mode=self.forward_mode,
            )
            if is_training:
                for average, new in ((self.mean_ema, batch.mean), (self.var_ema, batch.var)):
                    average(new.reshape(shape), counted=batch.counted.reshape(shape), stored_as=jnp.zeros(0, stored))
        else:
            mean, var = averages
            y = normalize_by_given(inputs, gamma, beta, mean, var, axes, eps=self.eps, dtype=dtype, **fused)
        if within:
            return y
        y = y * (1 if scale is None else scale) + (0 if offset is None else offset)
        if residual is not None:
            y = y + residual.astype(y.dtype)
        return relu(y) if self.activation == "relu" else y


class _Average(hk.ExponentialMovingAverage):
    """`haiku.ExponentialMovingAverage` of its defaults, computed in float32 at least, with exact weights near 1."""

    def __call__(
        self,
        value: float | jax.Array,
        update_stats: bool = True,
        *,
        counted: jax.Array | None = None,
        stored_as: jax.Array | None = None,
    ) -> jax.Array:
        """The average with `value` where anything was counted; a new state has the dtype of `stored_as`.

        That dtype is the one of an array, because Haiku's policies cast arrays.
        """
        value = jnp.asarray(value)
        counted = jnp.full(value.shape, True) if counted is None else counted
        dtype = value.dtype if stored_as is None else stored_as.dtype
        counter = hk.get_state("counter", (), jnp.int32, init=jnp.zeros)
        counter = counter + counted.any().astype(counter.dtype)
        hidden = hk.get_state("hidden", value.shape, dtype, init=jnp.zeros)
        stored, wide = promote(hidden.dtype, dtype), promote(hidden.dtype, value.dtype)
        hidden = running_average(self.decay, hidden, value, counted, wide)
        average = hidden / jnp.where(counter == 0, 1, weight_so_far(self.decay, counter, wide))
        average = average.astype(stored)
        if update_stats:
            hk.set_state("counter", counter)
            hk.set_state("hidden", hidden.astype(stored))
            hk.set_state("average", average)
        return average


def _one_per_feature(shape: tuple[int, ...], features: Sequence[int]) -> bool:
    """Whether an array of this shape has at most one value for each feature."""
    padded = (1,) * (len(features) - len(shape)) + tuple(shape)
    return len(padded) == len(features) and all(n in (1, m) for n, m in zip(padded, features, strict=True))


# What `patch` replaces: Haiku's, and ours.
_REPLACED: dict[Any, Any] = {
    _HaikuBatchNorm: BatchNorm,
    hk.LayerNorm: LayerNorm,
    hk.GroupNorm: GroupNorm,
    hk.InstanceNorm: InstanceNorm,
    hk.RMSNorm: RMSNorm,
    hk.AvgPool: AvgPool,
    hk.MaxPool: MaxPool,
    hk.avg_pool: avg_pool,
    hk.max_pool: max_pool,
}
Model = TypeVar("Model", hk.Transformed, hk.TransformedWithState, hk.MultiTransformed, hk.MultiTransformedWithState)


def patch(*modules: ModuleType) -> Patch:
    """Put our norms and pools in the place of Haiku's, for models that cannot be edited, such as those of `haiku.nets`.

    As `bnderiv.linen.patch`, for `haiku`. Haiku makes new modules in every `init` and `apply`. Call or trace both
    within the patch, or use `convert`.

    Example:
      >>> import bnderiv.haiku, haiku
      >>> with bnderiv.haiku.patch():
      ...     print(haiku.BatchNorm.__module__)
      bnderiv.haiku
    """
    return Patch("haiku", _REPLACED, modules)


def convert(model: Model, *modules: ModuleType) -> Model:
    """A transformed function whose `init` and `apply` run within `patch`; its parameters and state fit as they are.

    Args:
      model: what `haiku.transform`, `transform_with_state` or their multi-variants return.
      *modules: as for `patch`.

    Returns:
      The same kind of tuple.

    Raises:
      TypeError: another kind of model.

    Example:
      >>> import bnderiv.haiku, haiku
      >>> model = haiku.transform_with_state(lambda x: haiku.nets.ResNet18(10)(x, is_training=True))
      >>> type(bnderiv.haiku.convert(model)).__name__
      'TransformedWithState'
    """
    kinds = Model.__constraints__
    if not isinstance(model, kinds):
        raise TypeError(f"model must be one of {', '.join(k.__name__ for k in kinds)}, got {type(model).__name__}")

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with patch(*modules):
                return function(*args, **kwargs)

        return call

    return type(model)(*jax.tree.map(within, tuple(model)))
