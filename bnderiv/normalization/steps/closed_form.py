"""The gradient of batch norm in one line, from two sums per channel (derivation.md, A.9, N12; with masks N24)."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv.normalization.steps import fields as f
from bnderiv.steps.table import arrays, cotangent, derivation, gather


@derivation
class BatchNormClosedForm(NamedTuple):
    """The steps of `batch_norm_closed_form`: take δ, remove its mean, remove what is proportional to x̂, rescale (N12).

    `where` and `count` are None without a mask; `m_bar`, `v_bar`, `from_statistics` without a loss on the statistics.
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
    sum_dy: Annotated[jax.Array, "Σ δ", "(C,)", "(N6)", "the first sum: it is ∂J/∂β"]
    sum_dy_x_hat: Annotated[jax.Array, "Σ δ x̂", "(C,)", "(N5)", "the second sum: it is ∂J/∂γ"]
    d_gamma: f.GradientOfGamma
    d_beta: f.GradientOfBeta
    without_mean: Annotated[jax.Array, "δ − 1/M Σ δ", "as x", "(N12)", "the mean removed; with a mask where it counts"]
    without_x_hat: Annotated[
        jax.Array, "δ − 1/M Σ δ − x̂/M Σ δ x̂", "as x", "(N12), (N24)", "what is proportional to x̂ removed: P δ of B.8"
    ]
    from_statistics: Annotated[
        jax.Array | None, "m̄/M + 2v̄/M (x − μ)", "as x", "(N13)", "what comes through the returned statistics"
    ]
    dx: Annotated[jax.Array, "∂J/∂x", "as x", "(N12)", "gradient of the input: rescaled by γ r, and (N13) added"]


def batch_norm_closed_form(
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
) -> BatchNormClosedForm:
    """Batch norm, and its gradient from two sums in one line (N12). Arguments and errors as in `batch_norm`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, dy = jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [0.0]])
      >>> s = bnderiv.steps.batch_norm_closed_form(x, jnp.array([2.0]), jnp.array([0.0]), dy, eps=3.0)
      >>> s.sum_dy.tolist(), s.sum_dy_x_hat.tolist(), s.dx.tolist()
      ([1.0], [-0.5], [[0.375], [-0.375]])
    """
    x, gamma, beta, dy = arrays(x=x, gamma=gamma, beta=beta, dy=dy)
    others, lay = f.channels(x, channel_axis, gamma=gamma, beta=beta)
    eps = f.number(eps, x)
    dy = cotangent(dy, x)
    kept = f.counted(where, x, others)
    where, count, n = kept.w, kept.count, kept.n

    mu = kept.total(x) / n  # (N1)
    var = kept.total((x - lay(mu)) ** 2) / n  # (N2)
    inv_std = 1 / jnp.sqrt(var + eps)
    x_hat = (x - lay(mu)) * lay(inv_std)  # (N3)
    y = lay(gamma) * x_hat + lay(beta)  # (N4)

    sum_dy = d_beta = dy.sum(others)  # (N6)
    sum_dy_x_hat = d_gamma = (dy * kept.known(x_hat)).sum(others)  # (N5)
    without_mean = dy - kept.masked(jnp.broadcast_to(lay(sum_dy / n), x.shape))
    without_x_hat = without_mean - kept.masked(x_hat * lay(sum_dy_x_hat / n))  # (N24)
    dx = lay(gamma * inv_std) * without_x_hat  # (N12)
    m_bar, v_bar = f.at_returned(m_bar, v_bar, mu)
    from_statistics = None
    if m_bar is not None and v_bar is not None:
        from_statistics = kept.masked(lay(m_bar / n) + lay(2 * v_bar / n) * (x - lay(mu)))  # (N13)
        dx = dx + from_statistics
    return gather(BatchNormClosedForm, locals())
