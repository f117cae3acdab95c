"""Batch normalization and its relatives, step by step: the derivation (derivation.md) as arrays.

Every sum is written out, as in the derivation. The layers compute the same in fewer passes, and stay accurate at means
far above the deviation; these lines do not.
"""

from bnderiv.normalization.steps.closed_form import BatchNormClosedForm, batch_norm_closed_form
from bnderiv.normalization.steps.devices import BatchNormAcrossDevices, batch_norm_across_devices
from bnderiv.normalization.steps.graph import BatchNormGraph, batch_norm_graph
from bnderiv.normalization.steps.group_norm import GroupNorm, InstanceNorm, group_norm, instance_norm
from bnderiv.normalization.steps.inference import BatchNormInference, batch_norm_inference
from bnderiv.normalization.steps.jacobians import centering_jacobian, normalization_jacobian, variance_jacobian
from bnderiv.normalization.steps.layer_norm import LayerNorm, layer_norm
from bnderiv.normalization.steps.renorm import BatchRenorm, batch_renorm
from bnderiv.normalization.steps.rms_norm import RmsNorm, rms_norm
from bnderiv.normalization.steps.running import UpdateRunningStats, update_running_stats
from bnderiv.normalization.steps.three_parts import BatchNorm, BatchNormRelu, batch_norm, batch_norm_relu

__all__ = [
    "BatchNorm",
    "BatchNormAcrossDevices",
    "BatchNormClosedForm",
    "BatchNormGraph",
    "BatchNormInference",
    "BatchNormRelu",
    "BatchRenorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RmsNorm",
    "UpdateRunningStats",
    "batch_norm",
    "batch_norm_across_devices",
    "batch_norm_closed_form",
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
    "update_running_stats",
    "variance_jacobian",
]
