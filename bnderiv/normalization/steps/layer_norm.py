"""Layer norm, step by step (derivation.md, N32–N34): batch norm's lines over other axes."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv._types import Axes
from bnderiv.normalization.arguments import normalized_axes
from bnderiv.normalization.steps.fields import Epsilon, FromAbove, Mask, counted, number
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather

# What group, instance and RMS norm share. S is the shape of x without the axes of the statistics.
Gamma = Annotated[jax.Array, "γ", "(C,)", INPUT, "gamma"]
Beta = Annotated[jax.Array, "β", "(C,)", INPUT, "beta"]
FeatureAxes = Annotated[tuple[int, ...], "the axes of the statistics, of gamma and of beta"]
Count = Annotated[jax.Array | None, "n = Σ w", "S", "(N24)", "elements of each group that count; None without a mask"]
Mean = Annotated[jax.Array, "μ", "S", "(N32)", "mean of each group"]
Variance = Annotated[jax.Array, "σ²", "S", "(N32)", "biased variance of each group, divided by n"]
InverseDeviation = Annotated[jax.Array, "r = (σ²+ε)^−½", "S", "(N33)", "inverse deviation"]
Normalized = Annotated[jax.Array, "x̂ = r (x−μ)", "as x", "(N33)", "normalized input"]
Output = Annotated[jax.Array, "y = γ x̂ + β", "as x", "(N33)", "output"]
GradientOfGamma = Annotated[jax.Array, "∂J/∂γ", "as γ", "(N34)", "gradient of gamma: a sum over other axes than μ's"]
GradientOfBeta = Annotated[jax.Array, "∂J/∂β", "as β", "(N34)", "gradient of beta"]
AtXHat = Annotated[jax.Array, "ĝ = ∂J/∂x̂ = γ δ", "as x", "(N7)", "gradient w.r.t. the normalized input"]
AtTheVariance = Annotated[jax.Array, "∂J/∂σ²", "S", "(N8)", "gradient w.r.t. the variance"]
AtEpsilon = Annotated[jax.Array, "∂J/∂ε = Σ ∂J/∂σ²", "()", "(N8)", "gradient w.r.t. ε, which all groups share"]
AtTheMean = Annotated[jax.Array, "∂J/∂μ", "S", "(N10)", "gradient w.r.t. the mean; the path through σ² is 0 (N9)"]
ThroughXHat = Annotated[jax.Array, "∂J/∂x̂ · ∂x̂/∂x", "as x", "(N11), 1", "first part of the gradient"]
ThroughMu = Annotated[jax.Array, "∂J/∂μ · ∂μ/∂x", "as x", "(N11), 2", "second part, one number for each group"]
ThroughVar = Annotated[jax.Array, "∂J/∂σ² · ∂σ²/∂x", "as x", "(N11), 3", "third part"]
GradientOfX = Annotated[jax.Array, "∂J/∂x", "as x", "(N34)", "gradient of the input, the sum of the parts"]


@derivation
class LayerNorm(NamedTuple):
    """The steps of `layer_norm`."""

    x: Annotated[jax.Array, "x", "(..., C)", INPUT, "input"]
    gamma: Gamma
    beta: Beta
    dy: FromAbove
    eps: Epsilon
    axis: FeatureAxes
    where: Mask
    count: Count
    mu: Mean
    var: Variance
    inv_std: InverseDeviation
    x_hat: Normalized
    y: Output
    d_gamma: GradientOfGamma
    d_beta: GradientOfBeta
    d_x_hat: AtXHat
    d_var: AtTheVariance
    d_eps: AtEpsilon
    d_mu: AtTheMean
    dx_through_x_hat: ThroughXHat
    dx_through_mu: ThroughMu
    dx_through_var: ThroughVar
    dx: GradientOfX


def layer_norm(
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    dy: ArrayLike,
    *,
    axis: Axes = -1,
    eps: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
) -> LayerNorm:
    """Layer norm and its gradient, one line for each line of the derivation (part D).

    Args:
      x: floating dtype (half precision is computed in float32).
      gamma, beta: γ and β, the shape of x along `axis`. None stands for 1 and 0.
      dy: δ = ∂J/∂y, the gradient from above, shape of x.
      axis: the axis of the features, or several.
      eps: ε, added to the variance.
      where: w, booleans that broadcast to x: which elements count in the statistics (C.3). None: all.

    Returns:
      `LayerNorm`, fields in the order of the derivation.

    Raises:
      TypeError: an argument without floating dtype, or a `where` that is not boolean.
      ValueError: shapes that do not fit, an axis out of range, an empty `x`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, dy = jnp.array([[1.0, 3.0]]), jnp.array([[1.0, 0.0]])
      >>> s = bnderiv.steps.layer_norm(x, jnp.array([2.0, 1.0]), jnp.zeros(2), dy, eps=3.0)
      >>> s.inv_std.tolist(), s.d_var.tolist(), s.dx.tolist()
      ([0.5], [0.125], [[0.375, -0.375]])
    """
    (x,) = arrays(x=x)
    axes = normalized_axes(axis, x.ndim)
    rest = tuple(i for i in range(x.ndim) if i not in axes)
    x, gamma, beta, dy = arguments(x, gamma, beta, dy, axes)
    computed = by_own_statistics(x, gamma, beta, dy, number(eps, x), where, axes, rest)
    return gather(LayerNorm, {**computed, "axis": axes})


def by_own_statistics(x, gamma, beta, dy, eps, where, over, rest):
    """The derivation: μ and σ² over the axes `over`; γ and β along all axes but `rest`."""
    kept = counted(where, x, over)
    where, count, n = kept.w, kept.count, kept.n

    def lay(statistic: jax.Array) -> jax.Array:
        return jnp.expand_dims(statistic, over)

    g, b = (jnp.expand_dims(a, rest) for a in (gamma, beta))

    mu = kept.total(x) / n  # (N32)
    var = kept.total((x - lay(mu)) ** 2) / n  # (N32)
    inv_std = 1 / jnp.sqrt(var + eps)
    x_hat = (x - lay(mu)) * lay(inv_std)  # (N33)
    y = g * x_hat + b  # (N33)

    d_gamma = (dy * kept.known(x_hat)).sum(rest)  # (N34)
    d_beta = dy.sum(rest)  # (N34)
    d_x_hat = g * dy  # (N7)
    d_var = -0.5 * inv_std**3 * (d_x_hat * kept.known(x - lay(mu))).sum(over)  # (N8)
    d_eps = d_var.sum()  # (N8)
    d_mu = -inv_std * d_x_hat.sum(over)  # (N10)
    dx_through_x_hat = lay(inv_std) * d_x_hat  # (N11), part 1
    dx_through_mu = kept.masked(jnp.broadcast_to(lay(d_mu / n), x.shape))  # (N11), part 2; (N24): where w = 1
    dx_through_var = kept.masked(lay(d_var / n) * 2 * (x - lay(mu)))  # (N11), part 3; (N24): where w = 1
    dx = dx_through_x_hat + dx_through_mu + dx_through_var  # (N34)
    return locals()


def arguments(x: jax.Array, gamma: Any, beta: Any, dy: Any, axes: tuple[int, ...]) -> list[jax.Array]:
    """x, γ, β and δ in one dtype; γ and β of the shape of x along `axes`."""
    shape = tuple(x.shape[a] for a in axes)
    gamma = jnp.ones(shape, x.dtype) if gamma is None else gamma
    beta = jnp.zeros(shape, x.dtype) if beta is None else beta
    x, gamma, beta, dy = arrays(x=x, gamma=gamma, beta=beta, dy=dy)
    for name, value in (("gamma", gamma), ("beta", beta)):
        _checks.shape_is(name, value, shape, "that of x along the axes of gamma and beta")
    return [x, gamma, beta, cotangent(dy, x)]
