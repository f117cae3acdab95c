"""Batch-normalized convolutional networks in JAX, every gradient derived by hand and attached in closed form."""

import importlib
from typing import TYPE_CHECKING, Any

from bnderiv import models, reference
from bnderiv.activation.relu import relu
from bnderiv.activation.sigmoid import sigmoid
from bnderiv.activation.softmax import softmax
from bnderiv.activation.tanh import tanh
from bnderiv.convolution.conv2d import conv2d
from bnderiv.linear.dense import dense
from bnderiv.linear.flatten import flatten
from bnderiv.loss.softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels
from bnderiv.loss.squared_error import squared_error
from bnderiv.normalization.batch_norm import batch_norm, batch_norm_relu
from bnderiv.normalization.inference import batch_norm_inference
from bnderiv.normalization.running_stats import BatchStats, RunningStats, init_running_stats, update_running_stats
from bnderiv.pooling.avg_pool import avg_pool
from bnderiv.pooling.max_pool import max_pool

if TYPE_CHECKING:
    from bnderiv import check, forward_mode, steps

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
    "BatchStats",
    "RunningStats",
    "init_running_stats",
    "update_running_stats",
    "reference",
    "forward_mode",
    "steps",
    "check",
    "models",
]


# Imported when first asked for: what a training loop does without, and the adapters, which need their framework.
_ON_DEMAND = ("forward_mode", "steps", "check", "linen", "nnx", "equinox", "haiku")


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return importlib.import_module(f"bnderiv.{name}")
    raise AttributeError(f"module 'bnderiv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
