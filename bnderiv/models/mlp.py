"""Multilayer perceptron: dense → batch norm → activation for each hidden layer, then a dense output layer."""

import dataclasses
import math
from functools import partial

import jax

from bnderiv import _checks
from bnderiv._types import AxisName
from bnderiv.models import _blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_blocks.Options):
    """Options of the perceptron.

    Attributes:
      hidden: units of each hidden layer; () for a linear classifier.
      features: number of features of one example.

    The other attributes (activation, batch_norm, classes, dtype, momentum, eps, gradients) are those of every model;
    see `Options` in `_blocks.py`.

    Example:
      >>> import bnderiv, jax, jax.numpy as jnp
      >>> bnderiv.models.mlp.Config(hidden=(64,), features=12).hidden
      (64,)
    """

    hidden: tuple[int, ...] = (500, 150)
    features: int = 784

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _blocks.is_sequence(self.hidden):
            raise ValueError(f"hidden must be a tuple of numbers of units, got {self.hidden!r}")
        hidden = tuple(_checks.integer(f"hidden[{i}]", n, at_least=1) for i, n in enumerate(self.hidden))
        object.__setattr__(self, "hidden", hidden)  # a list is accepted, but does not hash
        object.__setattr__(self, "features", _checks.integer("features", self.features, at_least=1))


def init(key: jax.Array, config: Config) -> tuple[_blocks.Tree, _blocks.Tree]:
    """Draws the parameters and makes the running statistics.

    Args:
      key: a JAX random key.
      config: which network.

    Returns:
      params: {"dense1": {"kernel"}, "bn1": {"gamma", "beta"}, …, "output": {"kernel", "bias"}}. Without batch norm
        there is no "bn1", …, and every layer has a "bias". Kernels are drawn as He et al. do for relu, and as Glorot &
        Bengio do for tanh and sigmoid. Biases and beta are 0, gamma is 1.
      state: {"bn1": RunningStats, …}; empty without batch norm.

    Raises:
      TypeError: `config` is not a `Config` of this module.

    Example:
      >>> import bnderiv, jax, jax.numpy as jnp
      >>> config = bnderiv.models.mlp.Config(hidden=(64,), features=12, classes=3)
      >>> params, state = bnderiv.models.mlp.init(jax.random.key(0), config)
      >>> params["dense1"]["kernel"].shape, params["output"]["kernel"].shape, state["bn1"].mean.shape
      ((12, 64), (64, 3), (64,))
    """
    _blocks.check_config(config, Config)
    return _blocks.init(key, *_shapes(config), config)


def _shapes(config: Config) -> tuple[_blocks.Layers, _blocks.Shape]:
    """Kernel shapes of the hidden layers and of the output layer."""
    *sizes, last = (config.features, *config.hidden)
    hidden = [("dense", shape) for shape in zip(sizes, config.hidden, strict=True)]
    return hidden, (last, config.classes)


def apply(
    params: _blocks.Tree,
    state: _blocks.Tree,
    x: jax.Array,
    config: Config,
    *,
    train: bool,
    axis_name: AxisName | None = None,
) -> tuple[jax.Array, _blocks.Tree]:
    """The logits of a batch.

    Args:
      params: from `init`.
      state: from `init`, or from an earlier call.
      x: shape (N, features), or (N, ...) with as many features in each example, such as images, which are flattened in
        row-major order; floating, cast to `config.dtype`.
      config: which network; a static argument under `jax.jit`.
      train: True normalizes by the statistics of this batch and updates the running ones. False normalizes by the
        running ones and returns `state` unchanged. Static.
      axis_name: mapped axis (or axes) over which the batch is sharded, to share its statistics; see `batch_norm`.

    Returns:
      logits: shape (N, classes), dtype `config.dtype`.
      state: the running statistics.

    Raises:
      TypeError: `x` has no floating dtype, or an entry of `params` or `state` the wrong type.
      ValueError: the examples do not have `config.features` features; or an entry of `params` or `state` is missing,
        unknown or of the wrong shape.

    Example:
      >>> import bnderiv, jax, jax.numpy as jnp
      >>> config = bnderiv.models.mlp.Config(hidden=(64,), features=12, classes=3)
      >>> params, state = bnderiv.models.mlp.init(jax.random.key(0), config)
      >>> logits, state = bnderiv.models.mlp.apply(params, state, jnp.ones((8, 12)), config, train=True)
      >>> logits.shape, int(state["bn1"].count)
      ((8, 3), 1)
    """
    _blocks.check_config(config, Config)
    params = _blocks.checked(params, state, *_shapes(config), config)
    x = _checks.float_array("x", x)
    _checks.rank_at_least("x", x, 2, "(N, features)")
    if math.prod(x.shape[1:]) != config.features:
        raise ValueError(f"x must have {config.features} features an example (config.features), got shape {x.shape}")
    bn = _blocks.layers(config)
    activate = partial(_blocks.activate, params, config, train, axis_name)

    a = bn.flatten(x.astype(config.dtype))
    for i in range(1, len(config.hidden) + 1):
        a, state = activate(state, i, bn.dense(a, **params[f"dense{i}"]))
    return bn.dense(a, **params["output"]), state
