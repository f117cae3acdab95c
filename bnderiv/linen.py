"""Norms, `Conv` and pools for Flax linen, under Flax's names: change the import, keep the model and its checkpoints."""

import dataclasses
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv._types import Activation
from bnderiv.adapters import missing
from bnderiv.adapters.batch_norm import (
    Renorm,
    feature_axes,
    normalize_by_batch,
    normalize_by_given,
    promote,
    real_array,
    running_average,
)
from bnderiv.adapters.flax_convolution import conv_general_dilated
from bnderiv.adapters.flax_pooling import avg_pool, max_pool
from bnderiv.adapters.patching import Patch, with_parts
from bnderiv.normalization.arguments import limit
from bnderiv.normalization.running_stats import check_momentum

try:
    import flax.linen as nn
    from flax.core import FrozenDict
    from flax.linen.dtypes import canonicalize_dtype
    from flax.linen.pooling import min_pool, pool
except ImportError as error:
    raise missing("bnderiv.linen", "Flax", "flax") from error

from bnderiv.adapters.linen_norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm

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


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` computed by `bnderiv.batch_norm`: its arguments, defaults, variables, shapes and dtypes.

    Variables are 'scale' and 'bias' in 'params', 'mean' and 'var' (biased, as Flax stores it) in 'batch_stats', all in
    the shape of the feature axes. Checkpoints of either load into the other. Differences from Flax:

    * Statistics and gradient are right at any mean and scale. The gradient is the closed form and saves only x and
      vectors. Forward-mode differentiation in training must be asked for.
    * With a mask and `axis_name`, means are weighted by true counts; Flax averages the devices' averages. Features
      without any counted element keep their running statistics.
    * Half precision is always computed in float32, the step of the running statistics included. A momentum near 1
      leaves the batch its weight in any dtype; `bnderiv.update_running_stats` says when half precision cannot store it.
    * Complex input raises. With an infinite running variance y is NaN.

    Attributes:
      use_fast_variance: accepted without effect; the naive variance is never used.
      force_float32_reductions: affects only the dtype of the running statistics.
      activation: None, or "relu" to fuse it into the same rule, at no cost in residuals. The call then takes a
        `residual` to add before it.
      forward_mode: whether training differentiates in forward mode too, as within `bnderiv.forward_mode.enabled()`.
        Evaluation always does.
      others: as in `flax.linen.BatchNorm`. `axis` and `axis_name` may be tuples.

    Example:
      >>> import bnderiv.linen, jax, jax.numpy as jnp
      >>> model = bnderiv.linen.BatchNorm(use_running_average=False, momentum=0.5)
      >>> x = jnp.array([[1.0, 4.0], [3.0, 8.0]], jnp.float32)
      >>> y, updated = model.apply(model.init(jax.random.key(0), x), x, mutable=["batch_stats"])
      >>> y.round(2).tolist(), updated["batch_stats"]["mean"].tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [1.0, 3.0])
    """

    activation: Activation | None = None
    forward_mode: bool = False

    @nn.compact
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
          x: real input of any rank that has the feature axes.
          use_running_average: whether to use the running statistics; given here or to the constructor.
          mask: broadcasts to `x`; elements where it is False do not count, but are normalized.
          residual: for `activation="relu"`, added before it; of the shape of `x`. The dtype of the output does not
            depend on it.

        Returns:
          Array of the shape of `x`; its dtype is `dtype`, by default the common one of `x` and the parameters.

        Raises:
          TypeError: `x` is complex, or has a dtype that JAX does not have.
          ValueError: an axis out of range, a mask that does not broadcast, a residual of another shape or without the
            ReLU, an unknown activation, a momentum outside [0, 1].
        """
        check_momentum("momentum", self.momentum)
        use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        x = real_array("x", x)
        axes = feature_axes(self.axis, x.ndim)
        shape = [x.shape[a] for a in axes]

        stored = jnp.float32 if self.force_float32_reductions else self.param_dtype
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, stored)
        var = self.variable("batch_stats", "var", jnp.ones, shape, stored)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype) if self.use_scale else None
        bias = self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else None
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        initializing = self.is_initializing()  # no map has axis_name yet, and the running statistics stay
        renorm = self._renorm(mean.value, var.value, counts=not (use_running_average or initializing))

        if use_running_average:
            return normalize_by_given(
                x,
                scale,
                bias,
                mean.value,
                var.value,
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
            axis_name=None if initializing else self.axis_name,
            axis_index_groups=None if initializing else self.axis_index_groups,
            assumed_mean=mean.value,
            renorm=renorm,
            forward_mode=self.forward_mode,
        )
        if not initializing:
            computed = x.dtype if self.dtype is None else self.dtype
            computed = promote(computed, jnp.float32) if self.force_float32_reductions else computed
            for running, new in ((mean, batch.mean), (var, batch.var)):
                dtype = promote(running.value.dtype, computed)
                running.value = running_average(self.momentum, running.value, new, batch.counted, dtype)
        return y

    @nn.nowrap  # so that nn.tabulate has no row for it
    def _renorm(self, mean: jax.Array, var: jax.Array, counts: bool) -> Renorm | None:
        """What the batch's statistics are corrected by; `counts`: whether this call is a step of training."""
        return None


class BatchRenorm(BatchNorm):
    """Batch renormalization (Ioffe, 2017): `bnderiv.batch_renorm` in the place of `batch_norm` in training.

    Flax has no such layer. Names, defaults and variables are those of the one in sbx, which CrossQ and purejaxql have,
    too: 'scale' and 'bias' in 'params', and in 'batch_stats' 'mean' and 'var' (biased), 'steps', the batches seen in
    training, and the limits 'r_max' and 'd_max'. Its checkpoints load, and training goes on from there. For the first
    `warmup_steps` it is batch norm. Evaluation is that of `BatchNorm`.

    Differences from that layer: those of `BatchNorm` from Flax; and ε is in both deviations, as in the paper, so that y
    differs by about ε/σ² of its size.

    Attributes:
      warmup_steps: number of batches before the correction begins, within the limits. At least 0.
      r_max: the ratio of the deviations is clipped to [1/r_max, r_max]; at least 1. It initializes the variable.
      d_max: the difference of the means is clipped to [−d_max, d_max] deviations; at least 0. It initializes the
        variable.
      activation: as in `BatchNorm`, but not fused: one more array is saved.
      others: as in `BatchNorm`.

    Raises:
      ValueError: a limit that is too small, and as in `BatchNorm`.

    Example:
      >>> import bnderiv.linen, jax, jax.numpy as jnp
      >>> model = bnderiv.linen.BatchRenorm(use_running_average=False, momentum=0.5, warmup_steps=1)
      >>> x = jnp.array([[1.0], [3.0]], jnp.float32)
      >>> variables = model.init(jax.random.key(0), x)
      >>> for _ in range(2):
      ...     y, updated = model.apply(variables, x, mutable=["batch_stats"])
      ...     variables = {**variables, **updated}
      ...     print(y.round(2).tolist())
      [[-1.0], [1.0]]
      [[0.0], [2.0]]
    """

    epsilon: float = 1e-3
    warmup_steps: int = 100_000
    r_max: float = 3.0
    d_max: float = 5.0

    @nn.nowrap  # so that nn.tabulate has no row for it
    def _renorm(self, mean: jax.Array, var: jax.Array, counts: bool) -> Renorm:
        steps = self.variable("batch_stats", "steps", jnp.zeros, (), jnp.int32)
        r_max = self.variable("batch_stats", "r_max", limit, "r_max", self.r_max, 1, mean)
        d_max = self.variable("batch_stats", "d_max", limit, "d_max", self.d_max, 0, mean)
        renorm = Renorm.after(self.warmup_steps, steps.value, mean, var, r_max.value, d_max.value)
        if counts:
            steps.value = steps.value + 1  # not in place: restored, it is a read-only array
        return renorm


class Conv(nn.Conv):
    """`flax.linen.Conv` computed by `bnderiv.conv`: its arguments, defaults, parameters, shapes and dtypes.

    Checkpoints of either load into the other. Differences from Flax:

    * The gradient is the closed form. On a GPU the kernel's gradient comes before the input's, and a network needs less
      memory.
    * On a CPU convolutions of few channels are products with a banded matrix, and NaN and infinity may reach further,
      within their example.
    * Forward-mode differentiation must be asked for, by `bnderiv.forward_mode.enabled()`.

    The following is left to `jax.lax.conv_general_dilated`, gradient included, and equal to Flax's: an
    `input_dilation`, a `precision`, negative padding, a window larger than the padded input, arrays of size 0,
    integers, complex numbers and float8, spatial sizes that an export leaves open.

    Attributes:
      conv_general_dilated, conv_general_dilated_cls: given one of them, it is used as in Flax.
      others: as in `flax.linen.Conv`.

    Example:
      >>> import bnderiv.linen, jax, jax.numpy as jnp
      >>> model = bnderiv.linen.Conv(1, (2,), padding="CIRCULAR", kernel_init=jax.nn.initializers.ones)
      >>> x = jnp.array([[[1.0], [2.0], [4.0]]], jnp.float32)
      >>> model.apply(model.init(jax.random.key(0), x), x)[0, :, 0].tolist()
      [3.0, 6.0, 5.0]
    """

    def __post_init__(self) -> None:
        if self.conv_general_dilated is None:
            self.conv_general_dilated = conv_general_dilated
        super().__post_init__()


# What `patch` replaces: Flax's, and ours.
_REPLACED: dict[Any, Any] = {
    nn.BatchNorm: BatchNorm,
    nn.LayerNorm: LayerNorm,
    nn.GroupNorm: GroupNorm,
    nn.InstanceNorm: InstanceNorm,
    nn.RMSNorm: RMSNorm,
    nn.Conv: Conv,
    nn.avg_pool: avg_pool,
    nn.max_pool: max_pool,
}
Model = TypeVar("Model")


def patch(*modules: ModuleType) -> Patch:
    """Put our norms, `Conv`, `avg_pool` and `max_pool` in the place of Flax's, for models that cannot be edited.

    Everything that asks `flax.linen` for them gets ours from then on, until the end of a `with` block or `undo()`. What
    was bound before, as by `from flax.linen import BatchNorm`, stays, unless its module is given. Models defined or
    imported meanwhile keep what they have bound. The names are those of the whole process, other threads included.
    Parameters and statistics need no change.

    Args:
      *modules: modules in which the names are replaced, too.

    Returns:
      A context manager with a method `undo`, active at once.

    Raises:
      TypeError: an argument is not a module.

    Example:
      >>> import bnderiv.linen, flax.linen
      >>> with bnderiv.linen.patch():
      ...     print(flax.linen.BatchNorm.__module__)
      bnderiv.linen
      >>> print(flax.linen.BatchNorm.__module__)
      flax.linen.normalization
    """
    return Patch("flax.linen", _REPLACED, modules)


def convert(model: Model) -> Model:
    """The same model with our layers in its fields: modules, classes, partials, and lists, tuples and dicts of them.

    Variables fit as they are. What a model names in its methods is not in its fields: there use `patch`.

    Args:
      model: a module that is not bound.

    Returns:
      A copy; modules without anything to replace are shared.

    Raises:
      ValueError: `model` is bound, or nothing in its fields is a layer of Flax that there is here.

    Example:
      >>> import bnderiv.linen, flax.linen
      >>> model = bnderiv.linen.convert(flax.linen.Sequential([flax.linen.Dense(3), flax.linen.BatchNorm(True)]))
      >>> type(model.layers[1]).__module__
      'bnderiv.linen'
    """
    if isinstance(model, nn.Module) and model.scope is not None:
        raise ValueError(
            f"model must not be bound, as by `bind` or within a compact method, got a bound {type(model).__name__}: "
            "convert it before"
        )
    converted = _converted(model, {})
    if converted is model:
        raise ValueError(
            f"no field of {type(model).__name__} holds a layer of Flax that bnderiv.linen has: "
            "for what its methods name, use bnderiv.linen.patch()"
        )
    return converted


def _converted(a: Any, modules: dict[int, nn.Module]) -> Any:
    """`a` with ours in it, or the same object. Of `modules`, by the identity of Flax's, a shared one stays shared."""
    change = partial(_converted, modules=modules)
    if isinstance(a, nn.Module):
        if id(a) not in modules:
            modules[id(a)] = _converted_module(a, change)
        return modules[id(a)]
    if isinstance(a, FrozenDict):
        new = with_parts(change, dict(a))
        return a if all(new[key] is a[key] for key in a) else FrozenDict(new)
    return next((ours for theirs, ours in _REPLACED.items() if a is theirs), None) or with_parts(change, a)


def _converted_module(a: nn.Module, change: Callable[[Any], Any]) -> nn.Module:
    fields = {f.name: getattr(a, f.name) for f in dataclasses.fields(a) if f.init and hasattr(a, f.name)}
    new = {name: value if name == "parent" else change(value) for name, value in fields.items()}
    if type(a) in _REPLACED:
        return _REPLACED[type(a)](**new)
    changed = {name: value for name, value in new.items() if value is not fields[name]}
    return a.clone(**changed) if changed else a
