"""Max pooling with its gradient in closed form (derivation.md, P7–P11).

Forward, `_first_maxima.py` finds the largest cell of each window, and its number there. Backward, `_winners.py` hands
each window's δ to that cell. On a TPU both are XLA's operations on windows, in `_xla.py`. Here is what joins them: the
rule, what it saves, and which form a target takes.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._rule import CustomJvp, closed_form
from bnderiv._target import by_target
from bnderiv._types import Padding, PerAxis
from bnderiv.pooling import _xla
from bnderiv.pooling._first_maxima import first_maxima, number_dtype
from bnderiv.pooling._windows import windows
from bnderiv.pooling._winners import hand_to_winners


def max_pool(
    x: jax.Array,
    window: PerAxis,
    *,
    strides: PerAxis | None = None,
    padding: Padding = "VALID",
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
    channel_axis: int = -1,
    batch_axis: int = 0,
) -> jax.Array:
    """Maximum of each window of each channel: z_ij = max_xy a_{s·i+d·x, s·j+d·y}.

    Any number of spatial axes: one, two as in the formula, three or more. The gradient of a window goes to the cell
    that won it, ∂J/∂a_pq = Σ δ_ij over the windows (p, q) won (derivation.md, P10): among equals the first in row-major
    order, as in PyTorch and XLA; a NaN is larger than any number and the first NaN wins; padding never wins, not even a
    tie among −inf. Saved for the backward: the winner's number within its window, one byte for windows of up to 256
    cells; on a TPU `x`. (A traced program holds both until it is compiled for its target.)

    Args:
      x: floating dtype, rank of the spatial axes and two: (N, L, C), (N, H, W, C), (N, D, H, W, C), or as
        `channel_axis` and `batch_axis` say.
      window: the cells of a window along each spatial axis, or one integer for all.
      strides: steps between windows, one integer or one for each spatial axis; None means the window.
      padding: "VALID" (none), "SAME" (⌈size/stride⌉ windows, the odd cell at the end), an integer, or a pair
        (low, high) for each spatial axis; on each side smaller than the dilated window.
      dilation: steps between the cells of a window, one integer or one for each spatial axis.
      ceil_mode: True adds a last window where the strides leave a rest of the padded input, if it starts in the input
        or in the padding before it. As in PyTorch.
      channel_axis: the axis of the channels.
      batch_axis: the axis of the examples; the axes left are the spatial ones, in order.

    Returns:
      Array of x's dtype, its spatial axes replaced by the windows' ones. Where all cells of a dilated window fall on
      padding it is −inf.

    Raises:
      TypeError: `x` has no floating dtype, `ceil_mode` is no boolean, or another argument no integers.
      ValueError: `x` without a spatial axis or empty, `channel_axis` equal to `batch_axis`, an argument out of range,
        or a dilated window larger than the padded input (with `ceil_mode` by a stride or more).

    >>> x = jnp.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]).reshape(1, 2, 4, 1)
    >>> max_pool(x, 2).ravel()
    Array([6., 8.], dtype=float32)
    """
    x = _checks.float_array("x", x)
    sides = windows(x, window, strides, padding, dilation, ceil_mode, channel_axis, batch_axis)
    return _max_pool(sides, x)


@closed_form(static=1, result=lambda sides, x: x)
def _max_pool(sides, x):
    return _maxima_and_winners(sides, x)[0]


def _max_pool_fwd(sides, x):
    z, winner = _maxima_and_winners(sides, x)
    # Which of the two the backward reads is the target's choice; a compiled step drops the other.
    return z, (winner, x if _xla.can_take(sides, x.dtype) else None)


def _max_pool_bwd(sides, residuals, delta):
    share = delta.astype(accumulator(delta.dtype))
    return (_handed(sides, *residuals, share).astype(delta.dtype),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


# Which form computes it is the target's choice; the derivative is that of one form, wherever it runs.


@functools.partial(jax.jit, static_argnums=0)  # traced once, for the core and for its `_fwd`
def _maxima_and_winners(sides, x):
    """The maxima z and the winners κ. On a TPU κ is 0: the backward there does not read it."""

    def on_tpu(x):
        z = _xla.maxima(sides, x)
        return _checks.same_varying(z, jnp.zeros(z.shape, number_dtype(sides)))

    forms = {"tpu": on_tpu} if _xla.can_take(sides, x.dtype) else {}
    z, winner = first_maxima(sides, lax.stop_gradient(x), **forms)
    return _as_selected(sides, x, z), winner


@functools.partial(CustomJvp, static=1)
def _as_selected(sides, x, z):
    """z, which differentiates like the selection from x that it is."""
    return z


@_as_selected.defjvp
def _(sides, primals, tangents):
    x, z = primals
    winner = first_maxima(sides, lax.stop_gradient(x))[1]
    (tangent,) = jax.linear_transpose(functools.partial(hand_to_winners, sides, winner), z)(tangents[0])
    return _as_selected(sides, x, z), tangent


@functools.partial(CustomJvp, static=1)
def _handed(sides, winner, x, share):
    """What each of x's cells is handed by the windows it won."""
    if x is None:
        return hand_to_winners(sides, winner, share)
    return by_target(
        winner,
        x,
        share,
        tpu=lambda winner, x, share: _xla.hand_to_first_maxima(sides, x, share),
        default=lambda winner, x, share: hand_to_winners(sides, winner, share),
    )


@_handed.defjvp
def _(sides, primals, tangents):
    winner, x, _ = primals
    if x is not None:
        winner = by_target(
            winner,
            lax.stop_gradient(x),
            tpu=lambda winner, x: first_maxima(sides, x)[1],
            default=lambda winner, x: winner,
        )
    return _handed(sides, *primals), hand_to_winners(sides, winner, tangents[2])
