"""The derivations as arrays: every intermediate of every layer and loss under the symbol it has on paper.

    s = bnderiv.steps.batch_norm(x, gamma, beta, dy)
    print(s)  # name, symbol, shape, norm and label of each step; its values if they are few
    bnderiv.steps.first_difference({"d_var": mine}, s)  # which step of mine is wrong?

Each function takes the arguments of its layer and `dy`, the gradient that comes back from above. It returns a
NamedTuple: its inputs and options, then every step in the order of the derivation. `help(type(s))` explains each
field. The steps are plain jnp with no gradient rule attached: differentiate, jit and vmap them as you like. The layers
compute the same with fewer passes and smaller rounding errors.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bnderiv import _layers

if TYPE_CHECKING:
    from bnderiv.activation.steps import log_softmax, relu, sigmoid, softmax, softmax_jacobian, tanh  # noqa: F401
    from bnderiv.convolution.steps import conv, conv2d  # noqa: F401
    from bnderiv.linear.steps import dense, flatten  # noqa: F401
    from bnderiv.loss.steps import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels, squared_error  # noqa: F401
    from bnderiv.models.steps import lenet5
    from bnderiv.normalization.steps import (  # noqa: F401
        batch_norm,
        batch_norm_across_devices,
        batch_norm_closed_form,
        batch_norm_graph,
        batch_norm_inference,
        batch_norm_relu,
        batch_renorm,
        centering_jacobian,
        group_norm,
        instance_norm,
        layer_norm,
        normalization_jacobian,
        rms_norm,
        update_running_stats,
        variance_jacobian,
    )
    from bnderiv.pooling.steps import avg_pool, max_pool  # noqa: F401
    from bnderiv.steps.difference import Difference, first_difference

__all__ = [
    "batch_norm_graph",
    "batch_norm_closed_form",
    "batch_norm_across_devices",
    "update_running_stats",
    "centering_jacobian",
    "variance_jacobian",
    "normalization_jacobian",
    "softmax_jacobian",
    "lenet5",
    "first_difference",
    "Difference",
]
__all__ += _layers.__all__

# The modules that define the names, imported at first use: they import this package's table themselves.
_ROOMS = ("linear", "convolution", "pooling", "normalization", "activation", "loss", "models")
_MODULES = (*(f"bnderiv.{room}.steps" for room in _ROOMS), "bnderiv.steps.difference")


def __getattr__(name: str) -> Any:
    for module in map(importlib.import_module, _MODULES if name in __all__ else ()):
        if hasattr(module, name):
            globals()[name] = getattr(module, name)
            return globals()[name]
    raise AttributeError(f"module 'bnderiv.steps' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
