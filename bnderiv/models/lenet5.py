"""LeNet-5: two convolutions with pooling, three fully connected layers, batch norm before every hidden activation.

    x (N, H, W, C)
    → conv 5×5, 6 maps   → batch norm → activation → pool 2×2     (for 28×28 images: 14×14×6)
    → conv 5×5, 16 maps  → batch norm → activation → pool 2×2     (5×5×16)
    → flatten → dense 120 → batch norm → activation
              → dense 84  → batch norm → activation
              → dense classes = logits

Every map of the second convolution sees all six maps of the first; LeCun et al. 1998 connected them by a sparse table.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax

from bnderiv import _checks
from bnderiv._types import AxisName
from bnderiv.models import _blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_blocks.Options):
    """Options of LeNet-5.

    Attributes:
      pool: "max" or "avg", windows of 2×2.
      image_shape: (rows, columns, channels), at least 28×28. The first convolution pads images of 28×28 by 2 on every
        side, to the 32×32 of the original. Images of other sizes are not padded.

    The other attributes (activation, batch_norm, classes, dtype, momentum, eps, gradients) are those of every model;
    see `Options` in `_blocks.py`.

    Example:
      >>> import bnderiv, jax, jax.numpy as jnp
      >>> bnderiv.models.lenet5.Config(pool="avg", activation="tanh").padding
      2
    """

    pool: Literal["max", "avg"] = "max"
    image_shape: tuple[int, int, int] = (28, 28, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _blocks.one_of("pool", self.pool, ("max", "avg"))
        shape = tuple(self.image_shape) if _blocks.is_sequence(self.image_shape) else ()
        if len(shape) != 3:
            raise ValueError(f"image_shape must be (rows, columns, channels), got {self.image_shape!r}")
        rows, columns, channels = (_checks.integer(f"image_shape[{i}]", n, at_least=1) for i, n in enumerate(shape))
        if rows < 28 or columns < 28:
            raise ValueError(f"image_shape must be at least 28×28, got {rows}×{columns}")
        object.__setattr__(self, "image_shape", (rows, columns, channels))  # a list is accepted, but does not hash

    @property
    def padding(self) -> int:
        """Padding of the first convolution, on every side."""
        return 2 if self.image_shape[:2] == (28, 28) else 0


def init(key: jax.Array, config: Config) -> tuple[_blocks.Tree, _blocks.Tree]:
    """Draws the parameters and makes the running statistics.

    Args:
      key: a JAX random key.
      config: which network.

    Returns:
      params: {"conv1": {"kernel"}, "bn1": {"gamma", "beta"}, "conv2", "bn2", "dense3", "bn3", "dense4", "bn4",
        "output": {"kernel", "bias"}}. Without batch norm there is no "bn1" … "bn4", and every layer has a "bias".
        Kernels are drawn as He et al. do for relu, and as Glorot & Bengio do for tanh and sigmoid. Biases and beta
        are 0, gamma is 1.
      state: {"bn1": RunningStats, …}; empty without batch norm.

    Raises:
      TypeError: `config` is not a `Config` of this module.

    Example:
      >>> import bnderiv, jax, jax.numpy as jnp
      >>> params, state = bnderiv.models.lenet5.init(jax.random.key(0), bnderiv.models.lenet5.Config())
      >>> params["conv1"]["kernel"].shape, params["output"]["bias"].shape, state["bn1"].mean.shape
      ((5, 5, 1, 6), (10,), (6,))
    """
    _blocks.check_config(config, Config)
    return _blocks.init(key, *_shapes(config), config)


def _shapes(config: Config) -> tuple[_blocks.Layers, _blocks.Shape]:
    """Kernel shapes of the hidden layers and of the output layer."""
    rows, columns, channels = config.image_shape
    rows, columns = (_pooled_twice(n + 2 * config.padding) for n in (rows, columns))
    hidden = (
        ("conv", (5, 5, channels, 6)),
        ("conv", (5, 5, 6, 16)),
        ("dense", (rows * columns * 16, 120)),
        ("dense", (120, 84)),
    )
    return hidden, (84, config.classes)


def apply(
    params: _blocks.Tree,
    state: _blocks.Tree,
    x: jax.Array,
    config: Config,
    *,
    train: bool,
    axis_name: AxisName | None = None,
) -> tuple[jax.Array, _blocks.Tree]:
    """The logits of a batch of images.

    Args:
      params: from `init`.
      state: from `init`, or from an earlier call.
      x: images, shape (N, H, W, C) with (H, W, C) = `config.image_shape`, floating; cast to `config.dtype`.
      config: which network; a static argument under `jax.jit`.
      train: True normalizes by the statistics of this batch and updates the running ones. False normalizes by the
        running ones and returns `state` unchanged. Static.
      axis_name: mapped axis (or axes) over which the batch is sharded, to share its statistics; see `batch_norm`.

    Returns:
      logits: shape (N, classes), dtype `config.dtype`.
      state: the running statistics.

    Raises:
      TypeError: `x` has no floating dtype, or an entry of `params` or `state` the wrong type.
      ValueError: `x` is empty, or not a batch of images of `config.image_shape`; or an entry of `params` or `state` is
        missing, unknown or of the wrong shape.

    Example:
      >>> import bnderiv, jax, jax.numpy as jnp
      >>> config = bnderiv.models.lenet5.Config()
      >>> params, state = bnderiv.models.lenet5.init(jax.random.key(0), config)
      >>> logits, state = bnderiv.models.lenet5.apply(params, state, jnp.ones((8, 28, 28, 1)), config, train=True)
      >>> logits.shape, int(state["bn1"].count)
      ((8, 10), 1)
    """
    _blocks.check_config(config, Config)
    params = _blocks.checked(params, state, *_shapes(config), config)
    x = _checks.float_array("x", x)
    _checks.rank_is("x", x, 4, "(N, rows, columns, channels)")
    _checks.shape_is("x", x, (x.shape[0], *config.image_shape), "N images of config.image_shape")
    _checks.nonempty("x", x)  # before the transposition, so that the error shows the user's shape
    bn = _blocks.layers(config)
    pool = {"max": bn.max_pool, "avg": bn.avg_pool}[config.pool]
    activate = partial(_blocks.activate, params, config, train, axis_name)

    # The batch is last: six channels do not fill a vector register of a CPU, the examples do. For a GPU and a TPU it is
    # the same program, because there XLA chooses the layout. `bnderiv.reference` keeps the usual one.
    batch_last = config.gradients != "autodiff"
    layout = {"channel_axis": 0, "batch_axis": 3} if batch_last else {"channel_axis": 3, "batch_axis": 0}
    x = x.transpose(3, 1, 2, 0) if batch_last else x

    z = bn.conv2d(x.astype(config.dtype), **params["conv1"], padding=config.padding, **layout)
    a, state = activate(state, 1, z, layout["channel_axis"])
    z = bn.conv2d(pool(a, 2, **layout), **params["conv2"], **layout)
    a, state = activate(state, 2, z, layout["channel_axis"])
    a = pool(a, 2, **layout)
    dense3 = params["dense3"]
    if batch_last:  # permuting the kernel's rows is cheaper than permuting every example's features
        a, dense3 = a.reshape(-1, a.shape[3]).T, _channels_first(dense3, *a.shape[:3])
    else:
        a = bn.flatten(a)
    z = bn.dense(a, **dense3)
    a, state = activate(state, 3, z)
    z = bn.dense(a, **params["dense4"])
    a, state = activate(state, 4, z)
    return bn.dense(a, **params["output"]), state


def _channels_first(dense: _blocks.Tree, channels: int, rows: int, columns: int) -> _blocks.Tree:
    """The layer with its kernel's rows permuted from (H, W, C) to (C, H, W) order."""
    kernel = dense["kernel"].reshape(rows, columns, channels, -1).transpose(2, 0, 1, 3)
    return {**dense, "kernel": kernel.reshape(dense["kernel"].shape)}


def _pooled_twice(size: int) -> int:
    """Rows (or columns) left after both convolutions and both pools."""
    return ((size - 4) // 2 - 4) // 2
