"""Every layer and loss again, differentiable in both modes: jvp, jacfwd and linearize as well as grad.

`jax.custom_vjp` has no forward mode, so here each `_fwd` and `_bwd` is attached as a `jax.custom_jvp` (`_rule.py` says
how). Names, signatures, values and gradients are those of `bnderiv`. Here a layer saves the arguments that its backward
needs, even where `bnderiv` saves its result or less, as in `relu` and `max_pool`. Where forward mode is not needed, use
`bnderiv`.

`enabled` is the same for code that calls `bnderiv`'s own names: a model, or the adapters for Flax, Equinox and Haiku.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bnderiv import _layers
from bnderiv._rule import both_modes
from bnderiv.normalization import running_stats
from bnderiv.normalization.running_stats import *  # noqa: F403

if TYPE_CHECKING:
    from bnderiv._layers import *  # noqa: F403

__all__: list[str] = ["enabled"]
__all__ += _layers.__all__
__all__ += running_stats.__all__

P = ParamSpec("P")
R = TypeVar("R")


def enabled() -> AbstractContextManager[Any]:
    """A context in which every layer of `bnderiv` and its adapters is differentiable in both modes.

    Enter it around the differentiation, or within the differentiated function. Compiled functions are traced again in
    it. Other threads are not affected.

    Example:
      >>> import bnderiv.forward_mode, jax, jax.numpy as jnp
      >>> with bnderiv.forward_mode.enabled():
      ...     value, slope = jax.jvp(bnderiv.relu, (jnp.array([3.0]),), (jnp.array([2.0]),))
      >>> slope.tolist()
      [2.0]
    """
    return both_modes()


def _in_both_modes(layer: Callable[P, R]) -> Callable[P, R]:
    @wraps(layer)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with both_modes():
            return layer(*args, **kwargs)

    call.__module__ = __name__  # where it is found by its name, as pickle wants
    return call


for _name in _layers.__all__:
    globals()[_name] = _in_both_modes(getattr(_layers, _name))
