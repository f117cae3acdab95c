"""The fully connected layer: hand-worked numbers and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv

pytestmark = pytest.mark.fast


def test_numbers_worked_by_hand():
    # z = a W + b with a = (1, 2), W = [[3, 4], [5, 6]], b = (1, −1); δ = (1, 10).
    x, kernel, bias = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [5.0, 6.0]]), jnp.array([1.0, -1.0])
    z, pull_back = jax.vjp(bnderiv.dense, x, kernel, bias)
    dx, dkernel, dbias = pull_back(jnp.array([[1.0, 10.0]]))
    np.testing.assert_array_equal(z, [[14.0, 15.0]])
    np.testing.assert_array_equal(dx, [[43.0, 65.0]])  # δ Wᵀ = (3 + 40, 5 + 60)
    np.testing.assert_array_equal(dkernel, [[1.0, 10.0], [2.0, 20.0]])  # aᵀ δ
    np.testing.assert_array_equal(dbias, [1.0, 10.0])


def test_half_precision_is_accumulated_in_float32():
    x = jnp.ones((1, 4000), jnp.float16)
    kernel = jnp.full((4000, 1), 0.001, jnp.float16)
    truth = 4000 * float(kernel[0, 0])
    assert abs(float(bnderiv.dense(x, kernel)[0, 0]) - truth) < 2e-3 * truth
    bias = jnp.zeros((1,), jnp.float16)
    gradient = jax.grad(lambda b: bnderiv.dense(x.T, jnp.ones((1, 1), jnp.float16), b).mean().astype(jnp.float32))(bias)
    assert abs(float(gradient[0]) - 1) < 2e-3


def test_result_type_of_mixed_arguments():
    with jax.numpy_dtype_promotion("standard"):
        x, kernel = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.float32)
        z, pull_back = jax.vjp(bnderiv.dense, x, kernel)
        assert z.dtype == jnp.float32
        assert [g.dtype for g in pull_back(z)] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        (((2, 3), (4, 5)), ["kernel", r"\(3, 5\)", r"\[4, 5\]"]),
        (((2, 3), (3,)), ["kernel", "rank 2"]),
        (((), (3, 4)), ["x", "rank 1"]),
        (((2, 3), (3, 4), (3,)), ["bias", r"\(4,\)", r"\[3\]"]),
        (((0, 3), (3, 4)), ["x", "empty"]),
    ],
)
def test_shapes_that_do_not_fit(shapes, names):
    for name in names:
        with pytest.raises(ValueError, match=name):
            bnderiv.dense(*(jnp.ones(s) for s in shapes))


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_dtypes_that_have_no_gradient(argument, dtype):
    arrays = [jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones((4,))]
    arrays[argument] = arrays[argument].astype(dtype)
    with pytest.raises(TypeError, match=("x", "kernel", "bias")[argument]):
        bnderiv.dense(*arrays)


@pytest.mark.few(1, 3)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (None, None, 0)])
def test_half_precision_compiles_when_mapped(dtype, axes):
    # XLA's CPU backend once made of these a product it does not have.
    shapes = ((4, 5), (5, 6), (6,))
    args = [jnp.ones(s if a is None else (3, *s), dtype) for s, a in zip(shapes, axes, strict=True)]

    @jax.jit
    def gradients(*args):
        z, pull_back = jax.vjp(jax.vmap(bnderiv.dense, axes), *args)
        return z, pull_back(z)

    z, grads = gradients(*args)
    np.testing.assert_array_equal(z.astype(jnp.float32), np.full((3, 4, 6), 6))
    np.testing.assert_array_equal(grads[2].astype(jnp.float32), np.full(args[2].shape, 24 if axes[2] == 0 else 72))
