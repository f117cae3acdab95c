"""The arguments and steps that several of these derivations share."""

from typing import Annotated, Any

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

# Steps of batch norm.
Mean = Annotated[jax.Array, "μ_c", "(C,)", "(N1)", "mean of the channel"]
Variance = Annotated[jax.Array, "σ²_c", "(C,)", "(N2)", "biased variance of the channel, divided by M"]
InverseDeviation = Annotated[jax.Array, "r_c = (σ²_c+ε)^−½", "(C,)", "(N3)", "inverse deviation"]
Normalized = Annotated[jax.Array, "x̂", "as x", "(N3)", "normalized input"]
GradientOfGamma = Annotated[jax.Array, "∂J/∂γ_c", "(C,)", "(N5)", "gradient of gamma"]
GradientOfBeta = Annotated[jax.Array, "∂J/∂β_c", "(C,)", "(N6)", "gradient of beta"]
AtTheVariance = Annotated[jax.Array, "∂J/∂σ²_c", "(C,)", "(N8)", "gradient by the variance"]
AtTheMean = Annotated[jax.Array, "∂J/∂μ_c", "(C,)", "(N10)", "gradient by the mean; the path through σ² is 0 (N9)"]
ThroughXHat = Annotated[jax.Array, "∂J/∂x̂ · ∂x̂/∂x", "as x", "(N11), 1", "first part of the gradient, T₁"]
ThroughMu = Annotated[jax.Array, "∂J/∂μ · ∂μ/∂x", "as x", "(N11), 2", "second part, one number for each channel, T₂"]
ThroughVar = Annotated[jax.Array, "∂J/∂σ² · ∂σ²/∂x", "as x", "(N11), 3", "third part, T₃"]
GradientOfX = Annotated[jax.Array, "∂J/∂x", "as x", "(N11)", "gradient of the input, the sum of the three parts"]


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
