"""The plain forward of every layer, differentiated by JAX: what the closed forms must equal."""

from bnderiv.activation.reference import relu, sigmoid, softmax, tanh
from bnderiv.convolution.reference import conv2d
from bnderiv.linear.reference import dense, flatten
from bnderiv.loss.reference import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels, squared_error
from bnderiv.normalization.reference import (
    batch_norm,
    batch_norm_inference,
    batch_norm_relu,
    init_running_stats,
    update_running_stats,
)
from bnderiv.pooling.reference import avg_pool, max_pool

__all__ = [
    "dense",
    "conv2d",
    "avg_pool",
    "max_pool",
    "batch_norm",
    "batch_norm_relu",
    "batch_norm_inference",
    "relu",
    "tanh",
    "sigmoid",
    "softmax",
    "flatten",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
    "init_running_stats",
    "update_running_stats",
]
