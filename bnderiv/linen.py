"""Batch norm and pooling for Flax linen, under Flax's names: change the import, keep the model and its checkpoints."""

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

__all__ = ["BatchNorm", "avg_pool", "max_pool"]


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` computed by `bnderiv.batch_norm`: its arguments, defaults, variables, shapes and dtypes.

    Variables: 'scale' and 'bias' in 'params', 'mean' and 'var' (biased, as Flax stores it) in 'batch_stats', all in
    the shape of the feature axes; so checkpoints of either load into the other. What is other than in Flax:

    * The statistics are right at any mean and scale, and so is the gradient, whose rule is the closed form; only x
      and vectors are saved for it. Forward-mode differentiation is not defined.
    * Masked and over `axis_name`, means are taken over all elements by true counts, not as means of means. Features
      of which no element counts keep their running statistics.
    * Half precision is always computed in float32.
    * Complex input is refused. With an infinite running variance y is NaN.

    Attributes:
      use_fast_variance: accepted without effect: there is no naive variance here.
      force_float32_reductions: has its effect on the dtype of the running statistics alone.
      activation: None, or "relu" to apply it within the same rule, which then saves no more than without.
      others: as in `flax.linen.BatchNorm`. `axis` may be a tuple, `axis_name` too.
    """

    activation: str | None = None

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> jax.Array:
        """Normalizes `x` by its own statistics, or by the running ones.

        Args:
          x: the input, real; any rank that has the feature axes.
          use_running_average: whether to use the running statistics; here or in the constructor.
          mask: broadcasts to `x`, False where an element is not to count. Such elements are normalized all the same.

        Returns:
          An array of the shape of `x`, in `dtype`, by default that of `x` and the parameters together.

        Raises:
          TypeError: complex `x`.
          ValueError: an axis out of range, a mask that does not broadcast, an unknown activation.
        """
        use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        x = real_array("bnderiv.linen.BatchNorm", x)
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
                x, scale, bias, mean.value, var.value, axes, eps=self.epsilon, dtype=dtype, activation=self.activation
            )

        initializing = self.is_initializing()  # then no axis_name need exist, and nothing is recorded
        y, batch = normalize_by_batch(
            x,
            scale,
            bias,
            axes,
            eps=self.epsilon,
            dtype=dtype,
            activation=self.activation,
            mask=mask,
            axis_name=None if initializing else self.axis_name,
            axis_index_groups=None if initializing else self.axis_index_groups,
        )
        if not initializing:
            computed = x.dtype if self.dtype is None else self.dtype
            computed = promote(computed, jnp.float32) if self.force_float32_reductions else computed
            for running, new in ((mean, batch.mean), (var, batch.var)):
                dtype = promote(running.value.dtype, computed)
                running.value = running_average(self.momentum, running.value, new, batch.counted, dtype)
        return y
