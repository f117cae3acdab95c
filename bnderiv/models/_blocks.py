"""What the models have in common: their options, and the block affine → batch norm → activation."""

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv.normalization.running_stats import init_running_stats, update_running_stats

# Named, not imported: each attachment has the same functions, and is loaded when a model first asks for it.
_ATTACHMENTS = {"closed_form": "bnderiv", "forward_mode": "bnderiv.forward_mode", "autodiff": "bnderiv.reference"}

# Before relu, He et al. 2015: the variance that halving at 0 asks for. Otherwise Glorot & Bengio 2010.
_KERNELS = {
    "relu": initializers.he_normal(),
    "tanh": initializers.glorot_uniform(),
    "sigmoid": initializers.glorot_uniform(),
}

Tree = dict[str, Any]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options that every model takes. Frozen and hashable: a `Config` is a static argument of `jax.jit`.

    Attributes:
      activation: "relu", "tanh" or "sigmoid".
      batch_norm: normalize before every activation. The layer in front then has no bias, which batch norm would cancel.
      classes: number of logits.
      dtype: of the parameters, and what the input is cast to (running statistics: float32, or float64 for float64).
      momentum: weight of the OLD running statistics, as in `bnderiv.update_running_stats`.
      eps: added to the variance, as in `bnderiv.batch_norm`.
      gradients: which attachment of the layers to use: "closed_form" (`bnderiv`), "forward_mode"
        (`bnderiv.forward_mode`: the same rules in both modes) or "autodiff" (`bnderiv.reference`).
    """

    activation: str = "relu"
    batch_norm: bool = True
    classes: int = 10
    dtype: DTypeLike = jnp.float32
    momentum: float = 0.9
    eps: float = 1e-5
    gradients: str = "closed_form"

    def __post_init__(self) -> None:
        one_of("activation", self.activation, _KERNELS)
        one_of("gradients", self.gradients, _ATTACHMENTS)
        if not isinstance(self.batch_norm, bool):
            raise ValueError(f"batch_norm must be True or False, got {self.batch_norm!r}")
        _checks.integer("classes", self.classes, at_least=1)
        try:
            dtype = None if self.dtype is None else jnp.dtype(self.dtype)
        except TypeError:
            dtype = None
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"dtype must be a floating dtype, got {self.dtype!r}")
        object.__setattr__(self, "dtype", dtype)  # "float32" and jnp.float32 are one configuration
        finite = sys.float_info.max
        for name, most, meaning in (("momentum", 1, "lie in [0, 1]"), ("eps", finite, "be finite and at least 0")):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= most:
                raise ValueError(f"{name} must {meaning}, a Python number, got {value!r}")


def one_of(name: str, value: Any, allowed: Any) -> None:
    """Raises ValueError unless `value` is one of the strings `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def layers(config: Options) -> ModuleType:
    """The module whose layers the model calls."""
    return importlib.import_module(_ATTACHMENTS[config.gradients])


def init(key: jax.Array, hidden: Sequence[tuple[str, Shape]], output: Shape, config: Options) -> tuple[Tree, Tree]:
    """Parameters and running statistics of the hidden layers and of the output layer.

    The i-th of `hidden`, (kind, kernel shape (..., in, out)), is called kind + i, counted from 1, and its batch norm
    "bn" + i; the last layer is "output". A layer before batch norm has no bias, the output layer no batch norm.
    """
    *keys, last = jax.random.split(key, len(hidden) + 1)
    params: Tree = {}
    state: Tree = {}
    for i, (key, (kind, shape)) in enumerate(zip(keys, hidden, strict=True), start=1):
        units = shape[-1]
        zeros, ones = jnp.zeros(units, config.dtype), jnp.ones(units, config.dtype)
        layer = params[f"{kind}{i}"] = {"kernel": _KERNELS[config.activation](key, shape, config.dtype)}
        if config.batch_norm:
            params[f"bn{i}"] = {"gamma": ones, "beta": zeros}
            state[f"bn{i}"] = init_running_stats(units, accumulator(config.dtype))
        else:
            layer["bias"] = zeros
    kernel = initializers.lecun_normal()(last, output, config.dtype)  # linear: nothing to make up for
    params["output"] = {"kernel": kernel, "bias": jnp.zeros(output[-1], config.dtype)}
    return params, state


def activate(
    params: Tree,
    config: Options,
    train: bool,
    axis_name: Any,
    state: Tree,
    i: int,
    z: jax.Array,
    channel_axis: int = -1,
) -> tuple[jax.Array, Tree]:
    """Batch norm i, where there is one, and the activation; and the state with its running statistics renewed."""
    bn = layers(config)
    activation = getattr(bn, config.activation)
    if not config.batch_norm:
        return activation(z), state
    name = f"bn{i}"
    gamma, beta = params[name]["gamma"], params[name]["beta"]
    if not train:
        running = state[name]
        y = bn.batch_norm_inference(
            z, gamma, beta, running.mean, running.var, channel_axis=channel_axis, eps=config.eps
        )
        return activation(y), state
    options = {"channel_axis": channel_axis, "eps": config.eps, "axis_name": axis_name}
    if config.activation == "relu":  # fused: keeps z alone for the backward
        a, batch = bn.batch_norm_relu(z, gamma, beta, **options)
    else:
        y, batch = bn.batch_norm(z, gamma, beta, **options)
        a = activation(y)
    return a, {**state, name: update_running_stats(state[name], batch, momentum=config.momentum)}
