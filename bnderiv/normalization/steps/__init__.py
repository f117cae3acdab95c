"""Batch normalization and its relatives, step by step: the derivation (derivation.md) as arrays.

Every sum is written out, as in the derivation. The layers compute the same in fewer passes, and stay accurate at means
far above the deviation; these lines do not.
"""

from bnderiv.normalization.steps.graph import BatchNormGraph, batch_norm_graph
from bnderiv.normalization.steps.inference import BatchNormInference, batch_norm_inference
from bnderiv.normalization.steps.jacobians import centering_jacobian, normalization_jacobian, variance_jacobian
from bnderiv.normalization.steps.other_axes import (
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RmsNorm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from bnderiv.normalization.steps.renorm import BatchRenorm, batch_renorm
from bnderiv.normalization.steps.three_parts import BatchNorm, BatchNormRelu, batch_norm, batch_norm_relu

__all__ = [
    "BatchNorm",
    "BatchNormGraph",
    "BatchNormInference",
    "BatchNormRelu",
    "BatchRenorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RmsNorm",
    "batch_norm",
    "batch_norm_graph",
    "batch_norm_inference",
    "batch_norm_relu",
    "batch_renorm",
    "centering_jacobian",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalization_jacobian",
    "rms_norm",
    "variance_jacobian",
]
