"""Group and instance norm, step by step (derivation.md, N32–N34): layer norm's lines over parts of an example."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv.normalization.steps.fields import ChannelAxis, Epsilon, FromAbove, Input, Mask, number
from bnderiv.normalization.steps.layer_norm import (
    AtEpsilon,
    AtTheMean,
    AtTheVariance,
    AtXHat,
    Beta,
    Count,
    Gamma,
    GradientOfBeta,
    GradientOfGamma,
    GradientOfX,
    InverseDeviation,
    Mean,
    Normalized,
    Output,
    ThroughMu,
    ThroughVar,
    ThroughXHat,
    Variance,
    arguments,
    by_own_statistics,
)
from bnderiv.steps.table import arrays, derivation, gather


@derivation
class GroupNorm(NamedTuple):
    """The steps of `group_norm`: S is (N, groups)."""

    x: Input
    gamma: Gamma
    beta: Beta
    dy: FromAbove
    eps: Epsilon
    groups: Annotated[int, "groups of channels"]
    channel_axis: ChannelAxis
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


def group_norm(
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    groups: int,
    dy: ArrayLike,
    *,
    channel_axis: int = -1,
    eps: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
) -> GroupNorm:
    """Group norm and its gradient: x gets an axis for the groups. Other arguments and errors as in `layer_norm`.

    Args:
      groups: the number of groups, a divisor of C.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, dy = jnp.array([[1.0, 3.0, 5.0, 5.0]]), jnp.array([[1.0, 0.0, 0.0, 0.0]])
      >>> s = bnderiv.steps.group_norm(x, jnp.array([2.0, 1.0, 1.0, 1.0]), jnp.zeros(4), 2, dy, eps=3.0)
      >>> s.mu.tolist(), s.dx.tolist()
      ([[2.0, 5.0]], [[0.375, -0.375, 0.0, 0.0]])
    """
    (x,) = arrays(x=x)
    _checks.rank_at_least("x", x, 2, "batch and channels")
    axis = _checks.axis("channel_axis", channel_axis, x.ndim)
    groups = _checks.integer("groups", groups, at_least=1)
    if axis == 0 or x.shape[axis] % groups:
        raise ValueError(f"groups must divide the channels of x, along another axis than the first, got {groups}")
    x, gamma, beta, dy = arguments(x, gamma, beta, dy, (axis,))

    def grouped(a: jax.Array) -> jax.Array:
        return a.reshape(*a.shape[:axis], groups, -1, *a.shape[axis + 1 :])

    over = tuple(i for i in range(1, x.ndim + 1) if i != axis)
    rest = tuple(i for i in range(x.ndim + 1) if i not in (axis, axis + 1))
    of_groups = gamma.reshape(groups, -1), beta.reshape(groups, -1)
    if where is not None:
        where = grouped(jnp.broadcast_to(_checks.mask("where", where, x.shape), x.shape))
    s = by_own_statistics(grouped(x), *of_groups, grouped(dy), number(eps, x), where, over, rest)
    s |= {name: s[name].reshape(gamma.shape) for name in ("gamma", "beta", "d_gamma", "d_beta")}
    s |= {name: s[name].reshape(x.shape) for name in GroupNorm._fields if getattr(s.get(name), "ndim", 0) == x.ndim + 1}
    return gather(GroupNorm, {**s, "groups": groups, "channel_axis": channel_axis})


@derivation
class InstanceNorm(NamedTuple):
    """The steps of `instance_norm`: S is (N, C)."""

    x: Input
    gamma: Gamma
    beta: Beta
    dy: FromAbove
    eps: Epsilon
    channel_axis: ChannelAxis
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


def instance_norm(
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    dy: ArrayLike,
    *,
    channel_axis: int = -1,
    eps: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
) -> InstanceNorm:
    """Instance norm and its gradient. Arguments and errors as in `layer_norm`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, dy = jnp.array([[[1.0], [3.0]]]), jnp.array([[[1.0], [0.0]]])
      >>> s = bnderiv.steps.instance_norm(x, jnp.array([2.0]), jnp.zeros(1), dy, eps=3.0)
      >>> s.mu.tolist(), s.dx.tolist()
      ([[2.0]], [[[0.375], [-0.375]]])
    """
    (x,) = arrays(x=x)
    _checks.rank_at_least("x", x, 3, "batch, space and channels")
    axis = _checks.axis("channel_axis", channel_axis, x.ndim)
    over = tuple(i for i in range(1, x.ndim) if i != axis)
    x, gamma, beta, dy = arguments(x, gamma, beta, dy, (axis,))
    computed = by_own_statistics(x, gamma, beta, dy, number(eps, x), where, over, (0, *over))
    return gather(InstanceNorm, {**computed, "channel_axis": channel_axis})
