"""Flax's side: its own layers in the same network, and its layers one by one. Imported only where flax is installed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bnderiv import linen


class LeNet5(nn.Module):
    """As `bnderiv.models.lenet5`: no bias where batch norm would cancel it."""

    pool: str
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pool = {"max": nn.max_pool, "avg": nn.avg_pool}[self.pool]
        activation = {"relu": nn.relu, "tanh": nn.tanh}[self.activation]

        def normalized(x: jax.Array) -> jax.Array:
            return activation(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))

        x = normalized(nn.Conv(6, (5, 5), padding=2, use_bias=False)(x))
        x = normalized(nn.Conv(16, (5, 5), padding="VALID", use_bias=False)(pool(x, (2, 2), (2, 2))))
        x = pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        x = normalized(nn.Dense(120, use_bias=False)(x))
        x = normalized(nn.Dense(84, use_bias=False)(x))
        return nn.Dense(10)(x)


def layer(name: str, x: jax.Array, *parameters: jax.Array, **options: Any) -> Any:
    """A layer by bnderiv's name for it and with bnderiv's options; y has the dtype of x."""
    if name.startswith("batch_norm"):
        y, new = batch_norm(x, *parameters)
        return (nn.relu(y) if name.endswith("relu") else y), new
    if name.endswith("_pool"):
        return pool(name, x, **options)
    if name.startswith("softmax_cross_entropy"):
        return getattr(optax.losses, name)(x, **options)
    if name in ("relu", "sigmoid", "tanh", "softmax", "log_softmax"):
        return getattr(nn, name)(x)
    if name in ("dense", "conv"):
        kernel, bias = parameters
        window = kernel.shape[:-2]
        layer = nn.Conv(bias.size, window, padding="VALID") if window else nn.Dense(bias.size)
        return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    norm: Any = {
        "layer_norm": nn.LayerNorm,
        "group_norm": partial(nn.GroupNorm, options.get("groups")),
        "instance_norm": nn.InstanceNorm,
        "rms_norm": nn.RMSNorm,
    }[name](epsilon=options["eps"], dtype=x.dtype)
    names = ("scale",) if name == "rms_norm" else ("scale", "bias")
    return norm.apply({"params": dict(zip(names, parameters, strict=False))}, x)


def batch_norm(x: jax.Array, gamma: jax.Array, beta: jax.Array, mask: Any = None, **options: Any) -> tuple[Any, Any]:
    """y and the new running statistics: what a step of training computes. In the dtype of x, parameters in theirs."""
    norm = nn.BatchNorm(use_running_average=False, dtype=x.dtype, param_dtype=gamma.dtype, **options)
    running = {"mean": jnp.zeros(gamma.shape), "var": jnp.ones(gamma.shape)}
    variables = {"params": {"scale": gamma, "bias": beta}, "batch_stats": running}
    return norm.apply(variables, x, mask=mask, mutable=["batch_stats"])


def pool(name: str, x: jax.Array, window: Any, strides: Any, padding: Any = "VALID") -> jax.Array:
    """`max_pool` or `avg_pool`; a number is that of every axis."""
    axes = x.ndim - 2
    window, strides = (n if isinstance(n, tuple) else (n,) * axes for n in (window, strides))
    sides = padding if isinstance(padding, str) else ((padding, padding),) * axes
    return getattr(nn, name)(x, window, strides, sides)


class Bottleneck(nn.Module):
    """ResNet-50's block: 1×1, 3×3 and 1×1 convolutions, and the way around them, through a 1×1 where shapes differ.

    With `ours` its batch norm is that of `bnderiv.linen`, ReLU and residual in the rule.
    """

    channels: int = 64
    stride: int = 1
    conv: type[nn.Module] = nn.Conv
    ours: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = partial(_convolved, self.conv, self.ours)
        around = x
        if self.stride > 1 or x.shape[-1] != 4 * self.channels:
            around = layer(x, 4 * self.channels, 1, self.stride, relu=False)
        a = layer(layer(x, self.channels, 1), self.channels, 3, self.stride)
        return layer(a, 4 * self.channels, 1, residual=around)


class ResNet(nn.Module):
    """ResNet-50, or with fewer blocks in its stages, for 1000 classes; with `ours` in bnderiv's layers."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    ours: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        package = linen if self.ours else nn
        x = _convolved(package.Conv, self.ours, x, 64, 7, 2)
        x = package.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, number in enumerate(self.blocks):
            for block in range(number):
                stride = 2 if stage and not block else 1
                x = Bottleneck(64 * 2**stage, stride, package.Conv, self.ours)(x)
        return nn.Dense(1000, dtype=x.dtype)(x.mean((1, 2)))


class Transformer(nn.Module):
    """Two blocks of a vision transformer, and a class for each patch; with `ours` its norms are bnderiv's."""

    ours: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial((linen if self.ours else nn).LayerNorm, dtype=x.dtype)
        dense = partial(nn.Dense, dtype=x.dtype)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(num_heads=12, dtype=x.dtype)(norm()(x))
            x = x + dense(x.shape[-1])(nn.gelu(dense(4 * x.shape[-1])(norm()(x))))
        return dense(1000)(norm()(x))


def _convolved(
    conv: Any,
    ours: bool,
    x: jax.Array,
    channels: int,
    window: int,
    stride: int = 1,
    *,
    relu: bool = True,
    residual: Any = None,
) -> jax.Array:
    """A convolution, batch norm, the residual and ReLU, in a module's `__call__`."""
    options: Any = {"use_running_average": False, "dtype": x.dtype}
    z = conv(channels, (window, window), (stride, stride), use_bias=False, dtype=x.dtype)(x)
    if ours and relu:
        return linen.BatchNorm(activation="relu", **options)(z, residual=residual)
    y = (linen if ours else nn).BatchNorm(**options)(z)
    y = y if residual is None else y + residual
    return nn.relu(y) if relu else y


def functions(network: nn.Module) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """apply(params, state, x) -> y, state; init(x) -> params, state."""

    def init(x: jax.Array) -> Any:
        variables = jax.jit(network.init)(jax.random.key(0), x)
        return variables["params"], variables.get("batch_stats", {})

    def apply(params: Any, state: Any, x: jax.Array) -> Any:
        variables = {"params": params, "batch_stats": state}
        y, new = network.apply(variables, x, mutable=["batch_stats"])
        return y, new.get("batch_stats", {})

    return apply, init
