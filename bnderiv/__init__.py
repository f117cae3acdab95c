"""Batch-normalized convolutional networks in JAX, every gradient derived by hand and attached in closed form."""

import importlib
from typing import TYPE_CHECKING, Any

from bnderiv import _layers, models, reference
from bnderiv._layers import *  # noqa: F403
from bnderiv.normalization import running_stats as _statistics
from bnderiv.normalization.running_stats import *  # noqa: F403

if TYPE_CHECKING:
    from bnderiv import check, equinox, forward_mode, haiku, linen, nnx, steps  # noqa: F401

__version__ = "0.2.0"

__all__ = ["reference", "forward_mode", "steps", "check", "models"]
__all__ += _layers.__all__
__all__ += _statistics.__all__

# Imported when first asked for: what a training loop does without, and the adapters, which need their framework.
_ADAPTERS = ("linen", "nnx", "equinox", "haiku")
_ON_DEMAND = ("forward_mode", "steps", "check", *_ADAPTERS)


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return importlib.import_module(f"bnderiv.{name}")
    raise AttributeError(f"module 'bnderiv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ADAPTERS, *(name for name in globals() if name.startswith("__"))])
