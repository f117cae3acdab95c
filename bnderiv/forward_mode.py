"""Every layer and loss again, differentiable in both modes: jvp, jacfwd, linearize and hessian as well as grad.

`jax.custom_vjp` has no forward mode, so here each `_fwd` and `_bwd` is attached as a `jax.custom_jvp` (`_rule.py` says
how). Names, signatures, values, gradients and residuals are those of `bnderiv`. Where forward mode is not needed, use
`bnderiv`.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from bnderiv import _layers
from bnderiv._rule import both_modes
from bnderiv.normalization import running_stats
from bnderiv.normalization.running_stats import *  # noqa: F403

if TYPE_CHECKING:
    from bnderiv._layers import *  # noqa: F403

__all__: list[str] = []
__all__ += _layers.__all__
__all__ += running_stats.__all__

P = ParamSpec("P")
R = TypeVar("R")


def _in_both_modes(layer: Callable[P, R]) -> Callable[P, R]:
    @wraps(layer)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with both_modes():
            return layer(*args, **kwargs)

    call.__module__ = __name__  # where it is found by its name, as pickle wants
    return call


for _name in _layers.__all__:
    globals()[_name] = _in_both_modes(getattr(_layers, _name))
