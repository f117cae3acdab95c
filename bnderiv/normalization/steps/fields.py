"""The arguments and steps that several of these derivations share."""

import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from bnderiv import _checks
from bnderiv._checks import along
from bnderiv.steps.table import INPUT

# The arguments of every function here.
Input = Annotated[jax.Array, "x", "(..., C, ...)", INPUT, "input"]
Gamma = Annotated[jax.Array, "γ_c", "(C,)", INPUT, "gamma"]
Beta = Annotated[jax.Array, "β_c", "(C,)", INPUT, "beta"]
FromAbove = Annotated[jax.Array, "δ = ∂J/∂y", "as x", INPUT, "gradient from above"]
Epsilon = Annotated[jax.Array, "ε", "()", INPUT, "added to the variance"]
ChannelAxis = Annotated[int, "where C is in x"]
Mask = Annotated[
    jax.Array | None, "w", "broadcasts to x", INPUT, "1 where an element counts in the statistics, 0 elsewhere"
]
AtReturnedMean = Annotated[jax.Array | None, "m̄_c", "(C,)", INPUT, "gradient w.r.t. the returned mean"]
AtReturnedVariance = Annotated[jax.Array | None, "v̄_c", "(C,)", INPUT, "gradient w.r.t. the returned variance"]

# Steps of batch norm. None: without a mask, or without a loss on the statistics, there is no such step.
Count = Annotated[jax.Array | None, "n_c = Σ w", "(C,)", "(N24)", "elements that count; M without a mask"]
Mean = Annotated[jax.Array, "μ_c", "(C,)", "(N1)", "mean of the channel"]
Variance = Annotated[jax.Array, "σ²_c", "(C,)", "(N2)", "biased variance of the channel, divided by M"]
InverseDeviation = Annotated[jax.Array, "r_c = (σ²_c+ε)^−½", "(C,)", "(N3)", "inverse deviation"]
Normalized = Annotated[jax.Array, "x̂", "as x", "(N3)", "normalized input"]
GradientOfGamma = Annotated[jax.Array, "∂J/∂γ_c", "(C,)", "(N5)", "gradient of gamma"]
GradientOfBeta = Annotated[jax.Array, "∂J/∂β_c", "(C,)", "(N6)", "gradient of beta"]
AtTheVariance = Annotated[jax.Array, "∂J/∂σ²_c", "(C,)", "(N8)", "gradient w.r.t. the variance"]
AtEpsilon = Annotated[jax.Array, "∂J/∂ε = Σ_c ∂J/∂σ²_c", "()", "(N8)", "gradient w.r.t. ε, which all channels share"]
AtTheMean = Annotated[jax.Array, "∂J/∂μ_c", "(C,)", "(N10)", "gradient w.r.t. the mean; the path through σ² is 0 (N9)"]
TotalAtTheVariance = Annotated[
    jax.Array | None, "∂J/∂σ²_c + v̄_c", "(C,)", "(N13)", "with what comes to the returned one"
]
TotalAtTheMean = Annotated[jax.Array | None, "∂J/∂μ_c + m̄_c", "(C,)", "(N13)", "with what comes to the returned one"]
ThroughXHat = Annotated[jax.Array, "∂J/∂x̂ · ∂x̂/∂x", "as x", "(N11), 1", "first part of the gradient, T₁"]
ThroughMu = Annotated[jax.Array, "∂J/∂μ · ∂μ/∂x", "as x", "(N11), 2", "second part, one number for each channel, T₂"]
ThroughVar = Annotated[jax.Array, "∂J/∂σ² · ∂σ²/∂x", "as x", "(N11), 3", "third part, T₃"]
GradientOfX = Annotated[jax.Array, "∂J/∂x", "as x", "(N11)", "gradient of the input, the sum of the three parts"]


class Counted(NamedTuple):
    """Which elements of x count (derivation.md, C.3). Without a mask: all.

    Attributes:
      mask: booleans of the rank of x, or None.
      w: the same as numbers, 1 and 0.
      count: n, shape (C,), or None without a mask.
      n: what the statistics are divided by: M, or n of shape (C,), 1 where it is 0.
    """

    mask: jax.Array | None
    w: jax.Array | None
    count: jax.Array | None
    n: Any
    others: tuple[int, ...]

    def total(self, a: jax.Array) -> jax.Array:
        """Σ_k w_k a_k for each channel, whatever is where w_k = 0."""
        return self.masked(a).sum(self.others)

    def masked(self, a: jax.Array) -> jax.Array:
        """w a. It selects, because 0 · NaN is NaN."""
        return a if self.mask is None else jnp.where(self.mask, a, 0)

    def known(self, a: jax.Array) -> jax.Array:
        """a, with 0 for a masked element that is not finite: a zero cotangent of it contributes zero to every sum."""
        return a if self.mask is None else jnp.where(self.mask | jnp.isfinite(a), a, 0)


def counted(where: Any, x: jax.Array, others: tuple[int, ...]) -> Counted:
    """What counts by the mask `where`, None for all, with the sums over `others`.

    Raises:
      TypeError: a mask that is not boolean.
      ValueError: it does not broadcast to the shape of x.
    """
    if where is None:
        return Counted(None, None, None, math.prod(x.shape[a] for a in others), others)
    mask = _checks.mask("where", where, x.shape)
    w = mask.astype(x.dtype)
    count = jnp.broadcast_to(w, x.shape).sum(others)  # (N24)
    return Counted(mask, w, count, jnp.maximum(count, 1), others)


def at_returned(m_bar: Any, v_bar: Any, mu: jax.Array) -> tuple[jax.Array | None, jax.Array | None]:
    """The gradients by the returned mean and variance, zero if the other one alone is given; None without either.

    Raises:
      TypeError: one without floating dtype.
      ValueError: one that is not of shape (C,).
    """
    if m_bar is None and v_bar is None:
        return None, None
    found = []
    for name, value in (("m_bar", m_bar), ("v_bar", v_bar)):
        value = _checks.float_array(name, jnp.zeros_like(mu) if value is None else value)
        _checks.shape_is(name, value, mu.shape, "one per channel of x")
        found.append(value.astype(mu.dtype))
    return found[0], found[1]


def number(value: Any, x: jax.Array, name: str = "eps") -> jax.Array:
    value = jnp.asarray(value, x.dtype)
    _checks.shape_is(name, value, (), "one number")
    return value


def channels(x: jax.Array, channel_axis: int, **vectors: jax.Array) -> tuple[tuple[int, ...], Any]:
    """The axes of the sums, and a function that reshapes a vector of length C to broadcast along the channel axis."""
    _checks.rank_at_least("x", x, 2, "batch and channels")
    axis = _checks.axis("channel_axis", channel_axis, x.ndim)
    for name, vector in vectors.items():
        _checks.shape_is(name, vector, (x.shape[axis],), "one per channel of x")
    return tuple(a for a in range(x.ndim) if a != axis), lambda vector: along(vector, axis, x.ndim)
