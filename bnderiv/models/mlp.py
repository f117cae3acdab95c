"""Multilayer perceptron: dense → batch norm → activation, as often as there are hidden layers, and a dense output."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax

from bnderiv import _checks
from bnderiv.models import _blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_blocks.Options):
    """Which perceptron.

    Attributes:
      hidden: units of each hidden layer; () for a linear classifier.
      features: numbers in one example.

    The others (activation, batch_norm, classes, dtype, momentum, eps, gradients) are those of every model, described at
    `Options` in `_blocks.py`.
    """

    hidden: tuple[int, ...] = (500, 150)
    features: int = 784

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.hidden, int | str):
            raise ValueError(f"hidden must be a tuple of numbers of units, got {self.hidden!r}")
        hidden = tuple(_checks.integer(f"hidden[{i}]", n, at_least=1) for i, n in enumerate(self.hidden))
        object.__setattr__(self, "hidden", hidden)  # a list is welcome, but does not hash
        _checks.integer("features", self.features, at_least=1)


def init(key: jax.Array, config: Config) -> tuple[_blocks.Tree, _blocks.Tree]:
    """Draws the parameters.

    Args:
      key: a JAX random key.
      config: which network.

    Returns:
      params: {"dense1": {"kernel"}, "bn1": {"gamma", "beta"}, …, "output": {"kernel", "bias"}}; without batch norm no
        "bn1", …, and a "bias" in every layer. Kernels are drawn by He et al. for relu, by Glorot & Bengio for tanh and
        sigmoid; biases and beta are 0, gamma 1.
      state: {"bn1": RunningStats, …}; empty without batch norm.
    """
    *sizes, last = (config.features, *config.hidden)
    hidden = [("dense", shape) for shape in zip(sizes, config.hidden, strict=True)]
    return _blocks.init(key, hidden, (last, config.classes), config)


def apply(
    params: _blocks.Tree, state: _blocks.Tree, x: jax.Array, config: Config, *, train: bool, axis_name: Any = None
) -> tuple[jax.Array, _blocks.Tree]:
    """The logits of a batch.

    Args:
      params: from `init`.
      state: from `init`, or from an earlier call.
      x: shape (N, features), or (N, ...) with as many numbers in each example, such as images, which are flattened in
        row-major order; floating, cast to `config.dtype`.
      config: which network; a static argument under `jax.jit`.
      train: True normalizes by the statistics of this batch and renews the running ones; False normalizes by the
        running ones and returns `state` as it is. Static.
      axis_name: mapped axis (or axes) over which the batch is spread, to share its statistics; see `batch_norm`.

    Returns:
      logits: shape (N, classes), dtype `config.dtype`.
      state: the running statistics.

    Raises:
      TypeError: `x` has no floating dtype.
      ValueError: the examples do not have `config.features` numbers.
    """
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
