"""The gradient of batch norm in three parts (derivation.md, part A), with or without a ReLU behind it (C.1)."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv.normalization.steps import fields as f
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather


@derivation
class BatchNorm(NamedTuple):
    """The steps of `batch_norm`: forward (N1)–(N4), backward (N5)–(N11); with a mask (N24), as w in sums and shares.

    `where` and `count` are None without a mask; `m_bar`, `v_bar`, `d_var_total` and `d_mu_total` without a loss on the
    returned statistics.
    """

    x: f.Input
    gamma: f.Gamma
    beta: f.Beta
    dy: f.FromAbove
    eps: f.Epsilon
    channel_axis: f.ChannelAxis
    where: f.Mask
    m_bar: f.AtReturnedMean
    v_bar: f.AtReturnedVariance
    count: f.Count
    mu: f.Mean
    var: f.Variance
    inv_std: f.InverseDeviation
    x_hat: f.Normalized
    y: Annotated[jax.Array, "y = γ x̂ + β", "as x", "(N4)", "output"]
    d_gamma: f.GradientOfGamma
    d_beta: f.GradientOfBeta
    d_x_hat: Annotated[jax.Array, "∂J/∂x̂ = γ δ", "as x", "(N7)", "gradient w.r.t. the normalized input"]
    d_var: f.AtTheVariance
    d_eps: f.AtEpsilon
    d_mu: f.AtTheMean
    d_var_total: f.TotalAtTheVariance
    d_mu_total: f.TotalAtTheMean
    dx_through_x_hat: f.ThroughXHat
    dx_through_mu: f.ThroughMu
    dx_through_var: f.ThroughVar
    dx: f.GradientOfX


def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    dy: ArrayLike,
    *,
    channel_axis: int = -1,
    eps: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    m_bar: ArrayLike | None = None,
    v_bar: ArrayLike | None = None,
) -> BatchNorm:
    """Batch norm and its gradient, one line for each line of the derivation (part A).

    Args:
      x: shape (..., C, ...), rank 2 or more, floating dtype (half precision is computed in float32).
      gamma, beta: γ and β, shape (C,).
      dy: δ = ∂J/∂y, the gradient from above, shape of x.
      channel_axis: where C is in `x`.
      eps: ε, added to the variance.
      where: w, booleans that broadcast to x: which elements count in the statistics (C.3). None: all.
      m_bar, v_bar: ∂J/∂(the returned mean and variance), shape (C,), for a loss on them as well (A.11). None: none.

    Returns:
      `BatchNorm`, fields in the order of the derivation.

    Raises:
      TypeError: an argument without floating dtype, or a `where` that is not boolean.
      ValueError: shapes that do not fit, an axis out of range, an empty `x`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, dy = jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [0.0]])
      >>> s = bnderiv.steps.batch_norm(x, jnp.array([2.0]), jnp.array([0.0]), dy, eps=3.0)
      >>> s.inv_std.tolist(), s.d_var.tolist(), s.dx.tolist()
      ([0.5], [0.125], [[0.375], [-0.375]])
    """
    x, gamma, beta, dy = arrays(x=x, gamma=gamma, beta=beta, dy=dy)
    others, lay = f.channels(x, channel_axis, gamma=gamma, beta=beta)
    eps = f.number(eps, x)
    dy = cotangent(dy, x)
    kept = f.counted(where, x, others)
    where, count, n = kept.w, kept.count, kept.n  # n: the M = m·p·q elements of a channel, or those that count

    mu = kept.total(x) / n  # (N1)
    var = kept.total((x - lay(mu)) ** 2) / n  # (N2)
    inv_std = 1 / jnp.sqrt(var + eps)
    x_hat = (x - lay(mu)) * lay(inv_std)  # (N3), at masked places too
    y = lay(gamma) * x_hat + lay(beta)  # (N4)

    d_gamma = (dy * kept.known(x_hat)).sum(others)  # (N5)
    d_beta = dy.sum(others)  # (N6)
    d_x_hat = lay(gamma) * dy  # (N7)
    d_var = -0.5 * inv_std**3 * (d_x_hat * kept.known(x - lay(mu))).sum(others)  # (N8)
    d_eps = d_var.sum()  # (N8): ε stands beside every σ²_c, and nowhere else
    d_mu = -inv_std * d_x_hat.sum(others)  # (N10): the way through σ² is 0 by (N9)
    at_var, at_mu, d_var_total, d_mu_total = d_var, d_mu, None, None
    m_bar, v_bar = f.at_returned(m_bar, v_bar, mu)
    if m_bar is not None and v_bar is not None:
        at_var = d_var_total = d_var + v_bar  # (N13)
        at_mu = d_mu_total = d_mu + m_bar  # (N13)
    dx_through_x_hat = lay(inv_std) * d_x_hat  # (N11), part 1
    dx_through_mu = kept.masked(jnp.broadcast_to(lay(at_mu / n), x.shape))  # (N11), part 2; (N24): where w = 1
    dx_through_var = kept.masked(lay(at_var / n) * 2 * (x - lay(mu)))  # (N11), part 3; (N24): where w = 1
    dx = dx_through_x_hat + dx_through_mu + dx_through_var  # (N11)
    return gather(BatchNorm, locals())


@derivation
class BatchNormRelu(NamedTuple):
    """The steps of `batch_norm_relu`: those of `batch_norm` with δ_y in the place of δ (N22).

    `residual`, `total` and `d_residual` are None where there is no residual.
    """

    x: f.Input
    gamma: f.Gamma
    beta: f.Beta
    dy: Annotated[jax.Array, "δ_a = ∂J/∂a", "as x", INPUT, "gradient from above"]
    eps: f.Epsilon
    channel_axis: f.ChannelAxis
    where: f.Mask
    m_bar: f.AtReturnedMean
    v_bar: f.AtReturnedVariance
    residual: Annotated[jax.Array | None, "z", "as x", INPUT, "residual, added before the ReLU"]
    count: f.Count
    mu: f.Mean
    var: f.Variance
    inv_std: f.InverseDeviation
    x_hat: f.Normalized
    y: Annotated[jax.Array, "y = γ x̂ + β", "as x", "(N4)", "output of batch norm"]
    total: Annotated[jax.Array | None, "t = y + z", "as x", "(N31)", "what the ReLU sees, with a residual"]
    a: Annotated[jax.Array, "a = max(t, 0)", "as x", "(N22), (N31)", "output; t = y without a residual"]
    d_y: Annotated[jax.Array, "δ_y = δ_a [t > 0]", "as x", "(N22), (N31)", "gradient w.r.t. y; 0 where t is 0"]
    d_residual: Annotated[jax.Array | None, "∂J/∂z = δ_y", "as x", "(N31)", "gradient of the residual"]
    d_gamma: f.GradientOfGamma
    d_beta: f.GradientOfBeta
    d_x_hat: Annotated[jax.Array, "∂J/∂x̂ = γ δ_y", "as x", "(N7)", "gradient w.r.t. the normalized input"]
    d_var: f.AtTheVariance
    d_eps: f.AtEpsilon
    d_mu: f.AtTheMean
    d_var_total: f.TotalAtTheVariance
    d_mu_total: f.TotalAtTheMean
    dx_through_x_hat: f.ThroughXHat
    dx_through_mu: f.ThroughMu
    dx_through_var: f.ThroughVar
    dx: f.GradientOfX


def batch_norm_relu(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    dy: ArrayLike,
    *,
    residual: ArrayLike | None = None,
    channel_axis: int = -1,
    eps: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    m_bar: ArrayLike | None = None,
    v_bar: ArrayLike | None = None,
) -> BatchNormRelu:
    """`batch_norm`, then a ReLU (N22), before which a residual z may be added (N31): shape of x, floating dtype.

    The other arguments and the errors are those of `batch_norm`; `dy` is ∂J/∂a.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, dy = jnp.array([[1.0], [3.0]]), jnp.array([[7.0], [5.0]])
      >>> s = bnderiv.steps.batch_norm_relu(x, jnp.array([2.0]), jnp.array([0.0]), dy, eps=3.0)
      >>> s.a.tolist(), s.d_y.tolist()
      ([[0.0], [1.0]], [[0.0], [5.0]])
    """
    forward = batch_norm(x, gamma, beta, dy, channel_axis=channel_axis, eps=eps, where=where)
    t, dy, total = forward.y, forward.dy, None
    if residual is not None:
        residual = _checks.float_array("residual", residual).astype(t.dtype)
        _checks.shape_is("residual", residual, t.shape, "that of x")
        t = total = forward.y + residual  # (N31)
    a = jnp.where(t > 0, t, 0)
    d_y = jnp.where(t > 0, dy, 0)  # (N22), (N31)
    d_residual = None if residual is None else d_y  # (N31)
    options = {"channel_axis": channel_axis, "eps": eps, "where": where, "m_bar": m_bar, "v_bar": v_bar}
    through = batch_norm(x, gamma, beta, d_y, **options)  # δ_y in the place of δ
    own = {"dy": dy, "residual": residual, "total": total, "a": a, "d_y": d_y, "d_residual": d_residual}
    return gather(BatchNormRelu, {**through._asdict(), **own})
