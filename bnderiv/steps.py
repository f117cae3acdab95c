"""The derivations as arrays: every intermediate of every layer and loss under the symbol it has on paper.

    s = bnderiv.steps.batch_norm(x, gamma, beta, dy)
    print(s)  # name, symbol, shape, norm and label of each step
    bnderiv.steps.first_difference({"d_var": mine}, s)  # which step of mine is wrong?

Each function takes the arguments of its layer and `dy`, what comes back from above, and returns a NamedTuple whose
fields are in the order of the derivation; `help(type(s))` explains each. Plain jnp: differentiable, to be jitted and
vmapped, no rule attached anywhere. The layers compute the same with fewer sweeps and more care for rounding.
"""

from bnderiv._first_difference import Difference, first_difference
from bnderiv.activation.steps import relu, sigmoid, softmax, softmax_jacobian, tanh
from bnderiv.convolution.steps import conv2d
from bnderiv.linear.steps import dense, flatten
from bnderiv.loss.steps import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels, squared_error
from bnderiv.models.steps import lenet5
from bnderiv.normalization.steps import (
    batch_norm,
    batch_norm_graph,
    batch_norm_inference,
    batch_norm_relu,
    centering_jacobian,
    normalization_jacobian,
    variance_jacobian,
)
from bnderiv.pooling.steps import avg_pool, max_pool

__all__ = [
    "dense",
    "conv2d",
    "avg_pool",
    "max_pool",
    "batch_norm",
    "batch_norm_relu",
    "batch_norm_inference",
    "batch_norm_graph",
    "centering_jacobian",
    "variance_jacobian",
    "normalization_jacobian",
    "relu",
    "tanh",
    "sigmoid",
    "softmax",
    "softmax_jacobian",
    "flatten",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
    "lenet5",
    "first_difference",
    "Difference",
]
