"""The types of arguments that several layers have, for type checkers."""

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

PerAxis = int | Sequence[int] | np.ndarray
"""One integer for all spatial axes, or one for each: windows, strides, dilation."""

Axes = int | Sequence[int] | np.ndarray
"""One axis or several, negative ones counted from the end."""

Padding = Literal["SAME", "VALID"] | int | Sequence[Sequence[int] | np.ndarray] | np.ndarray
"""SAME: ⌈size/stride⌉ windows fit. VALID: no padding. An integer: on all sides. Or a pair (low, high) for each axis."""

AxisName = Hashable | Sequence[Hashable]
"""The name of a mapped axis, or several."""

Activation = Literal["relu"]
"""What a batch norm can apply in its own rule."""
