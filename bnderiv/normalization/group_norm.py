"""Group and instance normalization: statistics over the places of one example (derivation.md, N32–N34)."""

import jax

from bnderiv import _checks
from bnderiv._rule import layer
from bnderiv.normalization.arguments import epsilon, laid, parameter
from bnderiv.normalization.groups import Affine, ChannelGroups, Groups
from bnderiv.normalization.layer_norm import by_own_statistics
from bnderiv.normalization.units import Epsilon


def group_norm(
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    groups: int,
    *,
    channel_axis: int = -1,
    eps: float | jax.Array = 1e-5,
    where: jax.Array | None = None,
) -> jax.Array:
    """Normalizes each example, by the statistics of groups of its channels: y = γ (x − μ)/√(σ² + ε) + β.

    μ and the biased σ² are taken over the C/groups neighboring channels of a group and all other axes but the first,
    which is the batch. The gradient is that of `layer_norm`, with the means over a group and the sums for γ and β over
    all axes but the channels' (derivation.md, N34). Accuracy, NaN and infinity are as there.

    Args:
      x: shape (N, ..., C, ...), rank 2 or more, floating dtype. Half precision is computed in float32.
      gamma: γ, shape (C,). None stands for 1.
      beta: β, shape (C,). None stands for 0.
      groups: the number of groups, a divisor of C. With one group the statistics are those of the whole example.
      channel_axis: the axis of x that has C; not the first.
      eps: ε, added to the variance; at least 0.
      where: as in `layer_norm`.

    Returns:
      y, in the shape and dtype of `x`.

    Raises:
      TypeError: a dtype that is not floating, `where` not boolean, or `groups` not an integer.
      ValueError: shapes that do not fit, an axis out of range, `groups` not a divisor of C, an empty `x`, a negative
        `eps`.

    Example:
      >>> x = jnp.array([[1.0, 3.0, 10000.0, 10002.0]])
      >>> bnderiv.group_norm(x, None, None, 2, eps=0).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]
    """
    x, axis = _with_channels(x, channel_axis, 2, "batch and channels")
    channels = x.shape[axis]
    if not isinstance(channels, int):
        raise ValueError(f"the channels of x must be known, only its other axes symbolic, got {x.shape}")
    size, rest = divmod(channels, _checks.integer("groups", groups, at_least=1))
    if rest:
        raise ValueError(f"groups must divide the {channels} channels of x, got {groups}")
    return _by_example(size, axis, x, gamma, beta, eps, where)


def instance_norm(
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    *,
    channel_axis: int = -1,
    eps: float | jax.Array = 1e-5,
    where: jax.Array | None = None,
) -> jax.Array:
    """Normalizes each channel of each example by its own statistics: `group_norm` with a group for each channel.

    Args:
      x: shape (N, ..., C, ...), rank 3 or more, floating dtype. Half precision is computed in float32.
      gamma: γ, shape (C,). None stands for 1.
      beta: β, shape (C,). None stands for 0.
      channel_axis: the axis of x that has C; not the first.
      eps: ε, added to the variance; at least 0.
      where: as in `layer_norm`.

    Returns:
      y, in the shape and dtype of `x`.

    Raises:
      TypeError: a dtype that is not floating, or `where` not boolean.
      ValueError: shapes that do not fit, an axis out of range, an empty `x`, a negative `eps`.

    Example:
      >>> x = jnp.array([[[1.0, 10000.0], [3.0, 10002.0]]])
      >>> bnderiv.instance_norm(x, None, None, eps=0).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]
    """
    x, axis = _with_channels(x, channel_axis, 3, "batch, space and channels")
    return _by_example(1, axis, x, gamma, beta, eps, where)


def _with_channels(x, channel_axis, rank, meaning):
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, rank, meaning)
    _checks.nonempty("x", x)
    axis = _checks.axis("channel_axis", channel_axis, x.ndim)
    if axis == 0:
        raise ValueError(f"channel_axis must not be the first axis, which is the batch, got {channel_axis}")
    return x, axis


def _by_example(size, axis, x, gamma, beta, eps, where):
    gamma, beta = parameter("gamma", gamma, x, (axis,), 1), parameter("beta", beta, x, (axis,), 0)
    if where is not None:
        where = _checks.mask("where", where, x.shape)
    return _group_norm(size, axis, x, where, gamma, beta, *epsilon(eps, x))


@layer(static=2, result=lambda size, axis, x, *_: x)
def _group_norm(size, axis, x, where, gamma, beta, eps, root):
    space = tuple(i for i in range(1, x.ndim) if i != axis)
    groups = Groups(space, (), (0,)) if size == 1 else ChannelGroups(space, (), (0,), axis, size)
    affine = Affine(laid(x, (axis,), gamma), laid(x, (axis,), beta))
    return by_own_statistics(groups, x, where, affine, Epsilon(eps, root))
