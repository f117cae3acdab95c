"""LeNet-5: two convolutions with pooling, three fully connected layers, batch norm before every hidden activation.

    x (N, H, W, C)
    → conv 5×5, 6 maps   → batch norm → activation → pool 2×2     (for 28×28 images: 14×14×6)
    → conv 5×5, 16 maps  → batch norm → activation → pool 2×2     (5×5×16)
    → flatten → dense 120 → batch norm → activation
              → dense 84  → batch norm → activation
              → dense classes = logits

Every map of the second convolution sees all six of the first (LeCun et al. 1998 joined them by a sparse table).
"""

import dataclasses
from functools import partial
from typing import Any

import jax

from bnderiv import _checks
from bnderiv._cpu import on_cpu
from bnderiv.models import _blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_blocks.Options):
    """Which LeNet-5.

    Attributes:
      pool: "max" or "avg", windows of 2×2.
      image_shape: (rows, columns, channels), at least 28×28. The first convolution pads images of 28×28 by 2 on every
        side, which makes them the 32×32 of the original; others are not padded.

    The others (activation, batch_norm, classes, dtype, momentum, eps, gradients) are those of every model, described at
    `Options` in `_blocks.py`.
    """

    pool: str = "max"
    image_shape: tuple[int, int, int] = (28, 28, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _blocks.one_of("pool", self.pool, ("max", "avg"))
        shape = tuple(self.image_shape)
        if len(shape) != 3:
            raise ValueError(f"image_shape must be (rows, columns, channels), got {self.image_shape!r}")
        rows, columns, channels = (_checks.integer(f"image_shape[{i}]", n, at_least=1) for i, n in enumerate(shape))
        if rows < 28 or columns < 28:
            raise ValueError(f"image_shape must be at least 28×28, got {rows}×{columns}")
        object.__setattr__(self, "image_shape", (rows, columns, channels))  # a list is welcome, but does not hash

    @property
    def padding(self) -> int:
        """Of the first convolution, on every side."""
        return 2 if self.image_shape[:2] == (28, 28) else 0


def init(key: jax.Array, config: Config) -> tuple[_blocks.Tree, _blocks.Tree]:
    """Draws the parameters.

    Args:
      key: a JAX random key.
      config: which network.

    Returns:
      params: {"conv1": {"kernel"}, "bn1": {"gamma", "beta"}, "conv2", "bn2", "dense3", "bn3", "dense4", "bn4",
        "output": {"kernel", "bias"}}; without batch norm no "bn1" … "bn4", and a "bias" in every layer. Kernels are
        drawn by He et al. for relu, by Glorot & Bengio for tanh and sigmoid; biases and beta are 0, gamma 1.
      state: {"bn1": RunningStats, …}; empty without batch norm.
    """
    rows, columns, channels = config.image_shape
    rows, columns = (_pooled_twice(n + 2 * config.padding) for n in (rows, columns))
    hidden = (
        ("conv", (5, 5, channels, 6)),
        ("conv", (5, 5, 6, 16)),
        ("dense", (rows * columns * 16, 120)),
        ("dense", (120, 84)),
    )
    return _blocks.init(key, hidden, (84, config.classes), config)


def apply(
    params: _blocks.Tree, state: _blocks.Tree, x: jax.Array, config: Config, *, train: bool, axis_name: Any = None
) -> tuple[jax.Array, _blocks.Tree]:
    """The logits of a batch of images.

    Args:
      params: from `init`.
      state: from `init`, or from an earlier call.
      x: images, shape (N, H, W, C) with (H, W, C) = `config.image_shape`, floating; cast to `config.dtype`.
      config: which network; a static argument under `jax.jit`.
      train: True normalizes by the statistics of this batch and renews the running ones; False normalizes by the
        running ones and returns `state` as it is. Static.
      axis_name: mapped axis (or axes) over which the batch is spread, to share its statistics; see `batch_norm`.

    Returns:
      logits: shape (N, classes), dtype `config.dtype`.
      state: the running statistics.

    Raises:
      TypeError: `x` has no floating dtype.
      ValueError: `x` is empty, or not a batch of images of `config.image_shape`.
    """
    x = _checks.float_array("x", x)
    _checks.rank_is("x", x, 4, "(N, rows, columns, channels)")
    _checks.shape_is("x", x, (x.shape[0], *config.image_shape), "N images of config.image_shape")
    _checks.nonempty("x", x)  # here, in the layout that it was given in
    bn = _blocks.layers(config)
    pool = {"max": bn.max_pool, "avg": bn.avg_pool}[config.pool]
    activate = partial(_blocks.activate, params, config, train, axis_name)

    # Six channels do not fill a vector register of a CPU, the examples side by side do. `bnderiv.reference`, what
    # others would write, keeps the usual layout.
    batch_last = on_cpu() and config.gradients != "autodiff"
    layout = {"channel_axis": 0, "batch_axis": 3} if batch_last else {"channel_axis": 3, "batch_axis": 0}
    x = x.transpose(3, 1, 2, 0) if batch_last else x

    z = bn.conv2d(x.astype(config.dtype), **params["conv1"], padding=config.padding, **layout)
    a, state = activate(state, 1, z, layout["channel_axis"])
    z = bn.conv2d(pool(a, 2, **layout), **params["conv2"], **layout)
    a, state = activate(state, 2, z, layout["channel_axis"])
    a = pool(a, 2, **layout)
    dense3 = params["dense3"]
    if batch_last:  # the rows of a kernel are cheaper to bring in another order than the features of every example
        a, dense3 = a.reshape(-1, a.shape[3]).T, _channels_first(dense3, *a.shape[:3])
    else:
        a = bn.flatten(a)
    z = bn.dense(a, **dense3)
    a, state = activate(state, 3, z)
    z = bn.dense(a, **params["dense4"])
    a, state = activate(state, 4, z)
    return bn.dense(a, **params["output"]), state


def _channels_first(dense: _blocks.Tree, channels: int, rows: int, columns: int) -> _blocks.Tree:
    """The layer for features in (C, H, W) order of one for features in (H, W, C) order."""
    kernel = dense["kernel"].reshape(rows, columns, channels, -1).transpose(2, 0, 1, 3)
    return {**dense, "kernel": kernel.reshape(dense["kernel"].shape)}


def _pooled_twice(size: int) -> int:
    """Rows (or columns) left after both convolutions and both pools."""
    return ((size - 4) // 2 - 4) // 2
