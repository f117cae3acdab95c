"""RMS norm, step by step (derivation.md, N35, N36): no mean, and a mean square in place of the variance."""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv._types import Axes
from bnderiv.normalization.arguments import normalized_axes
from bnderiv.normalization.steps.fields import Epsilon, FromAbove, number
from bnderiv.normalization.steps.layer_norm import AtXHat, FeatureAxes, Gamma, arguments
from bnderiv.steps.table import INPUT, arrays, derivation, gather


@derivation
class RmsNorm(NamedTuple):
    """The steps of `rms_norm`."""

    x: Annotated[jax.Array, "x", "(..., C)", INPUT, "input"]
    gamma: Gamma
    dy: FromAbove
    eps: Epsilon
    axis: FeatureAxes
    mean_square: Annotated[jax.Array, "q = 1/n Σ x²", "S", "(N35)", "mean square of each group"]
    inv_rms: Annotated[jax.Array, "r = (q+ε)^−½", "S", "(N35)", "inverse root mean square"]
    x_hat: Annotated[jax.Array, "x̂ = r x", "as x", "(N35)", "normalized input"]
    y: Annotated[jax.Array, "y = γ x̂", "as x", "(N35)", "output"]
    d_gamma: Annotated[jax.Array, "∂J/∂γ", "as γ", "(N36)", "gradient of gamma: a sum over other axes than q's"]
    d_x_hat: AtXHat
    d_mean_square: Annotated[jax.Array, "∂J/∂q", "S", "(N36)", "gradient w.r.t. the mean square"]
    d_eps: Annotated[jax.Array, "∂J/∂ε = Σ ∂J/∂q", "()", "(N36)", "gradient w.r.t. ε, which all groups share"]
    dx_through_x_hat: Annotated[jax.Array, "∂J/∂x̂ · ∂x̂/∂x", "as x", "(N36), 1", "first part of the gradient"]
    dx_through_mean_square: Annotated[jax.Array, "∂J/∂q · ∂q/∂x", "as x", "(N36), 2", "second part"]
    dx: Annotated[jax.Array, "∂J/∂x", "as x", "(N36)", "gradient of the input, the sum of the two parts"]


def rms_norm(
    x: ArrayLike, gamma: ArrayLike | None, dy: ArrayLike, *, axis: Axes = -1, eps: ArrayLike = 1e-6
) -> RmsNorm:
    """RMS norm and its gradient. Arguments and errors as in `layer_norm`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, dy = jnp.array([[1.0, -1.0]]), jnp.array([[4.0, 0.0]])
      >>> s = bnderiv.steps.rms_norm(x, jnp.ones(2), dy, eps=3.0)
      >>> s.inv_rms.tolist(), s.d_mean_square.tolist(), s.dx.tolist()
      ([0.5], [-0.25], [[1.75, 0.25]])
    """
    (x,) = arrays(x=x)
    axes = normalized_axes(axis, x.ndim)
    rest = tuple(i for i in range(x.ndim) if i not in axes)
    x, gamma, _, dy = arguments(x, gamma, None, dy, axes)
    axis, eps = axes, number(eps, x)
    n = math.prod(x.shape[i] for i in axes)

    def lay(statistic: jax.Array) -> jax.Array:
        return jnp.expand_dims(statistic, axes)

    g = jnp.expand_dims(gamma, rest)

    mean_square = (x**2).sum(axes) / n  # (N35)
    inv_rms = 1 / jnp.sqrt(mean_square + eps)
    x_hat = x * lay(inv_rms)  # (N35)
    y = g * x_hat  # (N35)

    d_gamma = (dy * x_hat).sum(rest)  # (N36)
    d_x_hat = g * dy  # (N7)
    d_mean_square = -0.5 * inv_rms**3 * (d_x_hat * x).sum(axes)  # (N36)
    d_eps = d_mean_square.sum()  # ε stands beside every q, and nowhere else
    dx_through_x_hat = lay(inv_rms) * d_x_hat  # (N36), part 1
    dx_through_mean_square = lay(d_mean_square) * 2 / n * x  # (N36), part 2
    dx = dx_through_x_hat + dx_through_mean_square  # (N36)
    return gather(RmsNorm, locals())
