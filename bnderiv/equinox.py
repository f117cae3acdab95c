"""Norms and pooling for Equinox, under its names: change the import, keep the model and its checkpoints."""

import dataclasses
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, Literal, Self, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from bnderiv import _checks
from bnderiv._types import Activation, AxisName
from bnderiv.adapters import missing
from bnderiv.adapters.batch_norm import (
    Batch,
    check_activation,
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
    import equinox as eqx
except ImportError as error:
    raise missing("bnderiv.equinox", "Equinox", "equinox") from error

from bnderiv.adapters.equinox_norms import GroupNorm, LayerNorm, RMSNorm
from bnderiv.adapters.equinox_pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm",
    "GroupNorm",
    "LayerNorm",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "RMSNorm",
    "convert",
    "patch",
]


_EquinoxBatchNorm = eqx.nn.BatchNorm  # what Equinox has; `patch` puts ours at that name


class BatchNorm(_EquinoxBatchNorm):
    """`equinox.nn.BatchNorm` computed by `bnderiv.batch_norm`: its arguments, defaults, fields and state.

    It is called on one example, under `jax.vmap` or another map that has `axis_name`. Fields and state have Equinox's
    shapes and dtypes, so leaves saved from either load into the other. Differences from Equinox:

    * Statistics and gradient are right at any mean and scale. The gradient is the closed form and saves only x and
      vectors. Forward-mode differentiation in training must be asked for. In the mode "ema" the input is normalized by
      averages rounded to the state's dtype, so only the averages themselves are more precise.
    * Half precision is computed in float32, the step of the averages included. A momentum near 1 leaves the batch its
      weight in any dtype, and 1 − momentum^counter is right. The state keeps its dtype for wider input; Equinox raises.
    * Complex input raises. With an infinite variance in the state y is NaN.

    Args:
      activation: None, or "relu" to fuse it into the same rule, at no cost in residuals. The call then takes a
        `residual` to add before it.
      forward_mode: whether training differentiates in forward mode too, as within `bnderiv.forward_mode.enabled()`.
        Evaluation always does.
      others: as in `equinox.nn.BatchNorm`.

    Raises:
      ValueError: an unknown mode or activation, or a momentum outside [0, 1].

    Example:
      >>> import bnderiv.equinox, equinox, jax, jax.numpy as jnp
      >>> layer, state = equinox.nn.make_with_state(bnderiv.equinox.BatchNorm)(2, "batch", momentum=0.5, mode="batch")
      >>> batched = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
      >>> y, state = batched(jnp.array([[1.0, 4.0], [3.0, 8.0]]), state)
      >>> y.round(2).tolist(), state.get(layer.batch_state_index)[0].tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [1.0, 3.0])
    """

    activation: Activation | None = eqx.field(static=True)
    forward_mode: bool = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        axis_name: AxisName,
        eps: float = 1e-5,
        channelwise_affine: bool = True,
        momentum: float = 0.99,
        inference: bool = False,
        dtype: DTypeLike | None = None,
        mode: Literal["ema", "batch", "legacy"] = "legacy",
        *,
        activation: Activation | None = None,
        forward_mode: bool = False,
    ):
        check_activation(activation)
        check_momentum("momentum", momentum)
        super().__init__(input_size, axis_name, eps, channelwise_affine, momentum, inference, dtype, mode)
        self.activation = activation
        self.forward_mode = forward_mode

    @classmethod
    def like(cls, old: eqx.nn.BatchNorm, *, activation: Activation | None = None, forward_mode: bool = False) -> Self:
        """The layer `old` of Equinox as one of ours, with its weights and its place in the state.

        Args:
          old: an `equinox.nn.BatchNorm`, trained or not.
          activation, forward_mode: as for the class.

        Returns:
          A layer that goes on with the same `State`.

        Raises:
          TypeError: `old` is not an `equinox.nn.BatchNorm`.
          ValueError: an unknown activation, or a momentum outside [0, 1].

        Example:
          >>> import bnderiv.equinox, equinox
          >>> old, state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(2, "batch", mode="batch")
          >>> new = bnderiv.equinox.BatchNorm.like(old)
          >>> state.get(new.batch_state_index)[0].tolist()
          [0.0, 0.0]
        """
        if not isinstance(old, _EquinoxBatchNorm):
            raise TypeError(f"old must be an equinox.nn.BatchNorm, got {type(old).__name__}")
        check_activation(activation)
        check_momentum("momentum", old.momentum)
        return _of_class(cls, old, activation=activation, forward_mode=forward_mode)

    def __call__(
        self,
        x: ArrayLike,
        state: eqx.nn.State,
        *,
        key: jax.Array | None = None,
        inference: bool | None = None,
        residual: ArrayLike | None = None,
    ) -> tuple[jax.Array, eqx.nn.State]:
        """Normalizes one example by the statistics of its batch, which also update the state, or by the state's.

        Args:
          x: one example, shape (input_size, ...), real.
          state: the state, first from `equinox.nn.make_with_state`.
          key: ignored.
          inference: whether to use the statistics in the state; by default the field `inference`.
          residual: for `activation="relu"`, added before it; of the shape of `x`. The dtype of the output does not
            depend on it.

        Returns:
          Array of the shape of `x`, and the new state.

        Raises:
          TypeError: `x` is complex, or has a dtype that JAX does not have.
          ValueError: `x` has other channels, or a residual has another shape or comes without the ReLU.
          NameError: no map around the call has `axis_name`.
        """
        x = real_array("x", x)
        _checks.rank_at_least("x", x, 1, "channels")
        inference = self.inference if inference is None else inference
        with jax.named_scope("bnderiv.equinox.BatchNorm"):
            if self.mode == "ema":
                return self._by_averages(x, state, inference, residual)
            return self._by_batch(x, state, inference, residual)

    def _by_batch(self, x: jax.Array, state: Any, inference: bool, residual: Any) -> tuple[jax.Array, Any]:
        counter, stored = state.get(self.batch_counter), state.get(self.batch_state_index)
        # Equinox divides both averages by this weight, though that of the variance starts at 1 and not at 0.
        weight = weight_so_far(self.momentum, counter, stored[0].dtype)
        weight = jnp.where(counter == 0, 1, weight)
        averages = [a.astype(weight.dtype) / weight for a in stored]
        if inference:
            return self._normalize_by(x, *averages, dtype=self._dtype(x, *stored), residual=residual), state
        y, batch = self._statistics(x, self.activation, self._dtype(x), averages[0], residual)
        state = state.set(self.batch_counter, jnp.where(batch.counted.any(), counter + 1, counter))
        return y, state.set(self.batch_state_index, self._averages(stored, batch))

    def _by_averages(self, x: jax.Array, state: Any, inference: bool, residual: Any) -> tuple[jax.Array, Any]:
        stored = state.get(self.ema_state_index)
        if inference:
            return self._normalize_by(x, *stored, dtype=self._dtype(x, *stored), residual=residual), state
        first = state.get(self.ema_first_time_index)
        _, batch = self._statistics(x, None, self._dtype(x), stored[0])
        average = self._averages(stored, batch)
        mean, var = (
            jnp.where(first, new.astype(a.dtype), a) for new, a in zip((batch.mean, batch.var), average, strict=True)
        )
        state = state.set(self.ema_first_time_index, jnp.array(False))
        y = self._normalize_by(x, mean, var, dtype=self._dtype(x, mean, var), residual=residual)
        return y, state.set(self.ema_state_index, (mean, var))

    def _averages(self, stored: tuple[jax.Array, jax.Array], batch: Batch) -> tuple[jax.Array, ...]:
        return tuple(
            running_average(self.momentum, old, new, batch.counted, old.dtype)
            for old, new in zip(stored, (batch.mean, batch.var), strict=True)
        )

    def _statistics(
        self, x: jax.Array, activation: str | None, dtype: Any, assumed_mean: jax.Array, residual: Any = None
    ) -> tuple[jax.Array, Batch]:
        return normalize_by_batch(
            x,
            self.weight,
            self.bias,
            (0,),
            eps=self.eps,
            dtype=dtype,
            activation=activation,
            residual=residual,
            axis_name=self.axis_name,
            assumed_mean=assumed_mean,
            forward_mode=self.forward_mode,
        )

    def _normalize_by(self, x: jax.Array, mean: jax.Array, var: jax.Array, *, dtype: Any, residual: Any) -> jax.Array:
        return normalize_by_given(
            x,
            self.weight,
            self.bias,
            mean,
            var,
            (0,),
            eps=self.eps,
            dtype=dtype,
            activation=self.activation,
            residual=residual,
        )

    def _dtype(self, x: jax.Array, *statistics: jax.Array) -> Any:
        """The dtype of y: the common one of all arguments, by JAX's current promotion rules."""
        arrays = (x, *statistics, self.weight, self.bias)
        dtype = jnp.result_type(*(a for a in arrays if a is not None))
        return dtype if jnp.issubdtype(dtype, jnp.floating) else promote(dtype, jnp.float32)


def _of_class(ours: Any, old: Any, **added: Any) -> Any:
    """A layer with the fields of `old`, of the class of Equinox's that `ours` is made of, and those added."""
    new = object.__new__(ours)
    fields = {field.name: getattr(old, field.name) for field in dataclasses.fields(old) if field.name not in added}
    for name, value in {**fields, **added}.items():
        object.__setattr__(new, name, value)  # modules are frozen after their __init__
    return new


# What `patch` replaces: Equinox's, and ours.
_REPLACED: dict[Any, Any] = {
    _EquinoxBatchNorm: BatchNorm,
    eqx.nn.LayerNorm: LayerNorm,
    eqx.nn.GroupNorm: GroupNorm,
    eqx.nn.RMSNorm: RMSNorm,
    eqx.nn.AvgPool1d: AvgPool1d,
    eqx.nn.AvgPool2d: AvgPool2d,
    eqx.nn.AvgPool3d: AvgPool3d,
    eqx.nn.MaxPool1d: MaxPool1d,
    eqx.nn.MaxPool2d: MaxPool2d,
    eqx.nn.MaxPool3d: MaxPool3d,
    eqx.nn.AdaptiveAvgPool1d: AdaptiveAvgPool1d,
    eqx.nn.AdaptiveAvgPool2d: AdaptiveAvgPool2d,
    eqx.nn.AdaptiveAvgPool3d: AdaptiveAvgPool3d,
    eqx.nn.AdaptiveMaxPool1d: AdaptiveMaxPool1d,
    eqx.nn.AdaptiveMaxPool2d: AdaptiveMaxPool2d,
    eqx.nn.AdaptiveMaxPool3d: AdaptiveMaxPool3d,
}
# How `convert` makes a layer of ours from one of Equinox's.
_CONVERTED: dict[type, Callable[[Any], Any]] = {
    **{theirs: partial(_of_class, ours) for theirs, ours in _REPLACED.items()},
    _EquinoxBatchNorm: BatchNorm.like,
}
Model = TypeVar("Model")


def patch(*modules: ModuleType) -> Patch:
    """Put our norms and pools in the place of Equinox's, for models that cannot be edited.

    As `bnderiv.linen.patch`, for `equinox.nn`. Build the model within: a layer keeps the class it was made of.

    Example:
      >>> import bnderiv.equinox, equinox
      >>> with bnderiv.equinox.patch():
      ...     print(equinox.nn.BatchNorm.__module__)
      bnderiv.equinox
    """
    return Patch("equinox", _REPLACED, modules)


def convert(model: Model) -> Model:
    """A built model with our layers in the place of Equinox's, with its weights; its `State` goes on as it is.

    Args:
      model: any pytree of modules, trained or not; an optimizer's state, too.

    Returns:
      A model of the same structure.

    Raises:
      ValueError: the model has no norm or pool of Equinox.

    Example:
      >>> import bnderiv.equinox, equinox
      >>> model, state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(2, "batch", mode="batch")
      >>> type(bnderiv.equinox.convert(model)).__module__
      'bnderiv.equinox'
    """
    found = 0

    def ours(a: Any) -> Any:
        nonlocal found
        if type(a) not in _CONVERTED:
            return a
        found += 1
        return _CONVERTED[type(a)](a)

    converted = jax.tree.map(ours, model, is_leaf=lambda a: type(a) in _CONVERTED)
    if not found:
        raise ValueError(f"{type(model).__name__} has no layer of Equinox that bnderiv.equinox has")
    return converted
