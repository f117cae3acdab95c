"""Batch norm over a batch that is split over devices (derivation.md, C.5, N26)."""

import itertools
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv.normalization.steps import fields as f
from bnderiv.steps.table import arrays, cotangent, derivation, gather


@derivation
class BatchNormAcrossDevices(NamedTuple):
    """The steps of `batch_norm_across_devices`; D is the number of devices. `where` is None without a mask."""

    x: f.Input
    gamma: f.Gamma
    beta: f.Beta
    dy: f.FromAbove
    eps: f.Epsilon
    shards: Annotated[tuple[int, ...], "examples on each device"]
    channel_axis: f.ChannelAxis
    where: f.Mask
    counts: Annotated[jax.Array, "n_i", "(D, C)", "(N26)", "elements that count on each device"]
    means: Annotated[jax.Array, "μ_i", "(D, C)", "(N26)", "mean of each shard; 0 where nothing counts"]
    variances: Annotated[jax.Array, "σ²_i", "(D, C)", "(N26)", "biased variance of each shard"]
    count: Annotated[jax.Array, "n = Σ_i n_i", "(C,)", "(N26)", "elements that count on all devices"]
    mu: Annotated[jax.Array, "μ = 1/n Σ_i n_i μ_i", "(C,)", "(N26)", "mean of the whole batch"]
    var: Annotated[jax.Array, "σ² = 1/n Σ_i n_i (σ²_i + (μ_i−μ)²)", "(C,)", "(N26)", "biased variance of all"]
    inv_std: f.InverseDeviation
    x_hat: f.Normalized
    y: Annotated[jax.Array, "y = γ x̂ + β", "as x", "(N4)", "output"]
    sums_dy: Annotated[jax.Array, "Σ_{k∈i} δ_k", "(D, C)", "(N6)", "first sum, of each device alone"]
    sums_dy_x_hat: Annotated[jax.Array, "Σ_{k∈i} δ_k x̂_k", "(D, C)", "(N5)", "second sum, of each device alone"]
    d_gamma: Annotated[jax.Array, "∂J/∂γ_c", "(C,)", "(N5)", "gradient of gamma: the sum over the devices"]
    d_beta: Annotated[jax.Array, "∂J/∂β_c", "(C,)", "(N6)", "gradient of beta: the sum over the devices"]
    dx: Annotated[jax.Array, "∂J/∂x", "as x", "(N12), (N24)", "gradient of the input, with the sums of all devices"]


def batch_norm_across_devices(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    dy: ArrayLike,
    *,
    shards: Sequence[int],
    channel_axis: int = -1,
    eps: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
) -> BatchNormAcrossDevices:
    """Batch norm of a batch that several devices hold: what each computes, and what is merged (N26).

    It all runs on one device: `shards` says which examples another one would hold. The other arguments and the errors
    are those of `batch_norm`.

    Args:
      shards: the number of examples on each device, in the order of the batch, the first axis of x.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, dy = jnp.array([[0.0], [2.0], [4.0]]), jnp.ones((3, 1))
      >>> s = bnderiv.steps.batch_norm_across_devices(x, jnp.ones(1), jnp.zeros(1), dy, shards=(1, 2))
      >>> s.means.tolist(), s.mu.tolist(), s.var.round(3).tolist()
      ([[0.0], [3.0]], [2.0], [2.6670000553131104])
    """
    x, gamma, beta, dy = arrays(x=x, gamma=gamma, beta=beta, dy=dy)
    others, lay = f.channels(x, channel_axis, gamma=gamma, beta=beta)
    if 0 not in others:
        raise ValueError("channel_axis must not be the first axis of x, which is split over the devices, got 0")
    shards = tuple(_checks.integer(f"shards[{i}]", n, at_least=1) for i, n in enumerate(shards))
    if sum(shards) != x.shape[0]:
        raise ValueError(f"shards must sum to the {x.shape[0]} examples of x, got {shards}")
    eps = f.number(eps, x)
    dy = cotangent(dy, x)
    kept = f.counted(where, x, others)
    where, n = kept.w, kept.n
    ends = [sum(shards[:i]) for i in range(len(shards) + 1)]

    def on_each(a: jax.Array) -> jax.Array:
        """The sum of each device, (D, C)."""
        return jnp.stack([a[i:j].sum(others) for i, j in itertools.pairwise(ends)])

    def to_its_elements(a: jax.Array) -> jax.Array:
        """(D, C) as x: a device's number at each of its elements."""
        return jnp.concatenate(
            [jnp.broadcast_to(lay(row), (m, *x.shape[1:])) for row, m in zip(a, shards, strict=True)]
        )

    counts = on_each(kept.masked(jnp.ones_like(x)))  # n_i
    own = jnp.maximum(counts, 1)
    means = on_each(kept.masked(x)) / own
    variances = on_each(kept.masked((x - to_its_elements(means)) ** 2)) / own
    count = counts.sum(0)  # an all-reduce, as the next two
    mu = (counts * means).sum(0) / n  # (N26)
    var = (counts * (variances + (means - mu[None]) ** 2)).sum(0) / n  # (N26)
    inv_std = 1 / jnp.sqrt(var + eps)
    x_hat = (x - lay(mu)) * lay(inv_std)  # (N3)
    y = lay(gamma) * x_hat + lay(beta)  # (N4)

    sums_dy = on_each(dy)
    sums_dy_x_hat = on_each(dy * kept.known(x_hat))
    d_beta = sums_dy.sum(0)  # (N6), an all-reduce
    d_gamma = sums_dy_x_hat.sum(0)  # (N5), an all-reduce
    through_statistics = kept.masked(lay(d_beta / n) + x_hat * lay(d_gamma / n))
    dx = lay(gamma * inv_std) * (dy - through_statistics)  # (N12), (N24)
    return gather(BatchNormAcrossDevices, locals())
