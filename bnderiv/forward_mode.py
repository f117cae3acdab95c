"""Every layer and loss again, differentiable in both modes: jvp, jacfwd, linearize and hessian as well as grad.

The same closed forms, attached otherwise: `jax.custom_vjp` knows no forward mode, so here each `_fwd` and `_bwd` is
attached as a `jax.custom_jvp` (how: `_rule.py`). Names, signatures, values, gradients and what is saved for the
backward are those of `bnderiv`. Take this module where forward mode is wanted, and `bnderiv` otherwise.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from bnderiv._rule import both_modes
from bnderiv.activation import relu as _relu
from bnderiv.activation import sigmoid as _sigmoid
from bnderiv.activation import softmax as _softmax
from bnderiv.activation import tanh as _tanh
from bnderiv.convolution import conv2d as _conv2d
from bnderiv.linear import dense as _dense
from bnderiv.linear import flatten as _flatten
from bnderiv.loss import softmax_cross_entropy as _cross_entropy
from bnderiv.loss import squared_error as _squared_error
from bnderiv.normalization import batch_norm as _batch_norm
from bnderiv.normalization import inference as _inference
from bnderiv.normalization.running_stats import init_running_stats, update_running_stats
from bnderiv.pooling import avg_pool as _avg_pool
from bnderiv.pooling import max_pool as _max_pool

P = ParamSpec("P")
R = TypeVar("R")


def _in_both_modes(layer: Callable[P, R]) -> Callable[P, R]:
    @wraps(layer)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with both_modes():
            return layer(*args, **kwargs)

    call.__module__ = __name__  # where it is found by its name, as pickle wants
    return call


dense = _in_both_modes(_dense.dense)
conv2d = _in_both_modes(_conv2d.conv2d)
avg_pool = _in_both_modes(_avg_pool.avg_pool)
max_pool = _in_both_modes(_max_pool.max_pool)
batch_norm = _in_both_modes(_batch_norm.batch_norm)
batch_norm_relu = _in_both_modes(_batch_norm.batch_norm_relu)
batch_norm_inference = _in_both_modes(_inference.batch_norm_inference)
relu = _in_both_modes(_relu.relu)
tanh = _in_both_modes(_tanh.tanh)
sigmoid = _in_both_modes(_sigmoid.sigmoid)
softmax = _in_both_modes(_softmax.softmax)
flatten = _in_both_modes(_flatten.flatten)
softmax_cross_entropy = _in_both_modes(_cross_entropy.softmax_cross_entropy)
softmax_cross_entropy_with_integer_labels = _in_both_modes(_cross_entropy.softmax_cross_entropy_with_integer_labels)
squared_error = _in_both_modes(_squared_error.squared_error)

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
