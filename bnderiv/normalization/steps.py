"""Batch normalization, step by step: the derivation (derivation.md, N1–N20, N22, N23, N31, N37) as arrays.

Every sum is written out, as in the derivation. The layer in `batch_norm.py` computes the same in fewer passes, and
stays accurate at means far above the deviation; these lines do not.
"""

import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bnderiv import _checks
from bnderiv._checks import along
from bnderiv.steps.table import INPUT, arrays, cotangent, derivation, gather

# The arguments, of every function here.
Input = Annotated[jax.Array, "x", "(..., C, ...)", INPUT, "input"]
Gamma = Annotated[jax.Array, "γ_c", "(C,)", INPUT, "gamma"]
Beta = Annotated[jax.Array, "β_c", "(C,)", INPUT, "beta"]
FromAbove = Annotated[jax.Array, "δ = ∂J/∂y", "as x", INPUT, "gradient from above"]
Epsilon = Annotated[jax.Array, "ε", "()", INPUT, "added to the variance"]
ChannelAxis = Annotated[int, "where C is in x"]

# --- The three-part gradient (derivation.md, part A) ---


# Steps of batch norm, with or without a ReLU after it.
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


@derivation
class BatchNorm(NamedTuple):
    """The steps of `batch_norm`: forward (N1)–(N4), backward (N5)–(N12)."""

    x: Input
    gamma: Gamma
    beta: Beta
    dy: FromAbove
    eps: Epsilon
    channel_axis: ChannelAxis
    mu: Mean
    var: Variance
    inv_std: InverseDeviation
    x_hat: Normalized
    y: Annotated[jax.Array, "y = γ x̂ + β", "as x", "(N4)", "output"]
    d_gamma: GradientOfGamma
    d_beta: GradientOfBeta
    d_x_hat: Annotated[jax.Array, "∂J/∂x̂ = γ δ", "as x", "(N7)", "gradient by the normalized input"]
    d_var: AtTheVariance
    d_mu: AtTheMean
    dx_through_x_hat: ThroughXHat
    dx_through_mu: ThroughMu
    dx_through_var: ThroughVar
    dx: GradientOfX


def batch_norm(
    x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, dy: ArrayLike, *, channel_axis: int = -1, eps: ArrayLike = 1e-5
) -> BatchNorm:
    """Batch norm and its gradient, one line for each line of the derivation (part A).

    Args:
      x: shape (..., C, ...), rank 2 or more, floating dtype (half precision is computed in float32).
      gamma, beta: γ and β, shape (C,).
      dy: δ = ∂J/∂y, the gradient from above, shape of x.
      channel_axis: where C is in `x`.
      eps: ε, added to the variance.

    Returns:
      `BatchNorm`, fields in the order of the derivation.

    Raises:
      TypeError: an argument without floating dtype.
      ValueError: shapes that do not fit, an axis out of range, an empty `x`.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> x, dy = jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [0.0]])
      >>> s = bnderiv.steps.batch_norm(x, jnp.array([2.0]), jnp.array([0.0]), dy, eps=3.0)
      >>> s.inv_std.tolist(), s.d_var.tolist(), s.dx.tolist()
      ([0.5], [0.125], [[0.375], [-0.375]])
    """
    x, gamma, beta, dy = arrays(x=x, gamma=gamma, beta=beta, dy=dy)
    others, lay = _channels(x, channel_axis, gamma=gamma, beta=beta)
    eps = number(eps, x)
    dy = cotangent(dy, x)
    M = math.prod(x.shape[a] for a in others)  # m·p·q elements in a channel

    mu = x.sum(others) / M  # (N1)
    var = ((x - lay(mu)) ** 2).sum(others) / M  # (N2)
    inv_std = 1 / jnp.sqrt(var + eps)
    x_hat = (x - lay(mu)) * lay(inv_std)  # (N3)
    y = lay(gamma) * x_hat + lay(beta)  # (N4)

    d_gamma = (dy * x_hat).sum(others)  # (N5)
    d_beta = dy.sum(others)  # (N6)
    d_x_hat = lay(gamma) * dy  # (N7)
    d_var = -0.5 * inv_std**3 * (d_x_hat * (x - lay(mu))).sum(others)  # (N8)
    d_mu = -inv_std * d_x_hat.sum(others)  # (N10): the way through σ² is 0 by (N9)
    dx_through_x_hat = lay(inv_std) * d_x_hat  # (N11), part 1
    dx_through_mu = jnp.broadcast_to(lay(d_mu / M), x.shape)  # (N11), part 2
    dx_through_var = lay(d_var) * 2 / M * (x - lay(mu))  # (N11), part 3
    dx = dx_through_x_hat + dx_through_mu + dx_through_var  # (N11)
    return gather(BatchNorm, locals())


@derivation
class BatchNormRelu(NamedTuple):
    """The steps of `batch_norm_relu`: those of `batch_norm` with δ_y in the place of δ (N22).

    `residual`, `total` and `d_residual` are None where there is no residual.
    """

    x: Input
    gamma: Gamma
    beta: Beta
    dy: Annotated[jax.Array, "δ_a = ∂J/∂a", "as x", INPUT, "gradient from above"]
    eps: Epsilon
    channel_axis: ChannelAxis
    residual: Annotated[jax.Array | None, "z", "as x", INPUT, "residual, added before the ReLU"]
    mu: Mean
    var: Variance
    inv_std: InverseDeviation
    x_hat: Normalized
    y: Annotated[jax.Array, "y = γ x̂ + β", "as x", "(N4)", "output of batch norm"]
    total: Annotated[jax.Array | None, "t = y + z", "as x", "(N31)", "what the ReLU sees, with a residual"]
    a: Annotated[jax.Array, "a = max(t, 0)", "as x", "(N22), (N31)", "output; t = y without a residual"]
    d_y: Annotated[jax.Array, "δ_y = δ_a [t > 0]", "as x", "(N22), (N31)", "gradient by y; 0 where t is 0"]
    d_residual: Annotated[jax.Array | None, "∂J/∂z = δ_y", "as x", "(N31)", "gradient of the residual"]
    d_gamma: GradientOfGamma
    d_beta: GradientOfBeta
    d_x_hat: Annotated[jax.Array, "∂J/∂x̂ = γ δ_y", "as x", "(N7)", "gradient by the normalized input"]
    d_var: AtTheVariance
    d_mu: AtTheMean
    dx_through_x_hat: ThroughXHat
    dx_through_mu: ThroughMu
    dx_through_var: ThroughVar
    dx: GradientOfX


def batch_norm_relu(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    dy: ArrayLike,
    *,
    residual: ArrayLike | None = None,
    channel_axis: int = -1,
    eps: ArrayLike = 1e-5,
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
    forward = batch_norm(x, gamma, beta, dy, channel_axis=channel_axis, eps=eps)
    t, dy, total = forward.y, forward.dy, None
    if residual is not None:
        residual = _checks.float_array("residual", residual).astype(t.dtype)
        _checks.shape_is("residual", residual, t.shape, "that of x")
        t = total = forward.y + residual  # (N31)
    a = jnp.where(t > 0, t, 0)
    d_y = jnp.where(t > 0, dy, 0)  # (N22), (N31)
    d_residual = None if residual is None else d_y  # (N31)
    through = batch_norm(x, gamma, beta, d_y, channel_axis=channel_axis, eps=eps)  # δ_y in the place of δ
    own = {"dy": dy, "residual": residual, "total": total, "a": a, "d_y": d_y, "d_residual": d_residual}
    return gather(BatchNormRelu, {**through._asdict(), **own})


# --- The index derivation (derivation.md, part B) ---


def centering_jacobian(n: int) -> jax.Array:
    """∂(h_kl − μ_l)/∂h_il = δ_ik − 1/N, shape (N, N) by [k, i] (N15): the same for every column l.

    Args:
      n: N, the rows of the batch, at least 1.

    Returns:
      Shape (N, N).

    Raises:
      TypeError: no integer.
      ValueError: below 1.

    Example:
      >>> import bnderiv
      >>> bnderiv.steps.centering_jacobian(2).tolist()
      [[0.5, -0.5], [-0.5, 0.5]]
    """
    n = _checks.integer("n", n, at_least=1)
    return jnp.eye(n) - 1 / n  # (N15); the 1/n is (N14)


def variance_jacobian(h: ArrayLike) -> jax.Array:
    """∂σ²_l/∂h_il = 2/N (h_il − μ_l), shape (N, H) by [i, l] (N16). It is 0 for the other columns, j ≠ l.

    Args:
      h: shape (N, H), floating dtype.

    Returns:
      Shape (N, H).

    Raises:
      TypeError: no floating dtype.
      ValueError: another rank, or an empty array.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> bnderiv.steps.variance_jacobian(jnp.array([[1.0], [3.0]])).tolist()
      [[-1.0], [1.0]]
    """
    (h,) = _matrix(h)
    return 2 / h.shape[0] * (h - h.mean(0, keepdims=True))  # (N16)


def normalization_jacobian(h: ArrayLike, eps: ArrayLike) -> jax.Array:
    """∂ĥ_kl/∂h_il for every column l, shape (H, N, N) by [l, k, i] (N17): one symmetric block for each column.

    The whole Jacobian, (N, H, N, H) by [k, l, i, j], has these blocks where j = l and 0 elsewhere.

    Args:
      h: shape (N, H), floating dtype.
      eps: ε, added to the variance.

    Returns:
      Shape (H, N, N).

    Raises:
      TypeError: no floating dtype.
      ValueError: another rank, or an empty array.

    Example:
      >>> import bnderiv, jax.numpy as jnp
      >>> bnderiv.steps.normalization_jacobian(jnp.array([[1.0], [3.0]]), 3.0).tolist()
      [[[0.1875, -0.1875], [-0.1875, 0.1875]]]
    """
    (h,) = _matrix(h)
    c = (h - h.mean(0, keepdims=True)).T  # h_kl − μ_l, (H, N) by [l, k]
    inv_std = 1 / jnp.sqrt((c**2).mean(1) + eps)[:, None, None]
    centering = centering_jacobian(h.shape[0]).astype(h.dtype)[None]
    return centering * inv_std - c[:, :, None] * c[:, None, :] * inv_std**3 / h.shape[0]  # (N17)


def _matrix(h: Any) -> list[jax.Array]:
    (h,) = arrays(h=h)
    _checks.rank_is("h", h, 2, "(N, H)")
    return [h]


# --- Another way: the computation graph, node by node ---


@derivation
class BatchNormGraph(NamedTuple):
    """The steps of `batch_norm_graph`: every elementary node, forward and backward. A bar is the gradient by a node."""

    x: Input
    gamma: Gamma
    beta: Beta
    dy: FromAbove
    eps: Epsilon
    channel_axis: ChannelAxis
    mu: Annotated[jax.Array, "μ = 1/M Σ x", "(C,)", "node 1", "mean"]
    c: Annotated[jax.Array, "c = x − μ", "as x", "node 2", "centered input"]
    q: Annotated[jax.Array, "q = c²", "as x", "node 3", "squares"]
    var: Annotated[jax.Array, "σ² = 1/M Σ q", "(C,)", "node 4", "biased variance"]
    std: Annotated[jax.Array, "ρ = √(σ²+ε)", "(C,)", "node 5", "deviation"]
    inv_std: Annotated[jax.Array, "r = 1/ρ", "(C,)", "node 6", "inverse deviation"]
    x_hat: Annotated[jax.Array, "x̂ = c r", "as x", "node 7", "normalized input"]
    scaled: Annotated[jax.Array, "γ x̂", "as x", "node 8", "scaled"]
    y: Annotated[jax.Array, "y = γ x̂ + β", "as x", "node 9", "output"]
    d_beta: Annotated[jax.Array, "β̄ = Σ δ", "(C,)", "node 9", "gradient of beta"]
    d_scaled: Annotated[jax.Array, "δ", "as x", "node 9", "a sum passes δ on"]
    d_gamma: Annotated[jax.Array, "γ̄ = Σ δ x̂", "(C,)", "node 8", "gradient of gamma"]
    d_x_hat: Annotated[jax.Array, "x̂̄ = γ δ", "as x", "node 8", "gradient by the normalized input"]
    d_inv_std: Annotated[jax.Array, "r̄ = Σ c x̂̄", "(C,)", "node 7", "gradient by the inverse deviation"]
    d_c_through_x_hat: Annotated[jax.Array, "r x̂̄", "as x", "node 7", "first path to c"]
    d_std: Annotated[jax.Array, "ρ̄ = −r̄/ρ²", "(C,)", "node 6", "gradient by the deviation"]
    d_var: Annotated[jax.Array, "σ̄² = ρ̄/(2ρ)", "(C,)", "node 5", "gradient by the variance"]
    d_q: Annotated[jax.Array, "q̄ = σ̄²/M", "as x", "node 4", "gradient by the squares"]
    d_c_through_q: Annotated[jax.Array, "2 c q̄", "as x", "node 3", "second path to c"]
    d_c: Annotated[jax.Array, "c̄ = r x̂̄ + 2 c q̄", "as x", "node 3", "the two paths joined"]
    d_mu: Annotated[jax.Array, "μ̄ = −Σ c̄", "(C,)", "node 2", "gradient by the mean; Σ 2 c q̄ = 0 by (N9)"]
    dx_through_c: Annotated[jax.Array, "c̄", "as x", "node 2", "first path to x"]
    dx_through_mu: Annotated[jax.Array, "μ̄/M", "as x", "node 1", "second path to x"]
    dx: Annotated[jax.Array, "x̄ = c̄ + μ̄/M", "as x", "node 1", "gradient of the input"]


def batch_norm_graph(
    x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, dy: ArrayLike, *, channel_axis: int = -1, eps: ArrayLike = 1e-5
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
    others, lay = _channels(x, channel_axis, gamma=gamma, beta=beta)
    eps = number(eps, x)
    dy = cotangent(dy, x)
    M = math.prod(x.shape[a] for a in others)

    mu = x.sum(others) / M  # node 1
    c = x - lay(mu)  # node 2
    q = c**2  # node 3
    var = q.sum(others) / M  # node 4
    std = jnp.sqrt(var + eps)  # node 5
    inv_std = 1 / std  # node 6
    x_hat = c * lay(inv_std)  # node 7
    scaled = lay(gamma) * x_hat  # node 8
    y = scaled + lay(beta)  # node 9

    d_beta, d_scaled = dy.sum(others), dy  # back through node 9
    d_gamma, d_x_hat = (d_scaled * x_hat).sum(others), d_scaled * lay(gamma)  # 8
    d_inv_std, d_c_through_x_hat = (d_x_hat * c).sum(others), d_x_hat * lay(inv_std)  # 7
    d_std = -d_inv_std / std**2  # 6
    d_var = d_std / (2 * std)  # 5
    d_q = jnp.broadcast_to(lay(d_var / M), x.shape)  # 4
    d_c_through_q = 2 * c * d_q  # 3
    d_c = d_c_through_x_hat + d_c_through_q
    d_mu, dx_through_c = -d_c.sum(others), d_c  # 2
    dx_through_mu = jnp.broadcast_to(lay(d_mu / M), x.shape)  # 1
    dx = dx_through_c + dx_through_mu
    return gather(BatchNormGraph, locals())


# --- Inference (derivation.md, C.2) ---


@derivation
class BatchNormInference(NamedTuple):
    """The steps of `batch_norm_inference` (N23): the statistics are arguments, so dx is part 1 of (N11) alone."""

    x: Input
    gamma: Gamma
    beta: Beta
    mean: Annotated[jax.Array, "μ_c", "(C,)", INPUT, "given mean"]
    var: Annotated[jax.Array, "σ²_c", "(C,)", INPUT, "given variance"]
    dy: FromAbove
    eps: Epsilon
    channel_axis: ChannelAxis
    inv_std: Annotated[jax.Array, "(σ²_c+ε)^−½", "(C,)", "(N23)", "inverse deviation"]
    x_hat: Annotated[jax.Array, "x̂", "as x", "(N23)", "normalized input"]
    y: Annotated[jax.Array, "y = γ x̂ + β", "as x", "(N23)", "output"]
    d_gamma: Annotated[jax.Array, "∂J/∂γ_c", "(C,)", "(N23)", "gradient of gamma"]
    d_beta: Annotated[jax.Array, "∂J/∂β_c", "(C,)", "(N23)", "gradient of beta"]
    d_x_hat: Annotated[jax.Array, "∂J/∂x̂ = γ δ", "as x", "(N7)", "gradient by the normalized input"]
    d_var: Annotated[jax.Array, "∂J/∂σ²_c", "(C,)", "(N23)", "gradient of the given variance"]
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
    others, lay = _channels(x, channel_axis, gamma=gamma, beta=beta, mean=mean, var=var)
    eps = number(eps, x)
    dy = cotangent(dy, x)

    inv_std = 1 / jnp.sqrt(var + eps)
    x_hat = (x - lay(mean)) * lay(inv_std)
    y = lay(gamma) * x_hat + lay(beta)

    d_gamma = (dy * x_hat).sum(others)
    d_beta = dy.sum(others)
    d_x_hat = lay(gamma) * dy
    d_var = -0.5 * inv_std**3 * (d_x_hat * (x - lay(mean))).sum(others)
    d_mu = -inv_std * d_x_hat.sum(others)
    dx = lay(inv_std) * d_x_hat  # the statistics do not depend on x: no other part
    return gather(BatchNormInference, locals())


# --- Batch renormalization (derivation.md, C.7) ---


@derivation
class BatchRenorm(NamedTuple):
    """The steps of `batch_renorm` (N37): batch norm with r and d, which are constants on the way back."""

    x: Input
    gamma: Gamma
    beta: Beta
    mean: Annotated[jax.Array, "μ_c", "(C,)", INPUT, "running mean"]
    var: Annotated[jax.Array, "σ²_c", "(C,)", INPUT, "running variance"]
    dy: FromAbove
    r_max: Annotated[jax.Array, "r_max", "()", INPUT, "limit of r, to both sides of 1"]
    d_max: Annotated[jax.Array, "d_max", "()", INPUT, "limit of d, to both sides of 0"]
    eps: Annotated[jax.Array, "ε", "()", INPUT, "added to both variances"]
    channel_axis: ChannelAxis
    mu: Annotated[jax.Array, "μ_B", "(C,)", "(N1)", "mean of the batch"]
    batch_var: Annotated[jax.Array, "σ²_B", "(C,)", "(N2)", "biased variance of the batch"]
    inv_std: Annotated[jax.Array, "(σ²_B+ε)^−½", "(C,)", "(N3)", "inverse deviation of the batch"]
    x_hat: Normalized
    running_std: Annotated[jax.Array, "√(σ²+ε)", "(C,)", "(N37)", "running deviation"]
    r: Annotated[jax.Array, "r = √(σ²_B+ε)/√(σ²+ε)", "(C,)", "(N37)", "ratio of the deviations, clipped"]
    d: Annotated[jax.Array, "d = (μ_B−μ)/√(σ²+ε)", "(C,)", "(N37)", "difference of the means, clipped"]
    corrected: Annotated[jax.Array, "x̂ r + d", "as x", "(N37)", "corrected input"]
    y: Annotated[jax.Array, "y = γ (x̂ r + d) + β", "as x", "(N37)", "output"]
    d_gamma: Annotated[jax.Array, "∂J/∂γ_c = Σ δ (x̂ r + d)", "(C,)", "(N37)", "gradient of gamma"]
    d_beta: GradientOfBeta
    d_x_hat: Annotated[jax.Array, "∂J/∂x̂ = γ r δ", "as x", "(N37)", "gradient by the normalized input"]
    d_var: Annotated[jax.Array, "∂J/∂σ²_B", "(C,)", "(N8)", "gradient by the batch's variance; none goes through r"]
    d_mu: Annotated[jax.Array, "∂J/∂μ_B", "(C,)", "(N10)", "gradient by the batch's mean; none goes through d"]
    dx_through_x_hat: ThroughXHat
    dx_through_mu: ThroughMu
    dx_through_var: ThroughVar
    dx: GradientOfX


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
    others, lay = _channels(x, channel_axis, gamma=gamma, beta=beta, mean=mean, var=var)
    eps, r_max, d_max = number(eps, x), number(r_max, x, "r_max"), number(d_max, x, "d_max")
    dy = cotangent(dy, x)
    M = math.prod(x.shape[a] for a in others)

    mu = x.sum(others) / M  # (N1)
    batch_var = ((x - lay(mu)) ** 2).sum(others) / M  # (N2)
    inv_std = 1 / jnp.sqrt(batch_var + eps)
    x_hat = (x - lay(mu)) * lay(inv_std)  # (N3)
    running_std = jnp.sqrt(var + eps)
    r = jnp.clip(1 / (inv_std * running_std), 1 / r_max, r_max)  # (N37), as the next lines
    d = jnp.clip((mu - mean) / running_std, -d_max, d_max)
    corrected = x_hat * lay(r) + lay(d)
    y = lay(gamma) * corrected + lay(beta)

    d_gamma = (dy * corrected).sum(others)  # (N37)
    d_beta = dy.sum(others)  # (N6)
    d_x_hat = lay(gamma * r) * dy  # (N37)
    d_var = -0.5 * inv_std**3 * (d_x_hat * (x - lay(mu))).sum(others)  # (N8)
    d_mu = -inv_std * d_x_hat.sum(others)  # (N10)
    dx_through_x_hat = lay(inv_std) * d_x_hat  # (N11), part 1
    dx_through_mu = jnp.broadcast_to(lay(d_mu / M), x.shape)  # (N11), part 2
    dx_through_var = lay(d_var) * 2 / M * (x - lay(mu))  # (N11), part 3
    dx = dx_through_x_hat + dx_through_mu + dx_through_var  # (N11)
    return gather(BatchRenorm, locals())


def number(value: Any, x: jax.Array, name: str = "eps") -> jax.Array:
    value = jnp.asarray(value, x.dtype)
    _checks.shape_is(name, value, (), "one number")
    return value


def _channels(x: jax.Array, channel_axis: int, **vectors: jax.Array) -> tuple[tuple[int, ...], Any]:
    """The axes of the sums, and a function that reshapes a vector of length C to broadcast along the channel axis."""
    _checks.rank_at_least("x", x, 2, "batch and channels")
    axis = _checks.axis("channel_axis", channel_axis, x.ndim)
    for name, vector in vectors.items():
        _checks.shape_is(name, vector, (x.shape[axis],), "one per channel of x")
    return tuple(a for a in range(x.ndim) if a != axis), lambda vector: along(vector, axis, x.ndim)
