"""Batch norm by given statistics (derivation.md, C.2)."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv.normalization.steps import fields as f
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather


@derivation
class BatchNormInference(NamedTuple):
    """The steps of `batch_norm_inference` (N23): the statistics are arguments, so dx is part 1 of (N11) alone."""

    x: f.Input
    gamma: f.Gamma
    beta: f.Beta
    mean: Annotated[jax.Array, "μ_c", "(C,)", INPUT, "given mean"]
    var: Annotated[jax.Array, "σ²_c", "(C,)", INPUT, "given variance"]
    dy: f.FromAbove
    eps: f.Epsilon
    channel_axis: f.ChannelAxis
    inv_std: Annotated[jax.Array, "(σ²_c+ε)^−½", "(C,)", "(N23)", "inverse deviation"]
    x_hat: Annotated[jax.Array, "x̂", "as x", "(N23)", "normalized input"]
    y: Annotated[jax.Array, "y = γ x̂ + β", "as x", "(N23)", "output"]
    d_gamma: Annotated[jax.Array, "∂J/∂γ_c", "(C,)", "(N23)", "gradient of gamma"]
    d_beta: Annotated[jax.Array, "∂J/∂β_c", "(C,)", "(N23)", "gradient of beta"]
    d_x_hat: Annotated[jax.Array, "∂J/∂x̂ = γ δ", "as x", "(N7)", "gradient w.r.t. the normalized input"]
    d_var: Annotated[jax.Array, "∂J/∂σ²_c", "(C,)", "(N23)", "gradient of the given variance"]
    d_eps: Annotated[jax.Array, "∂J/∂ε = Σ_c ∂J/∂σ²_c", "()", "(N8)", "gradient w.r.t. ε, which all channels share"]
    d_mu: Annotated[jax.Array, "∂J/∂μ_c", "(C,)", "(N23)", "gradient of the given mean"]
    dx: Annotated[jax.Array, "∂J/∂x", "as x", "(N23)", "gradient of the input"]


def batch_norm_inference(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    dy: ArrayLike,
    *,
    channel_axis: int = -1,
    eps: ArrayLike = 1e-5,
) -> BatchNormInference:
    """Normalization by given statistics and its five gradients (N23). Arguments and errors as in `batch_norm`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> gamma, beta, mean, var = (jnp.array([number]) for number in (2.0, 0.0, 2.0, 1.0))
      >>> x = dy = jnp.array([[1.0]])
      >>> s = bnderiv.steps.batch_norm_inference(x, gamma, beta, mean, var, dy, eps=3.0)
      >>> s.y.tolist(), s.dx.tolist()
      ([[-1.0]], [[1.0]])
    """
    x, gamma, beta, mean, var, dy = arrays(x=x, gamma=gamma, beta=beta, mean=mean, var=var, dy=dy)
    others, lay = f.channels(x, channel_axis, gamma=gamma, beta=beta, mean=mean, var=var)
    eps = f.number(eps, x)
    dy = cotangent(dy, x)

    inv_std = 1 / jnp.sqrt(var + eps)
    x_hat = (x - lay(mean)) * lay(inv_std)
    y = lay(gamma) * x_hat + lay(beta)

    d_gamma = (dy * x_hat).sum(others)
    d_beta = dy.sum(others)
    d_x_hat = lay(gamma) * dy
    d_var = -0.5 * inv_std**3 * (d_x_hat * (x - lay(mean))).sum(others)
    d_eps = d_var.sum()  # (N8)
    d_mu = -inv_std * d_x_hat.sum(others)
    dx = lay(inv_std) * d_x_hat  # the statistics do not depend on x: no other part
    return gather(BatchNormInference, locals())
