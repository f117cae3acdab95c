"""Cases and slips of the activation room."""

import jax.numpy as jnp

import bnderiv
from tests.case import Case, spread
from tests.slip import Slip, scaled


def _normal(*shape, scale=1.0):
    return lambda rng: (scale * rng.standard_normal(shape),)


def _away_from_zero(*shape):
    return lambda rng: (spread(rng, shape),)


def _elementwise(layer, arrays):
    return (
        Case(layer, "images", arrays(2, 3, 2, 3)),
        Case(layer, "number", arrays()),
    )


CASES = (
    *(RELU := _elementwise("relu", _away_from_zero)),
    *(TANH := _elementwise("tanh", _normal)),
    *(SIGMOID := _elementwise("sigmoid", _normal)),
    SOFTMAX := Case("softmax", "rows", _normal(3, 5)),
    Case("softmax", "vector", _normal(6)),
    Case("softmax", "channels-second", _normal(2, 3, 4, scale=4.0), {"axis": -2}),
    Case("softmax", "one-class", _normal(3, 1)),
    LOG_SOFTMAX := Case("log_softmax", "rows", _normal(3, 5)),
    Case("log_softmax", "channels-second", _normal(2, 3, 4, scale=4.0), {"axis": -2}),
)


def _rule(layer, gradient):
    """The rule δ ↦ gradient(y, δ) in place of the layer's own."""
    return lambda right, arguments, delta: (gradient(layer(*arguments), delta),)


def _passes_the_negative_side(y, delta):
    return jnp.where(y > 0, 0, delta)


def _derivative_at_the_output(y, delta):
    return delta * (1 - jnp.tanh(y) ** 2)


def _off_diagonal_sign(s, v):
    """The off-diagonal case with the minus missing."""
    return s * (v + (s * v).sum(-1, keepdims=True) - 2 * s * v)


def _softmax_of_the_output(y, v):
    """The rule of softmax, at s = exp(y)."""
    s = jnp.exp(y)
    return s * (v - (s * v).sum(-1, keepdims=True))


SLIPS = (
    Slip("passes-everything", RELU[0], _rule(bnderiv.relu, lambda y, delta: delta)),
    Slip("passes-the-negative-side", RELU[0], _rule(bnderiv.relu, _passes_the_negative_side)),
    Slip("1-y", TANH[0], _rule(bnderiv.tanh, lambda y, delta: delta * (1 - y))),
    Slip("derivative-at-the-output", TANH[0], _rule(bnderiv.tanh, _derivative_at_the_output)),
    Slip("1-s²", SIGMOID[0], _rule(bnderiv.sigmoid, lambda s, delta: delta * (1 - s**2))),
    Slip("sign", SIGMOID[0], scaled(-1)),
    Slip("diagonal-only", SOFTMAX, _rule(bnderiv.softmax, lambda s, delta: delta * s * (1 - s))),
    Slip("without-contraction", SOFTMAX, _rule(bnderiv.softmax, lambda s, delta: delta * s)),
    Slip("off-diagonal-sign", SOFTMAX, _rule(bnderiv.softmax, _off_diagonal_sign)),
    Slip("without-sum", LOG_SOFTMAX, _rule(bnderiv.log_softmax, lambda y, delta: delta * (1 - jnp.exp(y)))),
    Slip("softmax's-own", LOG_SOFTMAX, _rule(bnderiv.log_softmax, _softmax_of_the_output)),
)
