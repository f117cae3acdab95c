"""The one list of layers: `bnderiv`, `reference`, `forward_mode` and `steps` have the names in `__all__`."""

from bnderiv.activation.log_softmax import log_softmax
from bnderiv.activation.relu import relu
from bnderiv.activation.sigmoid import sigmoid
from bnderiv.activation.softmax import softmax
from bnderiv.activation.tanh import tanh
from bnderiv.convolution.conv import conv
from bnderiv.convolution.conv2d import conv2d
from bnderiv.linear.dense import dense
from bnderiv.linear.flatten import flatten
from bnderiv.loss.integer_labels import softmax_cross_entropy_with_integer_labels
from bnderiv.loss.softmax_cross_entropy import softmax_cross_entropy
from bnderiv.loss.squared_error import squared_error
from bnderiv.normalization.batch_norm import batch_norm, batch_norm_relu
from bnderiv.normalization.batch_renorm import batch_renorm
from bnderiv.normalization.group_norm import group_norm, instance_norm
from bnderiv.normalization.inference import batch_norm_inference
from bnderiv.normalization.layer_norm import layer_norm
from bnderiv.normalization.rms_norm import rms_norm
from bnderiv.pooling.avg_pool import avg_pool
from bnderiv.pooling.max_pool import max_pool

__all__ = [
    "dense",
    "conv",
    "conv2d",
    "avg_pool",
    "max_pool",
    "batch_norm",
    "batch_norm_relu",
    "batch_norm_inference",
    "batch_renorm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "relu",
    "tanh",
    "sigmoid",
    "softmax",
    "log_softmax",
    "flatten",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
]
