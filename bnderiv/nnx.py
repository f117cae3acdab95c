"""Norms, `Conv` and pools for Flax NNX, under Flax's names: change the import, keep the model and its checkpoints."""

from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv._types import Activation
from bnderiv.adapters import missing
from bnderiv.adapters.batch_norm import (
    Renorm,
    check_activation,
    feature_axes,
    normalize_by_batch,
    normalize_by_given,
    real_array,
    running_average,
)
from bnderiv.adapters.flax_convolution import conv_general_dilated
from bnderiv.adapters.flax_pooling import avg_pool, max_pool
from bnderiv.adapters.patching import Patch, with_parts
from bnderiv.normalization.arguments import limit
from bnderiv.normalization.running_stats import check_momentum

try:
    from flax import nnx
    from flax.nnx import min_pool, pool
    from flax.nnx.nn import dtypes
except ImportError as error:
    raise missing("bnderiv.nnx", "Flax", "flax") from error

from bnderiv.adapters.nnx_norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm

# `min_pool` and `pool` are Flax's own.
__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "Conv",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "avg_pool",
    "convert",
    "max_pool",
    "min_pool",
    "patch",
    "pool",
]


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` computed by `bnderiv.batch_norm`: its arguments, defaults, variables, shapes and dtypes.

    Variables are `scale` and `bias` (`nnx.Param`), `mean` and `var` (`nnx.BatchStat`; the variance is biased, as Flax
    stores it). The state of either fits the other. Differences from Flax are those of `bnderiv.linen.BatchNorm`. Also,
    with the default `promote_dtype` only x is cast: statistics and parameters keep the precision they are stored in.

    Args:
      num_features: the number of features.
      activation: None, or "relu" to fuse it into the same rule, at no cost in residuals. The call then takes a
        `residual` to add before it.
      forward_mode: whether training differentiates in forward mode too, as within `bnderiv.forward_mode.enabled()`.
        Evaluation always does.
      **others: as in `flax.nnx.BatchNorm`; `use_fast_variance` has no effect.

    Raises:
      ValueError: an unknown activation, or a momentum outside [0, 1].

    Example:
      >>> import bnderiv.nnx, flax.nnx, jax.numpy as jnp
      >>> layer = bnderiv.nnx.BatchNorm(2, momentum=0.5, rngs=flax.nnx.Rngs(0))
      >>> y = layer(jnp.array([[1.0, 4.0], [3.0, 8.0]], jnp.float32), use_running_average=False)
      >>> y.round(2).tolist(), layer.mean[...].tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [1.0, 3.0])
    """

    # A layer of Flax becomes one of ours by `layer.__class__ = bnderiv.nnx.BatchNorm`; it has no such fields.
    activation: Activation | None = None
    forward_mode: bool = False

    def __init__(
        self, num_features: int, *, activation: Activation | None = None, forward_mode: bool = False, **others: Any
    ):
        check_activation(activation)
        super().__init__(num_features, **others)
        check_momentum("momentum", self.momentum)
        self.activation = activation
        self.forward_mode = forward_mode

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
        residual: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x` by its own statistics, which also update the running ones, or by the running ones.

        Args:
          x: real input of any rank that has the feature axis.
          use_running_average: whether to use the running statistics; by default as set by the constructor, `train`,
            `eval` or `nnx.view`.
          mask: broadcasts to `x`; elements where it is False do not count, but are normalized.
          residual: for `activation="relu"`, added before it; of the shape of `x`. The dtype of the output does not
            depend on it.

        Returns:
          Array of the shape of `x`; its dtype is `dtype`, by default the common one of `x` and the variables.

        Raises:
          TypeError: `x` is complex, or has a dtype that JAX does not have.
          ValueError: an axis out of range, other features than the layer's, a mask that does not broadcast, a residual
            of another shape or without the ReLU, or `use_running_average` not set anywhere.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError("use_running_average must be given to the constructor or the call, or set by nnx.view")
        x = real_array("x", x)
        axes = feature_axes(self.axis, x.ndim)

        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        stored: Any = (self.mean[...], self.var[...], scale, bias)
        x, *promoted = self.promote_dtype((x, *stored), dtype=self.dtype)
        # Statistics rounded to half precision would lose at inference what training computed in float32.
        mean, var, scale, bias = stored if self.promote_dtype is dtypes.promote_dtype else promoted
        dtype = dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)

        if use_running_average:
            return normalize_by_given(
                x,
                scale,
                bias,
                mean,
                var,
                axes,
                eps=self.epsilon,
                dtype=dtype,
                activation=self.activation,
                residual=residual,
            )
        y, batch = normalize_by_batch(
            x,
            scale,
            bias,
            axes,
            eps=self.epsilon,
            dtype=dtype,
            activation=self.activation,
            residual=residual,
            mask=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            assumed_mean=mean,
            renorm=self._renorm(mean, var),
            forward_mode=self.forward_mode,
        )
        for running, new in ((self.mean, batch.mean), (self.var, batch.var)):
            average = running_average(self.momentum, running[...], new, batch.counted, running[...].dtype)
            running[...] = jax.lax.stop_gradient(average)
        return y

    def _renorm(self, mean: jax.Array, var: jax.Array) -> Renorm | None:
        """What the batch's statistics are corrected by, in a step of training."""
        return None


class BatchRenorm(BatchNorm):
    """Batch renormalization (Ioffe, 2017): `bnderiv.batch_renorm` in the place of `batch_norm` in training.

    Flax has no such layer. Variables are those of `BatchNorm` and `steps`, the batches seen in training
    (`nnx.BatchStat`). For the first `warmup_steps` it is batch norm. Evaluation is that of `BatchNorm`.

    Args:
      num_features: the number of features.
      warmup_steps: number of batches before the correction begins, within the limits. At least 0.
      r_max: the ratio of the deviations is clipped to [1/r_max, r_max]; at least 1.
      d_max: the difference of the means is clipped to [−d_max, d_max] deviations; at least 0.
      epsilon: added to both variances.
      **others: as in `BatchNorm`. An activation is not fused: one more array is saved.

    Raises:
      ValueError: a limit that is too small, and as in `BatchNorm`.

    Example:
      >>> import bnderiv.nnx, flax.nnx, jax.numpy as jnp
      >>> layer = bnderiv.nnx.BatchRenorm(1, momentum=0.5, warmup_steps=1, rngs=flax.nnx.Rngs(0))
      >>> x = jnp.array([[1.0], [3.0]], jnp.float32)
      >>> for _ in range(2):
      ...     print(layer(x, use_running_average=False).round(2).tolist())
      [[-1.0], [1.0]]
      [[0.0], [2.0]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        warmup_steps: int = 100_000,
        r_max: float = 3.0,
        d_max: float = 5.0,
        epsilon: float = 1e-3,
        **others: Any,
    ):
        super().__init__(num_features, epsilon=epsilon, **others)
        limit("r_max", r_max, 1, self.mean[...])
        limit("d_max", d_max, 0, self.mean[...])
        self.steps = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.warmup_steps = warmup_steps
        self.r_max = r_max
        self.d_max = d_max

    def _renorm(self, mean: jax.Array, var: jax.Array) -> Renorm:
        renorm = Renorm.after(self.warmup_steps, self.steps[...], mean, var, self.r_max, self.d_max)
        self.steps[...] += 1
        return renorm


class Conv(nnx.Conv):
    """`flax.nnx.Conv` computed by `bnderiv.conv`: its arguments, defaults, variables, shapes and dtypes.

    The state of either fits the other. Differences from Flax are those of `bnderiv.linen.Conv`. Also left to
    `jax.lax.conv_general_dilated`: a `preferred_element_type` and an `out_sharding`.

    Args:
      conv_general_dilated: any but the default is used as in Flax.
      **others: as in `flax.nnx.Conv`.

    Example:
      >>> import bnderiv.nnx, flax.nnx, jax, jax.numpy as jnp
      >>> options = {"padding": "CIRCULAR", "kernel_init": jax.nn.initializers.ones}
      >>> layer = bnderiv.nnx.Conv(1, 1, (2,), **options, rngs=flax.nnx.Rngs(0))
      >>> layer(jnp.array([[[1.0], [2.0], [4.0]]], jnp.float32))[0, :, 0].tolist()
      [3.0, 6.0, 5.0]
    """

    # A layer of Flax becomes one of ours by `layer.__class__ = bnderiv.nnx.Conv`, and it holds Flax's default.
    @property
    def conv_general_dilated(self) -> Any:
        given = vars(self)["conv_general_dilated"]
        return conv_general_dilated if given is jax.lax.conv_general_dilated else given

    @conv_general_dilated.setter
    def conv_general_dilated(self, given: Any) -> None:
        vars(self)["conv_general_dilated"] = given


# What `patch` replaces: Flax's, and ours.
_REPLACED: dict[Any, Any] = {
    nnx.BatchNorm: BatchNorm,
    nnx.LayerNorm: LayerNorm,
    nnx.GroupNorm: GroupNorm,
    nnx.InstanceNorm: InstanceNorm,
    nnx.RMSNorm: RMSNorm,
    nnx.Conv: Conv,
    nnx.avg_pool: avg_pool,
    nnx.max_pool: max_pool,
}
Model = TypeVar("Model")


def patch(*modules: ModuleType) -> Patch:
    """Put our norms, `Conv`, `avg_pool` and `max_pool` in the place of Flax's, for models that cannot be edited.

    As `bnderiv.linen.patch`, for `flax.nnx`.

    Example:
      >>> import bnderiv.nnx, flax.nnx
      >>> with bnderiv.nnx.patch():
      ...     print(flax.nnx.BatchNorm.__module__)
      bnderiv.nnx
    """
    return Patch("flax.nnx", _REPLACED, modules)


def convert(model: Model) -> Model:
    """A copy of a built model with our layers and a copy of its state.

    Pools are replaced where an attribute holds them, also in a partial; for what its methods name, use `patch`.

    Args:
      model: a module, trained or not. It is left as it is.

    Returns:
      The copy. Its state fits the model's, and that of an optimizer fits both.

    Raises:
      ValueError: the model has no layer of Flax that there is here.

    Example:
      >>> import bnderiv.nnx, flax.nnx
      >>> layers = flax.nnx.Linear(2, 3, rngs=flax.nnx.Rngs(0)), flax.nnx.BatchNorm(3, rngs=flax.nnx.Rngs(0))
      >>> model = bnderiv.nnx.convert(flax.nnx.Sequential(*layers))
      >>> type(model.layers[1]).__module__
      'bnderiv.nnx'
    """
    copy, found = nnx.clone(model), False
    for node in [node for _, node in nnx.iter_graph(copy) if isinstance(node, nnx.Pytree)]:
        if type(node) in _REPLACED:
            node.__class__, found = _REPLACED[type(node)], True
        for name, value in list(vars(node).items()):
            new = _converted(value)
            if new is not value:
                vars(node)[name], found = new, True
    if not found:
        raise ValueError(f"{type(model).__name__} holds no layer of Flax that bnderiv.nnx has")
    return copy


def _converted(a: Any) -> Any:
    """A function or class of Flax, or what holds them, with ours; or the same object."""
    return next((ours for theirs, ours in _REPLACED.items() if a is theirs), None) or with_parts(_converted, a)
