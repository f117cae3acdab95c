"""Layer normalization: the sums of batch norm, over the features of each example (derivation.md, N32–N34)."""

import jax

from bnderiv import _checks
from bnderiv._rule import layer
from bnderiv._types import Axes
from bnderiv.normalization.arguments import epsilon, laid, normalized_axes, parameter
from bnderiv.normalization.batch_norm import moments_of
from bnderiv.normalization.groups import Affine, Groups
from bnderiv.normalization.normalize import normalize
from bnderiv.normalization.units import Epsilon


def layer_norm(
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    *,
    axis: Axes = -1,
    eps: float | jax.Array = 1e-5,
    where: jax.Array | None = None,
) -> jax.Array:
    """Normalizes each example by the statistics of its own features: y = γ (x − μ)/√(σ² + ε) + β.

    μ and the biased σ² are taken over `axis`, separately at every place of the other axes. With ĝ = γ δ, δ = ∂J/∂y,
    and the means over `axis`,

        ∂J/∂x = 1/√(σ²+ε) · (ĝ − mean ĝ − x̂ · mean(ĝ x̂)),   ∂J/∂γ = Σ δ x̂,   ∂J/∂β = Σ δ

    (derivation.md, N34). γ stands inside the means, as it differs along `axis`; the sums for γ and β are over the other
    axes. In float32, y and ∂J/∂x are right to 2e-7 at any mean and scale that the dtype holds, or to 1e-6 if all but a
    few features are equal (C.4). NaN and infinity stay in their example.

    Args:
      x: rank 1 or more, floating dtype. Half precision is computed in float32.
      gamma: γ, the shape of x along `axis`: (C,) for one axis. None stands for 1.
      beta: β, likewise. None stands for 0.
      axis: the axis of the features, or several.
      eps: ε, added to the variance; at least 0.
      where: booleans that broadcast to `x`. Elements where it is False do not count in the statistics, whatever they
        hold. y there is the same map of x, and its cotangent flows like any other; where that x is not finite, a zero
        cotangent contributes zero to every gradient.

    Returns:
      y, in the shape and dtype of `x`.

    Raises:
      TypeError: a dtype that is not floating, or `where` not boolean.
      ValueError: shapes that do not fit, an axis out of range or named twice, an empty `x`, a negative `eps`.

    Example:
      >>> x = jnp.array([[10000.0, 10002.0], [1.0, 3.0]])
      >>> bnderiv.layer_norm(x, jnp.array([1.0, 2.0]), None, eps=0).tolist()
      [[-1.0, 2.0], [-1.0, 2.0]]
    """
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 1, "features")
    _checks.nonempty("x", x)
    axes = normalized_axes(axis, x.ndim)
    gamma, beta = parameter("gamma", gamma, x, axes, 1), parameter("beta", beta, x, axes, 0)
    if where is not None:
        where = _checks.mask("where", where, x.shape)
    return _layer_norm(axes, x, where, gamma, beta, *epsilon(eps, x))


@layer(static=1, result=lambda axes, x, *_: x)
def _layer_norm(axes, x, where, gamma, beta, eps, root):
    groups = Groups(both=(), statistics=axes, parameters=tuple(i for i in range(x.ndim) if i not in axes))
    affine = Affine(laid(x, axes, gamma), laid(x, axes, beta))
    return by_own_statistics(groups, x, where, affine, Epsilon(eps, root))


def by_own_statistics(groups: Groups, x: jax.Array, where: jax.Array | None, affine: Affine, eps: Epsilon) -> jax.Array:
    """x, normalized by statistics that are used for nothing else."""
    _, moments = moments_of(groups, x, where, eps, None, None, None)
    return normalize(groups, False, x, where, affine, eps, moments)
