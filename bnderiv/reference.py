"""The plain forward of every layer, differentiated by JAX: what the closed forms must equal."""

from bnderiv.convolution.reference import conv2d
from bnderiv.linear.reference import dense, flatten

__all__ = [
    "dense",
    "conv2d",
    "flatten",
]
