"""The steps of the convolution: the correlations, the turned kernel, δ dilated and padded."""

import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv import steps
from tests.contract import near
from tests.convolution.cases import CASES
from tests.stepwise import equals_its_layer

pytestmark = pytest.mark.slow


@pytest.mark.few(0, 5)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_layer(case):
    equals_its_layer(case, "z", ("dx", "d_kernel", "d_bias"))


def test_numbers_of_the_derivation():
    """A.5: stride 1, no padding."""
    a = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    w = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    delta = jnp.array([[1.0, -1.0], [2.0, 0.0]]).reshape(1, 2, 2, 1)
    s = steps.conv2d(a, w, jnp.array([1.0]), delta)
    np.testing.assert_array_equal(s.z[0, ..., 0], [[38, 48], [68, 78]])
    np.testing.assert_array_equal(s.d_kernel[..., 0, 0], [[7, 9], [13, 15]])
    np.testing.assert_array_equal(s.d_bias, [2])
    np.testing.assert_array_equal(s.kernel_turned[..., 0, 0], [[4, 3], [2, 1]])
    np.testing.assert_array_equal(s.delta_padded[0, ..., 0], [[0, 0, 0, 0], [0, 1, -1, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(s.dx[0, ..., 0], [[1, 1, -2], [5, 5, -4], [6, 8, 0]])


def test_numbers_with_a_stride_and_padding():
    """C.4: one row, stride 2, one zero on the left."""
    a, w = jnp.arange(1.0, 6).reshape(1, 1, 5, 1), jnp.array([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1)
    delta = jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1)
    s = steps.conv2d(a, w, None, delta, strides=(1, 2), padding=((0, 0), (1, 0)))
    np.testing.assert_array_equal(s.z.ravel(), [210, 432])
    np.testing.assert_array_equal(s.delta_dilated.ravel(), [1, 0, 2])
    np.testing.assert_array_equal(s.delta_padded.ravel(), [0, 1, 0, 2, 0, 0, 0])
    np.testing.assert_array_equal(s.x_padded.ravel(), [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(s.x_read.ravel(), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(s.dx.ravel(), [10, 102, 20, 200, 0])
    np.testing.assert_array_equal(s.d_kernel.ravel(), [4, 7, 10])


def test_the_kernel_turned_within_its_groups():
    """(C13): entry (x, y, k, c) of the turned kernel is that of input channel c and the k-th output of its group."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 6)))  # C/G = 2, K = 6, G = 3: C = 6, K/G = 2
    turned = steps.conv2d(jnp.ones((1, 2, 3, 6)), w, None, jnp.ones((1, 1, 1, 6)), groups=3).kernel_turned
    assert turned.shape == (2, 3, 2, 6)
    for c, k in np.ndindex(6, 2):
        near(turned[..., k, c], w[::-1, ::-1, c % 2, c // 2 * 2 + k], 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": 2}, "groups must divide"),
        ({"strides": 0}, "strides must be at least 1"),
        ({"channel_axis": 0}, "channel_axis and batch_axis must differ"),
        ({"dy": np.ones((1, 3, 3, 2))}, r"dy must have shape \(1, 2, 2, 2\)"),
        ({"kernel": np.ones((2, 2, 2, 2))}, r"kernel must have shape \(2, 2, 3, 2\)"),
        ({"bias": np.ones(3)}, r"bias must have shape \(2,\)"),
    ],
)
def test_errors(options, words):
    arguments = {"x": (1, 3, 3, 3), "kernel": (2, 2, 3, 2), "bias": (2,), "dy": (1, 2, 2, 2)}
    with pytest.raises(ValueError, match=words):
        steps.conv2d(**({name: jnp.ones(shape) for name, shape in arguments.items()} | options))
