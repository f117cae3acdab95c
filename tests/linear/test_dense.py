"""The fully connected layer: hand-worked numbers and errors."""

import jax
import jax.export
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


@pytest.mark.parametrize(("dtype", "name"), [(jnp.float16, "f16"), (jnp.bfloat16, "bf16")], ids=["float16", "bfloat16"])
def test_the_bias_is_added_before_the_rounding(dtype, name):
    # From 2/eps on the numbers have a spacing of 2, and a 1 that is added there is lost.
    large = 2 / float(jnp.finfo(dtype).eps)
    arguments = [jnp.asarray(a, dtype) for a in ([[large, 1.0]], [[1.0], [1.0]], [-large])]
    np.testing.assert_array_equal(bnderiv.dense(*arguments).astype(jnp.float32), [[1]])
    program = jax.export.export(jax.jit(bnderiv.dense), platforms=["cuda"])(*arguments).mlir_module()
    assert f"(tensor<1x2x{name}>, tensor<2x1x{name}>) -> tensor<1x1xf32>" in program


def test_result_type_of_mixed_arguments():
    with jax.numpy_dtype_promotion("standard"):
        x, kernel, bias = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 1), jnp.float32), jnp.ones(1)
        z, pull_back = jax.vjp(bnderiv.dense, x, kernel, bias)
    assert z.dtype == jnp.float64
    gradients = pull_back(jnp.array([[1.0], [1e-9 - 1]]))  # the backward casts by itself
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32, jnp.float64]
    for gradient in gradients[1:]:  # summed in the dtype of the result
        np.testing.assert_allclose(gradient.ravel(), 1e-9, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_eight_bits_are_summed_in_float32(dtype):
    """Which `jax.numpy` sums in eight bits: of 192 ones these formats would come to 56 or 112."""
    x, kernel, bias = jnp.ones((192, 1), dtype), jnp.ones((1, 192), dtype), jnp.ones((1,), dtype)
    z, pull_back = jax.vjp(bnderiv.dense, x, kernel[:, :1], bias)
    _, dkernel, dbias = pull_back(jnp.ones_like(z))
    (dx,) = jax.vjp(lambda x: bnderiv.dense(x, kernel), x)[1](jnp.ones((192, 192), dtype))
    for gradient in (dkernel, dbias, dx):
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(gradient.astype(float), np.full(gradient.shape, 192))


@pytest.mark.parametrize("wide", [0, 1, 2])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_one_wide_argument_makes_the_product_wide(dtype, wide):
    """None of the three is rounded to a narrower dtype, and neither is the product."""
    fine = 1 + 2.0 ** (-8 if dtype == jnp.float16 else -20)  # its square has twice the bits
    arguments = [jnp.full(shape, fine, dtype) for shape in ((1, 1), (1, 1), (1,))]
    arguments[wide] = jnp.full(arguments[wide].shape, 1 + 2.0**-40, jnp.float64)
    with jax.numpy_dtype_promotion("standard"):
        z = bnderiv.dense(*arguments)
    a, kernel, bias = (float(argument.ravel()[0]) for argument in arguments)
    assert z.dtype == jnp.float64
    assert float(z[0, 0]) == a * kernel + bias


@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        (((2, 3), (4, 5)), ["kernel", r"\(3, 5\)", r"\[4, 5\]"]),
        (((2, 3), (3,)), ["kernel", "rank 2"]),
        (((), (3, 4)), ["x", "rank 1"]),
        (((2, 3), (3, 4), (3,)), ["bias", r"\(4,\)", r"\[3\]"]),
        (((0, 3), (3, 4)), ["x", "empty"]),
        (((2, 3), (3, 0)), ["kernel", "empty"]),
    ],
)
def test_shapes_that_do_not_fit(shapes, names):
    for name in names:
        with pytest.raises(ValueError, match=name):
            bnderiv.dense(*(jnp.ones(s) for s in shapes))


def test_flatten_takes_no_scalar_and_nothing_empty():
    for shape, message in (((), "x must have rank 1 or more"), ((2, 0), "x must not be empty")):
        with pytest.raises(ValueError, match=message):
            bnderiv.flatten(jnp.ones(shape))


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_dtypes_that_have_no_gradient(argument, dtype):
    arrays = [jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones((4,))]
    arrays[argument] = arrays[argument].astype(dtype)
    with pytest.raises(TypeError, match=("x", "kernel", "bias")[argument]):
        bnderiv.dense(*arrays)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_compiles_when_mapped(dtype):
    # XLA's CPU backend once made of these a product it does not have.
    shapes = ((4, 5), (5, 6), (6,))
    mapped = [(0, None, None), (None, 0, None), (None, None, 0)]
    points = [
        [jnp.ones(s if a is None else (3, *s), dtype) for s, a in zip(shapes, axes, strict=True)] for axes in mapped
    ]

    @jax.jit
    def gradients(points):
        results = []
        for axes, args in zip(mapped, points, strict=True):
            z, pull_back = jax.vjp(jax.vmap(bnderiv.dense, axes), *args)
            results.append((z, pull_back(z)))
        return results

    for axes, args, (z, grads) in zip(mapped, points, gradients(points), strict=True):
        np.testing.assert_array_equal(z.astype(jnp.float32), np.full((3, 4, 6), 6))
        np.testing.assert_array_equal(grads[2].astype(jnp.float32), np.full(args[2].shape, 24 if axes[2] == 0 else 72))
