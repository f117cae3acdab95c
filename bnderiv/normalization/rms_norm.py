"""Root mean square normalization, which takes no mean away, and its gradient (derivation.md, N35, N36)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv import _checks
from bnderiv._checks import same_varying
from bnderiv._rule import closed_form
from bnderiv.normalization.arguments import epsilon, laid, normalized_axes, parameter
from bnderiv.normalization.groups import Groups
from bnderiv.normalization.units import Epsilon, Unit, fits, scale_for


def rms_norm(
    x: jax.Array,
    gamma: jax.Array | None,
    *,
    axis: int | Sequence[int] = -1,
    eps: float | jax.Array = 1e-6,
) -> jax.Array:
    """Divides each example by the root mean square of its features: y = γ x/√(q + ε), q = mean x².

    The mean is over `axis`, separately at every place of the other axes. With ĝ = γ δ, δ = ∂J/∂y, and x̂ = x/√(q + ε),

        ∂J/∂x = 1/√(q+ε) · (ĝ − x̂ · mean(ĝ x̂)),   ∂J/∂γ = Σ δ x̂

    (derivation.md, N36): layer norm's without the mean, and without what comes back through it. In float32, y and
    ∂J/∂x are right to 2e-7 at any scale that the dtype holds. NaN and infinity stay in their example.

    Args:
      x: rank 1 or more, floating dtype. Half precision is computed in float32.
      gamma: γ, the shape of x along `axis`: (C,) for one axis. None stands for 1.
      axis: the axis of the features, or several.
      eps: ε, added to the mean square; at least 0.

    Returns:
      y, in the shape and dtype of `x`.

    Raises:
      TypeError: a dtype that is not floating.
      ValueError: shapes that do not fit, an axis out of range or named twice, an empty `x`, a negative `eps`.

    Example:
      >>> x = jnp.array([[2e30, -2e30], [4.0, 4.0]])
      >>> bnderiv.rms_norm(x, None, eps=0).round(4).tolist()
      [[1.0, -1.0], [1.0, 1.0]]
    """
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 1, "features")
    _checks.nonempty("x", x)
    axes = normalized_axes(axis, x.ndim)
    return _rms_norm(axes, x, parameter("gamma", gamma, x, axes, 1), *epsilon(eps, x))


@closed_form(static=1, result=lambda axes, x, *_: x)
def _rms_norm(axes, x, gamma, eps, root):
    return _forward(axes, x, gamma, eps, root)[0]


def _forward(axes, x, gamma, eps, root):
    unit, r = _root_mean_square(axes, x, Epsilon(eps, root))
    return (unit.of(x) * r * laid(x, axes, gamma)).astype(x.dtype), unit, r  # (N35)


def _rms_norm_fwd(axes, x, gamma, eps, root):
    y, unit, r = _forward(axes, x, gamma, eps, root)
    return y, (x, gamma, unit, r)


def _rms_norm_bwd(axes, residuals, delta):
    x, gamma, unit, r = residuals
    delta = delta.astype(r.dtype)
    x_hat = unit.of(x) * r
    d_x_hat = laid(x, axes, gamma) * delta
    along_axes = (d_x_hat * x_hat).sum(axes, keepdims=True)
    dx = unit.back(r * (d_x_hat - x_hat * along_axes / Groups((), axes).count(x, None)))  # (N36)
    d_gamma = (delta * x_hat).sum([i for i in range(x.ndim) if i not in axes])  # (N5)
    d_eps = -0.5 * ((r * unit.scale) ** 2 * along_axes).sum()
    return dx.astype(x.dtype), d_gamma.astype(gamma.dtype), d_eps, None


_rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


def _root_mean_square(axes, x, eps):
    """A unit about zero, u = x s, and r = 1/√(mean u² + ε s²) in it: in one read of x where s = 1 will do."""
    groups = Groups((), axes)
    n = groups.count(x, None)

    def measure(unit):
        return unit.scale, groups.total(unit.of(x) ** 2) / n

    def measure_again():
        # The barrier keeps the branch: XLA may take one of few operations for cheap on a GPU, and make it a select.
        size = jnp.abs(lax.optimization_barrier(lax.stop_gradient(x))).max(axes, keepdims=True).astype(n.dtype)
        return measure(Unit(zero, lax.select(good, one, scale_for(jnp.maximum(size, eps.root)))))

    zero = jnp.zeros_like(x, n.dtype, shape=tuple(1 if i in axes else size for i, size in enumerate(x.shape)))
    _, zero, one = same_varying(x, zero, jnp.ones_like(zero))
    first = measure(Unit(zero, one))
    good = fits(Unit(zero, one), first[1], eps)
    scale, square = lax.cond(jnp.all(good), lambda: first, measure_again)
    unit = Unit(zero, scale)
    return unit, unit.inverse_root(square, eps)
