"""Batch-normalized convolutional networks in JAX, every gradient derived by hand and attached in closed form."""

from bnderiv import reference
from bnderiv.convolution.conv2d import conv2d
from bnderiv.linear.dense import dense
from bnderiv.linear.flatten import flatten

__all__ = [
    "dense",
    "conv2d",
    "flatten",
    "reference",
]
