"""The plain forward of every layer, differentiated by JAX: what the closed forms must equal."""

from bnderiv import _layers
from bnderiv.activation.reference import *  # noqa: F403
from bnderiv.convolution.reference import *  # noqa: F403
from bnderiv.linear.reference import *  # noqa: F403
from bnderiv.loss.reference import *  # noqa: F403
from bnderiv.normalization import running_stats
from bnderiv.normalization.reference import *  # noqa: F403
from bnderiv.pooling.reference import *  # noqa: F403

__all__: list[str] = []
__all__ += _layers.__all__
__all__ += running_stats.__all__
