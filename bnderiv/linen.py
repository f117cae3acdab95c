"""Norms and pooling for Flax linen, under Flax's names: change the import, keep the model and its checkpoints."""

from typing import Any

import jax
import jax.numpy as jnp

from bnderiv.adapters.batch_norm import (
    feature_axes,
    normalize_by_batch,
    normalize_by_given,
    promote,
    real_array,
    running_average,
)
from bnderiv.adapters.flax_pooling import avg_pool, max_pool

try:
    import flax.linen as nn
    from flax.linen.dtypes import canonicalize_dtype
except ImportError as error:
    raise ImportError('bnderiv.linen needs Flax: pip install "bnderiv[flax]"') from error

from bnderiv.adapters.linen_norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm

__all__ = ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "avg_pool", "max_pool"]


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` computed by `bnderiv.batch_norm`: its arguments, defaults, variables, shapes and dtypes.

    Variables are 'scale' and 'bias' in 'params', 'mean' and 'var' (biased, as Flax stores it) in 'batch_stats', all in
    the shape of the feature axes. Checkpoints of either load into the other. Differences from Flax:

    * Statistics and gradient are right at any mean and scale. The gradient is the closed form and saves only x and
      vectors. Forward-mode differentiation is not defined.
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
      others: as in `flax.linen.BatchNorm`. `axis` and `axis_name` may be tuples.

    Example:
      >>> import bnderiv.linen, jax, jax.numpy as jnp
      >>> model = bnderiv.linen.BatchNorm(use_running_average=False, momentum=0.5)
      >>> x = jnp.array([[1.0, 4.0], [3.0, 8.0]], jnp.float32)
      >>> y, updated = model.apply(model.init(jax.random.key(0), x), x, mutable=["batch_stats"])
      >>> y.round(2).tolist(), updated["batch_stats"]["mean"].tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [1.0, 3.0])
    """

    activation: str | None = None

    @nn.compact
    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: Any = None, residual: Any = None
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
            ReLU, an unknown activation.
        """
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

        initializing = self.is_initializing()  # no map has axis_name yet, and the running statistics stay
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
        )
        if not initializing:
            computed = x.dtype if self.dtype is None else self.dtype
            computed = promote(computed, jnp.float32) if self.force_float32_reductions else computed
            for running, new in ((mean, batch.mean), (var, batch.var)):
                dtype = promote(running.value.dtype, computed)
                running.value = running_average(self.momentum, running.value, new, batch.counted, dtype)
        return y
