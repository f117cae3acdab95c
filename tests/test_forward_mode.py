"""`bnderiv.forward_mode.enabled()`: forward mode for code that calls `bnderiv`'s own names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv import forward_mode
from tests.compiling import fast_jit
from tests.contract import near

X = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3)))
KERNEL = jnp.asarray(np.random.default_rng(2).standard_normal((3, 3)))
T = jnp.asarray(np.random.default_rng(1).standard_normal((6, 3)))


def network(layers, x):
    return layers.softmax(layers.dense(layers.tanh(x), KERNEL))


def ours(x):
    return network(bnderiv, x)


@pytest.fixture(scope="module")
def expected():
    """The network's value and tangent."""
    return jax.jvp(lambda x: network(bnderiv.reference, x), (X,), (T,))


@pytest.mark.few(1)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.checkpoint])
def test_within_it_and_no_longer(transform, expected):
    """Also for a function that was compiled before."""
    f = transform(ours)
    jax.block_until_ready(f(X))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(f, (X,), (T,))
    for _ in range(2):
        with forward_mode.enabled():
            for actual, wanted in zip(jax.jvp(f, (X,), (T,)), expected, strict=True):
                np.testing.assert_allclose(actual, wanted, rtol=1e-12, atol=1e-14)
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(f, (X,), (T,))


def test_within_the_function(expected):
    def f(x):
        with forward_mode.enabled():
            return ours(x)

    for g in (f, jax.jit(f)):
        np.testing.assert_allclose(jax.jvp(g, (X,), (T,))[1], expected[1], rtol=1e-12, atol=1e-14)
        _, push = jax.linearize(g, X)
        np.testing.assert_allclose(push(T), expected[1], rtol=1e-12, atol=1e-14)


def test_nested_and_after_an_error():
    with forward_mode.enabled():
        with pytest.raises(ZeroDivisionError), forward_mode.enabled():
            raise ZeroDivisionError
        jax.jvp(ours, (X,), (T,))
        forward_mode.relu(X)
        jax.jvp(ours, (X,), (T,))
    with pytest.raises(TypeError):
        jax.jvp(ours, (X,), (T,))


def test_the_error_says_where_to_go():
    with pytest.raises(TypeError) as caught:
        jax.jvp(bnderiv.relu, (X,), (T,))
    assert any("bnderiv.forward_mode.enabled()" in note for note in caught.value.__notes__)
    _, push = jax.linearize(bnderiv.relu, X)  # raises only when its result is called
    with pytest.raises(TypeError, match="forward-mode"):
        push(T)


def tangent(f, x, t):
    return jax.jvp(f, (x,), (t,))[1]


def linearized(f, x, t):
    return jax.linearize(f, x)[1](t)


@pytest.mark.parametrize("push", [tangent, linearized])
def test_what_needs_forward_mode_and_what_does_not(push):
    """The table of docs/api/forward_mode.md."""

    @partial(fast_jit, static_argnums=0)
    def forward_over_reverse(layers, x):
        return push(jax.grad(lambda x: (T * network(layers, x)).sum()), x, T)

    @partial(fast_jit, static_argnums=0)
    @partial(jax.grad, argnums=1)
    def reverse_over_forward(layers, x):
        return (push(partial(network, layers), x, T) ** 2).sum()

    near(forward_over_reverse(bnderiv, X), forward_over_reverse(bnderiv.reference, X), 1e-5)
    near(reverse_over_forward(forward_mode, X), reverse_over_forward(bnderiv.reference, X), 1e-5)
    with pytest.raises(NotImplementedError, match="Differentiation rule for 'custom_lin' not implemented"):
        reverse_over_forward(bnderiv, X)


@pytest.mark.parametrize("window", [{"window": 2, "strides": 1}, {"window": 3, "padding": 1}, {"window": 2}], ids=str)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_the_tangent_of_an_average_is_the_same_at_nan(window, bad):
    x, tangent = jax.random.normal(jax.random.key(0), (2, 2, 5, 6, 2), jnp.float32)
    pool = partial(forward_mode.avg_pool, **window)
    near(jax.jvp(pool, (jnp.full_like(x, bad),), (tangent,))[1], jax.jvp(pool, (x,), (tangent,))[1], 0)
