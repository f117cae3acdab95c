"""Batch norm as a computation graph, node by node (derivation.md, the third way; with masks C.3)."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv.normalization.steps import fields as f
from bnderiv.steps.table import arrays, cotangent, derivation, gather


@derivation
class BatchNormGraph(NamedTuple):
    """The steps of `batch_norm_graph`: every elementary node, forward and backward. A bar is the gradient of a node.

    With a mask read n for M: nodes 1 and 4 sum over what counts, and hand their gradients back to that alone (N24).
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
    mu: Annotated[jax.Array, "μ = 1/M Σ x", "(C,)", "node 1", "mean; with a mask 1/n Σ w x"]
    c: Annotated[jax.Array, "c = x − μ", "as x", "node 2", "centered input"]
    q: Annotated[jax.Array, "q = c²", "as x", "node 3", "squares"]
    var: Annotated[jax.Array, "σ² = 1/M Σ q", "(C,)", "node 4", "biased variance; with a mask 1/n Σ w q"]
    std: Annotated[jax.Array, "ρ = √(σ²+ε)", "(C,)", "node 5", "deviation"]
    inv_std: Annotated[jax.Array, "r = 1/ρ", "(C,)", "node 6", "inverse deviation"]
    x_hat: Annotated[jax.Array, "x̂ = c r", "as x", "node 7", "normalized input"]
    scaled: Annotated[jax.Array, "γ x̂", "as x", "node 8", "scaled"]
    y: Annotated[jax.Array, "y = γ x̂ + β", "as x", "node 9", "output"]
    d_beta: Annotated[jax.Array, "β̄ = Σ δ", "(C,)", "node 9", "gradient of beta"]
    d_scaled: Annotated[jax.Array, "δ", "as x", "node 9", "a sum passes δ on"]
    d_gamma: Annotated[jax.Array, "γ̄ = Σ δ x̂", "(C,)", "node 8", "gradient of gamma"]
    d_x_hat: Annotated[jax.Array, "x̂̄ = γ δ", "as x", "node 8", "gradient w.r.t. the normalized input"]
    d_inv_std: Annotated[jax.Array, "r̄ = Σ c x̂̄", "(C,)", "node 7", "gradient w.r.t. the inverse deviation"]
    d_c_through_x_hat: Annotated[jax.Array, "r x̂̄", "as x", "node 7", "first path to c"]
    d_std: Annotated[jax.Array, "ρ̄ = −r̄/ρ²", "(C,)", "node 6", "gradient w.r.t. the deviation"]
    d_var: Annotated[jax.Array, "σ̄² = ρ̄/(2ρ)", "(C,)", "node 5", "gradient w.r.t. the variance"]
    d_eps: Annotated[jax.Array, "ε̄ = Σ_c σ̄²", "()", "node 5", "gradient w.r.t. ε, which all channels share"]
    d_var_total: Annotated[jax.Array | None, "σ̄² + v̄", "(C,)", "(N13)", "with what comes to the returned variance"]
    d_q: Annotated[jax.Array, "q̄ = σ̄²/M", "as x", "node 4", "gradient w.r.t. the squares; with a mask w σ̄²/n"]
    d_c_through_q: Annotated[jax.Array, "2 c q̄", "as x", "node 3", "second path to c"]
    d_c: Annotated[jax.Array, "c̄ = r x̂̄ + 2 c q̄", "as x", "node 3", "the two paths joined"]
    d_mu: Annotated[jax.Array, "μ̄ = −Σ c̄", "(C,)", "node 2", "gradient w.r.t. the mean; Σ 2 c q̄ = 0 by (N9)"]
    d_mu_total: Annotated[jax.Array | None, "μ̄ + m̄", "(C,)", "(N13)", "with what comes to the returned mean"]
    dx_through_c: Annotated[jax.Array, "c̄", "as x", "node 2", "first path to x"]
    dx_through_mu: Annotated[jax.Array, "μ̄/M", "as x", "node 1", "second path to x; with a mask w μ̄/n"]
    dx: Annotated[jax.Array, "x̄ = c̄ + μ̄/M", "as x", "node 1", "gradient of the input"]


def batch_norm_graph(
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
) -> BatchNormGraph:
    """Batch norm as a graph of elementary nodes, and back through them one at a time.

    The gradient is that of `batch_norm`, but no terms are combined or cancelled. Arguments and errors as there.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, dy = jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [0.0]])
      >>> s = bnderiv.steps.batch_norm_graph(x, jnp.array([2.0]), jnp.array([0.0]), dy, eps=3.0)
      >>> s.std.tolist(), s.d_std.tolist(), s.dx.tolist()
      ([2.0], [0.5], [[0.375], [-0.375]])
    """
    x, gamma, beta, dy = arrays(x=x, gamma=gamma, beta=beta, dy=dy)
    others, lay = f.channels(x, channel_axis, gamma=gamma, beta=beta)
    eps = f.number(eps, x)
    dy = cotangent(dy, x)
    kept = f.counted(where, x, others)
    where, count, n = kept.w, kept.count, kept.n  # n: all M elements of a channel, or those that count

    mu = kept.total(x) / n  # node 1
    c = x - lay(mu)  # node 2
    q = c**2  # node 3
    var = kept.total(q) / n  # node 4
    std = jnp.sqrt(var + eps)  # node 5
    inv_std = 1 / std  # node 6
    x_hat = c * lay(inv_std)  # node 7
    scaled = lay(gamma) * x_hat  # node 8
    y = scaled + lay(beta)  # node 9

    d_beta, d_scaled = dy.sum(others), dy  # back through node 9
    d_gamma, d_x_hat = (d_scaled * kept.known(x_hat)).sum(others), d_scaled * lay(gamma)  # 8
    d_inv_std, d_c_through_x_hat = (d_x_hat * kept.known(c)).sum(others), d_x_hat * lay(inv_std)  # 7
    d_std = -d_inv_std / std**2  # 6
    d_var = d_std / (2 * std)  # 5
    d_eps = d_var.sum()
    at_var, d_var_total, d_mu_total = d_var, None, None
    m_bar, v_bar = f.at_returned(m_bar, v_bar, mu)
    if v_bar is not None:
        at_var = d_var_total = d_var + v_bar  # (N13)
    d_q = kept.masked(jnp.broadcast_to(lay(at_var / n), x.shape))  # 4; (N24): where w = 1
    d_c_through_q = kept.masked(2 * c * d_q)  # 3
    d_c = d_c_through_x_hat + d_c_through_q
    at_mu = d_mu = -d_c.sum(others)  # 2
    dx_through_c = d_c
    if m_bar is not None:
        at_mu = d_mu_total = d_mu + m_bar  # (N13)
    dx_through_mu = kept.masked(jnp.broadcast_to(lay(at_mu / n), x.shape))  # 1; (N24): where w = 1
    dx = dx_through_c + dx_through_mu
    return gather(BatchNormGraph, locals())
