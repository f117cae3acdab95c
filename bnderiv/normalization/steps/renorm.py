"""Batch renormalization (derivation.md, C.7)."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv.normalization.steps import fields as f
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather


@derivation
class BatchRenorm(NamedTuple):
    """The steps of `batch_renorm` (N37): batch norm with r and d, which are constants on the way back.

    `where` and `count` are None without a mask; `m_bar`, `v_bar`, `d_var_total` and `d_mu_total` without a loss on the
    returned statistics.
    """

    x: f.Input
    gamma: f.Gamma
    beta: f.Beta
    mean: Annotated[jax.Array, "μ_c", "(C,)", INPUT, "running mean"]
    var: Annotated[jax.Array, "σ²_c", "(C,)", INPUT, "running variance"]
    dy: f.FromAbove
    r_max: Annotated[jax.Array, "r_max", "()", INPUT, "limit of r, to both sides of 1"]
    d_max: Annotated[jax.Array, "d_max", "()", INPUT, "limit of d, to both sides of 0"]
    eps: Annotated[jax.Array, "ε", "()", INPUT, "added to both variances"]
    channel_axis: f.ChannelAxis
    where: f.Mask
    m_bar: f.AtReturnedMean
    v_bar: f.AtReturnedVariance
    count: f.Count
    mu: Annotated[jax.Array, "μ_B", "(C,)", "(N1)", "mean of the batch"]
    batch_var: Annotated[jax.Array, "σ²_B", "(C,)", "(N2)", "biased variance of the batch"]
    inv_std: Annotated[jax.Array, "(σ²_B+ε)^−½", "(C,)", "(N3)", "inverse deviation of the batch"]
    x_hat: f.Normalized
    running_std: Annotated[jax.Array, "√(σ²+ε)", "(C,)", "(N37)", "running deviation"]
    r: Annotated[jax.Array, "r = √(σ²_B+ε)/√(σ²+ε)", "(C,)", "(N37)", "ratio of the deviations, clipped"]
    d: Annotated[jax.Array, "d = (μ_B−μ)/√(σ²+ε)", "(C,)", "(N37)", "difference of the means, clipped"]
    corrected: Annotated[jax.Array, "x̂ r + d", "as x", "(N37)", "corrected input"]
    y: Annotated[jax.Array, "y = γ (x̂ r + d) + β", "as x", "(N37)", "output"]
    d_gamma: Annotated[jax.Array, "∂J/∂γ_c = Σ δ (x̂ r + d)", "(C,)", "(N37)", "gradient of gamma"]
    d_beta: f.GradientOfBeta
    d_x_hat: Annotated[jax.Array, "∂J/∂x̂ = γ r δ", "as x", "(N37)", "gradient w.r.t. the normalized input"]
    d_var: Annotated[jax.Array, "∂J/∂σ²_B", "(C,)", "(N8)", "gradient w.r.t. the batch's variance; none goes through r"]
    d_eps: f.AtEpsilon
    d_mu: Annotated[jax.Array, "∂J/∂μ_B", "(C,)", "(N10)", "gradient w.r.t. the batch's mean; none goes through d"]
    d_var_total: f.TotalAtTheVariance
    d_mu_total: f.TotalAtTheMean
    dx_through_x_hat: f.ThroughXHat
    dx_through_mu: f.ThroughMu
    dx_through_var: f.ThroughVar
    dx: f.GradientOfX


def batch_renorm(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    dy: ArrayLike,
    *,
    r_max: ArrayLike = 3.0,
    d_max: ArrayLike = 5.0,
    channel_axis: int = -1,
    eps: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    m_bar: ArrayLike | None = None,
    v_bar: ArrayLike | None = None,
) -> BatchRenorm:
    """Batch norm corrected by r and d (N37). Arguments and errors as in `batch_norm`, and as in the layer.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> gamma, beta, mean, var = (jnp.array([number]) for number in (2.0, 0.0, 1.0, 13.0))
      >>> x, dy = jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [0.0]])
      >>> s = bnderiv.steps.batch_renorm(x, gamma, beta, mean, var, dy, eps=3.0)
      >>> s.r.tolist(), s.d.tolist(), s.y.tolist(), s.dx.tolist()
      ([0.5], [0.25], [[0.0], [1.0]], [[0.1875], [-0.1875]])
    """
    x, gamma, beta, mean, var, dy = arrays(x=x, gamma=gamma, beta=beta, mean=mean, var=var, dy=dy)
    others, lay = f.channels(x, channel_axis, gamma=gamma, beta=beta, mean=mean, var=var)
    eps, r_max, d_max = f.number(eps, x), f.number(r_max, x, "r_max"), f.number(d_max, x, "d_max")
    dy = cotangent(dy, x)
    kept = f.counted(where, x, others)
    where, count, n = kept.w, kept.count, kept.n

    mu = kept.total(x) / n  # (N1)
    batch_var = kept.total((x - lay(mu)) ** 2) / n  # (N2)
    inv_std = 1 / jnp.sqrt(batch_var + eps)
    x_hat = (x - lay(mu)) * lay(inv_std)  # (N3)
    running_std = jnp.sqrt(var + eps)
    r = jnp.clip(1 / (inv_std * running_std), 1 / r_max, r_max)  # (N37), as the next lines
    d = jnp.clip((mu - mean) / running_std, -d_max, d_max)
    corrected = x_hat * lay(r) + lay(d)
    y = lay(gamma) * corrected + lay(beta)

    d_gamma = (dy * kept.known(corrected)).sum(others)  # (N37)
    d_beta = dy.sum(others)  # (N6)
    d_x_hat = lay(gamma * r) * dy  # (N37)
    d_var = -0.5 * inv_std**3 * (d_x_hat * kept.known(x - lay(mu))).sum(others)  # (N8)
    d_eps = d_var.sum()  # (N8); r and d are constants
    d_mu = -inv_std * d_x_hat.sum(others)  # (N10)
    at_var, at_mu, d_var_total, d_mu_total = d_var, d_mu, None, None
    m_bar, v_bar = f.at_returned(m_bar, v_bar, mu)
    if m_bar is not None and v_bar is not None:
        at_var = d_var_total = d_var + v_bar  # (N13)
        at_mu = d_mu_total = d_mu + m_bar  # (N13)
    dx_through_x_hat = lay(inv_std) * d_x_hat  # (N11), part 1
    dx_through_mu = kept.masked(jnp.broadcast_to(lay(at_mu / n), x.shape))  # (N11), part 2; (N24): where w = 1
    dx_through_var = kept.masked(lay(at_var / n) * 2 * (x - lay(mu)))  # (N11), part 3; (N24): where w = 1
    dx = dx_through_x_hat + dx_through_mu + dx_through_var  # (N11)
    return gather(BatchRenorm, locals())
