"""What the activations must equal: the plain forward, differentiated by JAX."""

import jax
import jax.numpy as jnp

from bnderiv._numbers import accumulator

__all__ = ["relu", "tanh", "sigmoid", "softmax", "log_softmax"]


def relu(x):
    """`max(x, 0)`; see `bnderiv.relu`."""
    return jax.nn.relu(x)


def tanh(x):
    """`tanh(x)`; see `bnderiv.tanh`."""
    return jnp.tanh(x.astype(accumulator(x.dtype))).astype(x.dtype)


def sigmoid(x):
    """`1 / (1 + exp(−x))`, written as (1 + tanh(x/2)) / 2; see `bnderiv.sigmoid`."""
    half = x.astype(accumulator(x.dtype)) / 2
    return ((1 + jnp.tanh(half)) / 2).astype(x.dtype)


def softmax(x, axis=-1):
    """`exp(x − log Σ exp(x))`; see `bnderiv.softmax`."""
    wide = x.astype(accumulator(x.dtype))
    return jnp.exp(wide - jax.nn.logsumexp(wide, axis, keepdims=True)).astype(x.dtype)


def log_softmax(x, axis=-1):
    """`x − log Σ exp(x)`; see `bnderiv.log_softmax`."""
    return jax.nn.log_softmax(x.astype(accumulator(x.dtype)), axis).astype(x.dtype)
