"""What the models share: their options, their parameters, and the block affine → batch norm → activation."""

import dataclasses
import importlib
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jax.typing import DTypeLike

from bnderiv import _checks
from bnderiv._numbers import accumulator
from bnderiv._types import AxisName
from bnderiv.normalization.running_stats import RunningStats, init_running_stats, update_running_stats

# Names and not modules: a module is imported when a model first uses it.
_ATTACHMENTS = {"closed_form": "bnderiv", "forward_mode": "bnderiv.forward_mode", "autodiff": "bnderiv.reference"}

# He et al. 2015 before relu, which halves the variance; Glorot & Bengio 2010 before the others.
_KERNELS = {
    "relu": initializers.he_normal(),
    "tanh": initializers.glorot_uniform(),
    "sigmoid": initializers.glorot_uniform(),
}

Tree = dict[str, Any]
Shape = tuple[int, ...]
Layers = Sequence[tuple[str, Shape]]
"""The hidden layers: (kind, kernel shape (..., in, out))."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every model. Frozen and hashable, so a `Config` can be a static argument of `jax.jit`.

    Attributes:
      activation: "relu", "tanh" or "sigmoid".
      batch_norm: whether to normalize before every activation. The layer before it then has no bias, because batch
        norm would cancel it.
      classes: number of logits.
      dtype: dtype of the parameters; the input is cast to it. Running statistics are float32, or float64 for float64.
      momentum: weight of the OLD running statistics, as in `bnderiv.update_running_stats`.
      eps: added to the variance, as in `bnderiv.batch_norm`.
      gradients: which layers to use: "closed_form" (`bnderiv`), "forward_mode" (`bnderiv.forward_mode`: the same rules
        in both modes) or "autodiff" (`bnderiv.reference`).
    """

    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    batch_norm: bool = True
    classes: int = 10
    dtype: DTypeLike = jnp.float32
    momentum: float = 0.9
    eps: float = 1e-5
    gradients: Literal["closed_form", "forward_mode", "autodiff"] = "closed_form"

    def __post_init__(self) -> None:
        one_of("activation", self.activation, _KERNELS)
        one_of("gradients", self.gradients, _ATTACHMENTS)
        if not isinstance(self.batch_norm, bool):
            raise ValueError(f"batch_norm must be True or False, got {self.batch_norm!r}")
        object.__setattr__(self, "classes", _checks.integer("classes", self.classes, at_least=1))
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


def is_sequence(value: Any) -> bool:
    """Whether `value` holds several numbers: a tuple, a list, an array of NumPy."""
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str)


def layers(config: Options) -> ModuleType:
    """The module whose layers the model calls."""
    return importlib.import_module(_ATTACHMENTS[config.gradients])


def init(key: jax.Array, hidden: Layers, output: Shape, config: Options) -> tuple[Tree, Tree]:
    """Parameters and running statistics of the hidden layers and the output layer.

    The i-th hidden layer is named kind + i, counted from 1, and its batch norm "bn" + i. The last layer is "output",
    with the kernel shape `output` and without batch norm. A layer before batch norm has no bias.
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
    kernel = initializers.lecun_normal()(last, output, config.dtype)  # no activation follows
    params["output"] = {"kernel": kernel, "bias": jnp.zeros(output[-1], config.dtype)}
    return params, state


def checked(params: Any, state: Any, hidden: Layers, output: Shape, config: Options) -> Tree:
    """`params` with the entries that the layers take, as JAX arrays. The arguments are those of `init`.

    A layer before batch norm may have a bias all the same, as a checkpoint from elsewhere may.

    Raises:
      TypeError: an entry of `params` or `state` has the wrong type.
      ValueError: an entry is missing, unknown or has the wrong shape.
    """
    arrays: Tree = {}
    for i, (kind, shape) in enumerate(hidden, start=1):
        bias, units = {"bias": shape[-1:]}, shape[-1:]
        required, optional = ({}, bias) if config.batch_norm else (bias, {})
        arrays[f"{kind}{i}"] = _entries(params, f"{kind}{i}", {"kernel": shape, **required}, optional)
        if config.batch_norm:
            arrays[f"bn{i}"] = _entries(params, f"bn{i}", {"gamma": units, "beta": units})
            _check_running(state, f"bn{i}", units)
    arrays["output"] = _entries(params, "output", {"kernel": output, "bias": output[-1:]})
    _no_others("params", params, list(arrays))
    _no_others("state", state, [name for name in arrays if name.startswith("bn")])
    return arrays


def _entries(params: Any, layer: str, required: dict[str, Shape], optional: dict[str, Shape] | None = None) -> Tree:
    shapes = {**required, **(optional or {})}
    entries = _entry("params", params, layer)
    if not isinstance(entries, Mapping):
        raise TypeError(f"params[{layer!r}] must be a dict, got {type(entries).__name__}")
    if not required.keys() <= entries.keys() <= shapes.keys():
        raise ValueError(f"params[{layer!r}] must have the keys {list(required)}, got {list(entries)}")
    arrays = {}
    for name, value in entries.items():
        arrays[name] = _checks.float_array(f"params[{layer!r}][{name!r}]", value)
        _checks.shape_is(f"params[{layer!r}][{name!r}]", arrays[name], shapes[name], "as init makes it for this config")
    return arrays


def _check_running(state: Any, name: str, shape: Shape) -> None:
    running = _entry("state", state, name)
    if not isinstance(running, RunningStats):
        raise TypeError(f"state[{name!r}] must be a RunningStats, got {type(running).__name__}")
    for field in ("mean", "var"):
        value = _checks.float_array(f"state[{name!r}].{field}", getattr(running, field))
        _checks.shape_is(f"state[{name!r}].{field}", value, shape, "as init makes it for this config")


def _entry(argument: str, tree: Any, name: str) -> Any:
    if not isinstance(tree, Mapping):
        raise TypeError(f"{argument} must be a dict, as init returns it, got {type(tree).__name__}")
    if name not in tree:
        raise ValueError(f"{argument} must have the key {name!r}, got the keys {list(tree)}")
    return tree[name]


def _no_others(argument: str, tree: Any, names: list[str]) -> None:
    """Raises ValueError where no layer would take an entry, as if the config were that of a shallower network."""
    if not set(tree or ()) <= set(names):
        raise ValueError(f"{argument} must have the keys {names} and no others for this config, got {list(tree)}")


def check_config(config: Any, kind: type[Options]) -> None:
    """Raises TypeError unless `config` is one of this model's."""
    if not isinstance(config, kind):
        model = kind.__module__.removeprefix("bnderiv.models.")
        raise TypeError(f"config must be a {model}.Config, got {type(config).__module__}.{type(config).__qualname__}")


def activate(
    params: Tree,
    config: Options,
    train: bool,
    axis_name: AxisName | None,
    state: Tree,
    i: int,
    z: jax.Array,
    channel_axis: int = -1,
) -> tuple[jax.Array, Tree]:
    """Batch norm i, if the config has it, then the activation; and the state with updated running statistics."""
    bn = layers(config)
    activation = getattr(bn, config.activation)
    if not config.batch_norm:
        return activation(z), state
    name = f"bn{i}"
    gamma, beta, running = params[name]["gamma"], params[name]["beta"], state[name]
    if not train:
        y = bn.batch_norm_inference(
            z, gamma, beta, running.mean, running.var, channel_axis=channel_axis, eps=config.eps
        )
        return activation(y), state
    options = {"channel_axis": channel_axis, "eps": config.eps, "axis_name": axis_name, "assumed_mean": running.mean}
    if config.activation == "relu":  # fused: saves only z for the backward
        a, batch = bn.batch_norm_relu(z, gamma, beta, **options)
    else:
        y, batch = bn.batch_norm(z, gamma, beta, **options)
        a = activation(y)
    return a, {**state, name: update_running_stats(running, batch, momentum=config.momentum)}
