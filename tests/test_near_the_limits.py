"""Values near the largest of a dtype, against float64: nothing overflows on the way to a result that fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv import reference
from tests.compiling import fast_jit

LABELS = jnp.arange(4)
# Each a function of the layers, and whether its cotangent is the large one or its arguments are.
LAYERS = {
    "squared_error": (lambda layers, x: layers.squared_error(x, -x[::-1]), False),
    "softmax_cross_entropy": (lambda layers, x: layers.softmax_cross_entropy(x, jnp.full_like(x, 1e-2)), False),
    "integer labels": (lambda layers, x: layers.softmax_cross_entropy_with_integer_labels(x, LABELS), False),
    "relu": (lambda layers, x: layers.relu(x), False),
    "tanh": (lambda layers, x: layers.tanh(x), False),
    "sigmoid": (lambda layers, x: layers.sigmoid(x), False),
    "softmax": (lambda layers, x: layers.softmax(x), False),
    "log_softmax": (lambda layers, x: layers.log_softmax(x), False),
    "relu, cotangent": (lambda layers, x: layers.relu(x), True),
    "tanh, cotangent": (lambda layers, x: layers.tanh(x), True),
    "sigmoid, cotangent": (lambda layers, x: layers.sigmoid(x), True),
    "softmax, cotangent": (lambda layers, x: layers.softmax(x), True),
    "dense": (lambda layers, x: layers.dense(x, jnp.full((6, 3), 1e-2, x.dtype), x[0, :3] / 8), False),
    "dense, cotangent": (lambda layers, x: layers.dense(x, jnp.full((6, 3), 1e-2, x.dtype)), True),
    "flatten": (lambda layers, x: layers.flatten(x), False),
}


# In half precision most is computed in float32, which has room. `squared_error` has a test of its own.
SIMPLE = ("squared_error", "relu", "relu, cotangent", "flatten")


@pytest.mark.few(11, 9)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(n, d, marks=() if d == jnp.float32 and n not in SIMPLE else pytest.mark.slow)
        for n in LAYERS
        for d in (jnp.float16, jnp.bfloat16, jnp.float32)
    ],
)
def test_what_fits_is_finite(name, dtype):
    layer, large_cotangent = LAYERS[name]
    rng = np.random.default_rng(0)
    large = 0.9 * float(jnp.finfo(dtype).max) * np.array([1, -1, 0.3, -0.4, 0.7, -0.6])
    x = rng.standard_normal((4, 6)) if large_cotangent else rng.permuted(np.tile(large, (4, 1)), axis=1)
    x = jnp.asarray(x, dtype)
    results = []
    for layers, cast, compiled in ((bnderiv, dtype, lambda f: f), (reference, jnp.float64, fast_jit)):

        def both_ways(x, delta, layers=layers):
            y, pull_back = jax.vjp(lambda x: layer(layers, x), x)
            return y, *pull_back(delta)

        wide = np.asarray(x).astype(cast)
        shape = jax.eval_shape(lambda x, layers=layers: layer(layers, x), wide).shape
        delta = np.random.default_rng(1).choice(large / 4 if large_cotangent else [1e-3, -2e-3], shape)
        delta = delta.astype(dtype).astype(cast)
        results.append(
            [np.asarray(a).astype(float) for a in compiled(both_ways)(jnp.asarray(wide), jnp.asarray(delta))]
        )
    for ours, expected in zip(*results, strict=True):
        fits = np.abs(expected) < float(jnp.finfo(dtype).max)
        size = np.abs(expected[fits]).max(initial=0)
        np.testing.assert_allclose(
            ours[fits], expected[fits], rtol=0, atol=max(4 * float(jnp.finfo(dtype).eps) * size, 1e-7)
        )
