"""Half the squared distance: hand-worked numbers, the documents' output layer, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bnderiv
from tests.compiling import fast_jit


def test_numbers_worked_by_hand():
    # y = (1, 2), a = (2, 1): ½((1 − 2)² + (2 − 1)²) = 1; −(y − a) = (1, −1), and y − a for the targets.
    loss, pull_back = jax.vjp(bnderiv.squared_error, jnp.array([[2.0, 1.0]]), jnp.array([[1.0, 2.0]]))
    da, dy = pull_back(jnp.array([10.0]))
    np.testing.assert_array_equal(loss, [1])
    np.testing.assert_array_equal(da, [[10, -10]])
    np.testing.assert_array_equal(dy, [[-10, 10]])


@fast_jit
def _delta_through_tanh(z, y):
    return jax.grad(lambda z: bnderiv.squared_error(bnderiv.tanh(z), y).sum())(z)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_delta_through_tanh(examples, outputs, seed):
    """The output layer of the documents: δ_j = (a_j − y_j)(1 − a_j²)."""
    z, y = np.random.default_rng(seed).standard_normal((2, examples, outputs))
    delta = _delta_through_tanh(z, y)
    a = np.tanh(z)
    np.testing.assert_allclose(delta, (a - y) * (1 - a**2), rtol=1e-12, atol=1e-15)


def test_half_precision_is_squared_and_summed_in_float32():
    # ½ · 4096 · ¼ = 512, where a running float16 sum stops growing; and 2⁻¹³ of squares that are no float16.
    a, y = (jnp.broadcast_to(jnp.asarray(c, jnp.float16)[:, None], (2, 4096)) for c in ([1, 2**-12], [0.5, 0]))
    loss, pull_back = jax.vjp(bnderiv.squared_error, a, y)
    np.testing.assert_array_equal(loss, [512, 2**-13])
    np.testing.assert_array_equal(pull_back(jnp.ones(2, jnp.float16))[0], a - y)


@pytest.mark.few(3)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_a_gradient_that_fits_is_finite_though_the_difference_overflows(dtype, compiled):
    big = 0.9 * float(jnp.finfo(dtype).max)  # in float16 6e4
    a, y = (jnp.asarray([[s * big, big / 2, 1]], dtype) for s in (1, -1))

    def gradients(a, y, delta):
        return jax.vjp(bnderiv.squared_error, a, y)[1](delta)

    delta = jnp.full(1, 1e-3, dtype)
    da, dy = (jax.jit(gradients) if compiled else gradients)(a, y, delta)
    expected = float(delta[0]) * (np.asarray(a) / np.asarray(big, dtype) - np.asarray(y) / np.asarray(big, dtype))
    for gradient, sign in ((da, 1), (dy, -1)):
        assert gradient.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(gradient).astype(float) / big,
            sign * expected.astype(float),
            rtol=2 * float(jnp.finfo(dtype).eps),
        )


def test_half_precision_keeps_small_differences():
    a, y = (jnp.asarray([[1, 0.1, 2e-4, 6e-5]], jnp.float16) * jnp.float16(s) for s in (1.001, 1))
    da = jax.vjp(bnderiv.squared_error, a, y)[1](jnp.ones(1, jnp.float16))[0]
    np.testing.assert_allclose(da, a - y, rtol=0, atol=2**-24)  # the smallest float16
    np.testing.assert_array_equal(da[0, :3], (a - y)[0, :3])


def test_saves_half_the_difference_alone():
    a = jax.ShapeDtypeStruct((8, 16), jnp.bfloat16)
    saved = jax.tree.leaves(jax.eval_shape(lambda *args: jax.vjp(bnderiv.squared_error, *args)[1], a, a))
    assert [(s.shape, s.dtype) for s in saved] == [(a.shape, a.dtype)]


def test_result_type_of_mixed_arguments():
    with jax.numpy_dtype_promotion("standard"):
        loss, pull_back = jax.vjp(bnderiv.squared_error, jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 3), jnp.float32))
        assert loss.dtype == jnp.float32
        assert [g.dtype for g in pull_back(loss)] == [jnp.bfloat16, jnp.float32]


def test_an_example_that_is_not_finite_stays_alone():
    a = jnp.array([[1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
    loss, pull_back = jax.vjp(bnderiv.squared_error, a, jnp.zeros((3, 2)))
    np.testing.assert_array_equal(loss, [2.5, np.nan, np.inf])
    np.testing.assert_array_equal(pull_back(jnp.ones(3))[0][0], [1, 2])


@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        (((2, 3), (2, 1)), ["targets", r"\(2, 3\)", r"\[2, 1\]"]),
        (((2, 3), (3,)), ["targets", r"\(2, 3\)", r"\[3\]"]),
        (((3,), (2, 3)), ["targets", r"\(3,\)", r"\[2, 3\]"]),
        (((), ()), ["predictions", "rank 1"]),
        (((2, 0), (2, 0)), ["predictions", "empty"]),
    ],
)
def test_shapes_that_do_not_fit(shapes, names):
    for name in names:
        with pytest.raises(ValueError, match=name):
            bnderiv.squared_error(*(jnp.ones(s) for s in shapes))


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_dtypes_that_have_no_gradient(argument, dtype):
    arrays = [jnp.ones((2, 3)), jnp.ones((2, 3))]
    arrays[argument] = arrays[argument].astype(dtype)
    with pytest.raises(TypeError, match=("predictions", "targets")[argument]):
        bnderiv.squared_error(*arrays)
