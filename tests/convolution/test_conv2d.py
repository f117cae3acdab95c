"""The convolution: hand-worked numbers, two oracles that know no JAX, dtypes, residuals, errors."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve, convolve2d, correlate, correlate2d

import bnderiv
from tests import contract


def _images(rows):
    """One image with one channel, or a kernel with one input and one output."""
    return jnp.asarray(rows, jnp.float32)


def test_numbers_worked_by_hand():
    # The example of derivation.md: a 3×3 image, a 2×2 kernel, δ = [[1, −1], [2, 0]].
    x = _images([[1, 2, 3], [4, 5, 6], [7, 8, 9]]).reshape(1, 3, 3, 1)
    kernel = _images([[1, 2], [3, 4]]).reshape(2, 2, 1, 1)
    z, pull_back = jax.vjp(bnderiv.conv2d, x, kernel, jnp.array([1.0], jnp.float32))
    dx, dkernel, dbias = pull_back(_images([[1, -1], [2, 0]]).reshape(1, 2, 2, 1))
    np.testing.assert_array_equal(z[0, :, :, 0], [[38, 48], [68, 78]])
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 1, -2], [5, 5, -4], [6, 8, 0]])
    np.testing.assert_array_equal(dkernel[:, :, 0, 0], [[7, 9], [13, 15]])
    np.testing.assert_array_equal(dbias, [2])


def test_numbers_worked_by_hand_with_a_stride_and_padding():
    # The example of derivation.md, C.4: windows over (0, a0, a1) and (a1, a2, a3); no window reaches a4.
    x, kernel = _images([1, 2, 3, 4, 5]).reshape(1, 1, 5, 1), _images([1, 10, 100]).reshape(1, 3, 1, 1)
    options = {"strides": (1, 2), "padding": ((0, 0), (1, 0))}
    z, pull_back = jax.vjp(lambda *a: bnderiv.conv2d(*a, **options), x, kernel)
    dx, dkernel = pull_back(_images([1, 2]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(z.ravel(), [210, 432])
    np.testing.assert_array_equal(dx.ravel(), [10, 102, 20, 200, 0])
    np.testing.assert_array_equal(dkernel.ravel(), [4, 7, 10])


def test_the_jacobian_is_the_banded_matrix_of_the_kernel():
    kernel = _images([1, 2, 3]).reshape(1, 3, 1, 1)
    jacobian = jax.jacrev(lambda row: bnderiv.conv2d(row.reshape(1, 1, 5, 1), kernel).ravel())(jnp.ones(5, jnp.float32))
    np.testing.assert_array_equal(jacobian, [[1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3]])


def _pair(values):
    return st.tuples(values, values)


@st.composite
def _convolutions(draw):
    """Shapes of (N, H, W, C) and HWIO arrays that fit, and the options, padding written out."""
    (kh, kw), strides, dilation = (draw(_pair(st.integers(1, 3))) for _ in range(3))
    groups, ins, outs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    reach = ((kh - 1) * dilation[0] + 1, (kw - 1) * dilation[1] + 1)
    sizes = draw(_pair(st.integers(1, 6)))
    padding = draw(st.sampled_from(["SAME", "VALID"]) | st.integers(0, 3) | _pair(_pair(st.integers(0, 4))))
    if padding == "SAME":
        out = [-(-size // s) for size, s in zip(sizes, strides, strict=True)]
        total = [max((o - 1) * s + r - size, 0) for o, s, r, size in zip(out, strides, reach, sizes, strict=True)]
        zeros = tuple((t // 2, t - t // 2) for t in total)
    else:
        zeros = {"VALID": ((0, 0), (0, 0))}.get(padding) or (
            ((padding,) * 2,) * 2 if np.ndim(padding) == 0 else padding
        )
    # Where the window does not fit, the image grows.
    sizes = tuple(max(size, r - sum(z)) for size, r, z in zip(sizes, reach, zeros, strict=True))
    batch_axis, channel_axis = draw(st.permutations(range(4)))[:2]
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    options |= {"batch_axis": batch_axis - draw(st.sampled_from([0, 4])), "channel_axis": channel_axis}
    x_shape = (draw(st.integers(1, 2)), *sizes, groups * ins)
    return x_shape, (kh, kw, ins, groups * outs), draw(st.booleans()), options, zeros


def _terms(x_shape, kernel_shape, options, zeros):
    """Every product z[out] += kernel[weight] · x[cell], by loops; the sizes of z come first."""
    batch, *sizes, _ = x_shape
    *window, ins, outs = kernel_shape
    strides, dilation = options["strides"], options["dilation"]
    # As many steps as the window can make before it leaves the padded image.
    steps = [
        len(range(0, size + sum(pad) - d * (k - 1), s))
        for size, pad, k, s, d in zip(sizes, zeros, window, strides, dilation, strict=True)
    ]
    terms = []
    for n, i, j, o in itertools.product(range(batch), *map(range, steps), range(outs)):
        first = ins * (o // (outs // options["groups"]))  # the first input channel of the group of o
        for u, v, c in itertools.product(*map(range, window), range(ins)):
            p = strides[0] * i + dilation[0] * u - zeros[0][0]
            q = strides[1] * j + dilation[1] * v - zeros[1][0]
            if 0 <= p < sizes[0] and 0 <= q < sizes[1]:
                terms.append(((n, i, j, o), (u, v, c, o), (n, p, q, first + c)))
    return (batch, *steps, outs), terms


@settings(max_examples=30)
@given(_convolutions(), st.integers(0, 2**32 - 1))
def test_value_and_gradients_equal_loops(convolution, seed):
    x_shape, kernel_shape, with_bias, options, zeros = convolution
    rng = np.random.default_rng(seed)
    x, kernel = rng.standard_normal(x_shape), rng.standard_normal(kernel_shape)
    bias = rng.standard_normal(kernel_shape[-1]) if with_bias else None
    z_shape, terms = _terms(x_shape, kernel_shape, options, zeros)
    delta = rng.standard_normal(z_shape)

    # ⟨δ, z⟩ is a sum of products δ · w · a: each gradient collects the two factors that are not its own.
    z = np.zeros(z_shape) if bias is None else np.tile(bias, (*z_shape[:3], 1))
    dx, dkernel = np.zeros(x_shape), np.zeros(kernel_shape)
    for out, weight, cell in terms:
        z[out] += kernel[weight] * x[cell]
        dx[cell] += kernel[weight] * delta[out]
        dkernel[weight] += x[cell] * delta[out]

    spatial = iter("HW")
    names = {options["batch_axis"] % 4: "N", options["channel_axis"]: "C"}
    layout = "".join(names.get(a) or next(spatial) for a in range(4))

    def lay(array):
        return np.einsum(f"NHWC->{layout}", array)

    arguments = (lay(x), kernel) if bias is None else (lay(x), kernel, bias)
    ours, grads = contract.compiled(lambda *a: bnderiv.conv2d(*a, **options))(lay(delta), *arguments)
    expected = (lay(dx), dkernel) if bias is None else (lay(dx), dkernel, delta.sum((0, 1, 2)))
    np.testing.assert_allclose(ours, lay(z), rtol=1e-12, atol=1e-12)
    for actual, wanted in zip(grads, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@settings(max_examples=12)
@given(_pair(st.integers(1, 4)), _pair(st.integers(0, 4)), st.integers(0, 2**32 - 1))
def test_one_channel_equals_scipy(window, more, seed):
    rng = np.random.default_rng(seed)
    x, kernel = rng.standard_normal(np.add(window, more)), rng.standard_normal(window)
    delta = rng.standard_normal(np.add(more, 1))
    both_ways = contract.compiled(bnderiv.conv2d)
    z, (dx, dkernel) = both_ways(delta[None, ..., None], x[None, ..., None], kernel[..., None, None])
    dx, dkernel = np.asarray(dx), np.asarray(dkernel)
    np.testing.assert_allclose(np.asarray(z)[0, ..., 0], correlate2d(x, kernel, "valid"), rtol=1e-12, atol=1e-12)
    # correlate2d swaps its arguments where the second is the larger in "valid" mode; δ never is.
    np.testing.assert_allclose(dkernel[..., 0, 0], correlate2d(x, delta, "valid"), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dx[0, ..., 0], convolve2d(delta, kernel, "full"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "window"), [((9,), (4,)), ((5, 4, 6), (2, 3, 2))], ids=str)
def test_one_axis_and_three_equal_scipy(size, window):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal(size), rng.standard_normal(window)
    z, pull_back = jax.vjp(bnderiv.conv, jnp.asarray(x)[None, ..., None], jnp.asarray(kernel)[..., None, None])
    delta = rng.standard_normal(z.shape[1:-1])
    dx, dkernel = pull_back(jnp.asarray(delta)[None, ..., None])
    np.testing.assert_allclose(z[0, ..., 0], correlate(x, kernel, "valid"), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dkernel[..., 0, 0], correlate(x, delta, "valid"), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dx[0, ..., 0], convolve(delta, kernel, "full"), rtol=1e-12, atol=1e-12)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype):
    # A sum of 4000 ones in float16 stops at 2048, in bfloat16 at 256.
    ones = [
        (jnp.ones((1, 1, 1, 4000), dtype), jnp.ones((1, 1, 4000, 1), dtype), "value"),
        (jnp.ones((1, 1, 1, 1), dtype), jnp.ones((1, 1, 1, 4000), dtype), "input gradient"),
        (jnp.ones((4, 50, 20, 1), dtype), jnp.ones((1, 1, 1, 1), dtype), "kernel and bias gradient"),
    ]
    truth = float(jnp.asarray(4000, dtype))
    for (x, kernel, what), index in zip(ones, ((0,), (1,), (2, 3)), strict=True):
        z, pull_back = jax.vjp(bnderiv.conv2d, x, kernel, jnp.zeros(kernel.shape[-1:], dtype))
        results = (z, *pull_back(jnp.ones_like(z)))
        for i in index:
            assert results[i].dtype == dtype
            assert results[i].size == 1
            assert float(results[i].ravel()[0]) == truth, what


def test_a_bias_of_eight_bits_has_its_gradient_summed_in_float32():
    # Which `jax.numpy` sums in eight bits: of 192 ones it would be 56.
    x, one = jnp.ones((2, 12, 8, 1), jnp.float8_e5m2), jnp.ones((1, 1, 1, 1), jnp.float8_e5m2)
    z, pull_back = jax.vjp(bnderiv.conv2d, x, one, one.ravel())
    assert float(pull_back(jnp.ones_like(z))[2][0]) == 192


def test_on_a_cpu_the_bias_is_added_before_the_rounding():
    # 60000 + 60000 is infinite in float16; 60000 + 60000 − 60000 is not.
    big = jnp.full((1, 1, 1, 2), 60000, jnp.float16)
    z = bnderiv.conv2d(big, jnp.ones((1, 1, 2, 1), jnp.float16), jnp.full(1, -60000, jnp.float16))
    assert z.dtype == jnp.float16
    assert float(z.ravel()[0]) == float(big[0, 0, 0, 0])


def test_result_type_of_mixed_arguments():
    with jax.numpy_dtype_promotion("standard"):
        x, kernel, bias = jnp.ones((2, 2, 2, 1), jnp.bfloat16), jnp.ones((2, 2, 1, 1), jnp.float32), jnp.ones(1)
        z, pull_back = jax.vjp(bnderiv.conv2d, x, kernel, bias)
        assert jax.eval_shape(bnderiv.conv2d, x, kernel.astype(jnp.float16)).dtype == jnp.float32
    assert z.dtype == jnp.float64
    gradients = pull_back(jnp.array([1.0, 1e-9 - 1]).reshape(z.shape))  # the backward casts by itself
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32, jnp.float64]
    for gradient in gradients[1:]:  # summed in the dtype of the result
        np.testing.assert_allclose(gradient.ravel(), 1e-9, rtol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_residuals_are_the_input_and_the_kernel(bias):
    arrays = [jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 2, 8)), jnp.ones(8)][: 2 + bias]
    residuals = jax.eval_shape(lambda *a: jax.vjp(lambda *b: bnderiv.conv2d(*b, groups=2), *a)[1], *arrays)
    assert sum(r.size * r.dtype.itemsize for r in jax.tree.leaves(residuals)) == arrays[0].nbytes + arrays[1].nbytes


def test_options_as_integers_pairs_and_lists():
    x, kernel = jnp.arange(2 * 7 * 7 * 2.0).reshape(2, 7, 7, 2), jnp.ones((2, 2, 2, 3))
    wanted = bnderiv.conv2d(x, kernel, strides=(2, 2), padding=((1, 1), (1, 1)), dilation=(3, 3))
    spellings: list[dict[str, Any]] = [
        {"strides": 2, "padding": 1, "dilation": 3},
        {"strides": [2, 2], "padding": [[1, 1], [1, 1]], "dilation": [3, 3]},
        {"strides": np.int64(2), "padding": np.int64(1), "dilation": (np.int32(3), 3)},
    ]
    for options in spellings:
        np.testing.assert_array_equal(bnderiv.conv2d(x, kernel, **options), wanted)
    np.testing.assert_array_equal(bnderiv.conv2d(x, kernel), bnderiv.conv2d(x, kernel, padding="VALID"))
    assert bnderiv.conv2d(x, kernel, strides=2, padding="SAME").shape == (2, 4, 4, 3)


@pytest.mark.parametrize(
    ("shapes", "options", "names"),
    [
        (((2, 5, 5), (3, 3, 5, 1)), {}, [r"^x must have rank 4", r"\[2, 5, 5\]"]),
        (((2, 5, 5, 1), (3, 3, 1)), {}, [r"^kernel must have rank 4", r"\[3, 3, 1\]"]),
        (((0, 5, 5, 1), (3, 3, 1, 1)), {}, ["^x must not be empty"]),
        (((2, 5, 5, 1), (3, 3, 1, 0)), {}, ["^kernel must not be empty"]),
        (((2, 5, 5, 2), (3, 3, 3, 4)), {}, [r"^kernel must have shape \(3, 3, 2, 4\)", r"\[3, 3, 3, 4\]"]),
        (((2, 5, 5, 4), (3, 3, 4, 4)), {"groups": 2}, [r"^kernel must have shape \(3, 3, 2, 4\)", "2 group"]),
        (((2, 2, 5, 5), (3, 3, 5, 4)), {"channel_axis": 1}, [r"^kernel must have shape \(3, 3, 2, 4\)"]),
        (((2, 5, 5, 3), (3, 3, 1, 4)), {"groups": 2}, ["^groups must divide", "2 groups for 3 and 4"]),
        (((2, 5, 5, 4), (3, 3, 2, 3)), {"groups": 2}, ["^groups must divide", "2 groups for 4 and 3"]),
        (((2, 5, 5, 2), (3, 3, 2, 4)), {"groups": 0}, ["^groups must be at least 1, got 0"]),
        (((2, 5, 5, 1), (3, 3, 1, 2), (1,)), {}, [r"^bias must have shape \(2,\)", r"\[1\]"]),
        (((2, 5, 5, 1), (6, 3, 1, 1)), {}, ["window must fit", "axis 0 it spans 6", "has 5 with padding"]),
        (
            ((2, 5, 5, 1), (3, 3, 1, 1)),
            {"dilation": (1, 4), "padding": 1},
            ["axis 1 it spans 9", r"5 with padding \(1, 1\)"],
        ),
        (((2, 5, 5, 1), (3, 3, 1, 1)), {"channel_axis": 0}, ["^channel_axis and batch_axis must differ"]),
        (((2, 5, 5, 1), (3, 3, 1, 1)), {"batch_axis": 3}, ["^channel_axis and batch_axis must differ, got -1 and 3"]),
        (((2, 5, 5, 1), (3, 3, 1, 1)), {"channel_axis": 4}, [r"^channel_axis must lie in \[-4, 4\)"]),
        (((2, 5, 5, 1), (3, 3, 1, 1)), {"batch_axis": -5}, [r"^batch_axis must lie in \[-4, 4\)"]),
        (((2, 5, 5, 1), (3, 3, 1, 1)), {"strides": 0}, ["^strides must be at least 1, got 0"]),
        (
            ((2, 5, 5, 1), (3, 3, 1, 1)),
            {"strides": (1, 1, 1)},
            ["^strides must be an integer, or one for each of the 2 spatial axes"],
        ),
        (((2, 5, 5, 1), (3, 3, 1, 1)), {"dilation": (1, 0)}, [r"^dilation\[1\] must be at least 1, got 0"]),
        (((2, 5, 5, 1), (3, 3, 1, 1)), {"padding": -1}, ["^padding must be at least 0, got -1"]),
        (((2, 5, 5, 1), (3, 3, 1, 1)), {"padding": "FULL"}, ['^padding must be "SAME", "VALID"', "'FULL'"]),
        (
            ((2, 5, 5, 1), (3, 3, 1, 1)),
            {"padding": (1, 1)},
            [r"^padding must be a \(low, high\) pair for each of the 2"],
        ),
    ],
)
def test_values_that_do_not_fit(shapes, options, names):
    for name in names:
        with pytest.raises(ValueError, match=name):
            bnderiv.conv2d(*(jnp.ones(s) for s in shapes), **options)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 5), (3, 1)), {}, r"^kernel must have rank 3 or more \(spatial axes, C_in / groups, C_out\)"),
        (((2, 5, 5, 1), (3, 1, 1)), {}, r"^x must have rank 3 \(that of kernel"),
        (((2, 5, 2), (3, 3, 4)), {}, r"^kernel must have shape \(3, 2, 4\)"),
        (
            ((2, 5, 1), (3, 1, 1)),
            {"strides": (1, 1)},
            "^strides must be an integer, or one for each of the 1 spatial axes",
        ),
        (((2, 3, 3, 3, 1), (3, 3, 4, 1, 1)), {}, "along spatial axis 2 it spans 4"),
    ],
)
def test_other_ranks_that_do_not_fit(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        bnderiv.conv(*(jnp.ones(s) for s in shapes), **options)


def test_options_of_numpy():
    """As `jax.lax` takes them."""
    x, kernel = jnp.ones((2, 7, 6, 1)), jnp.ones((3, 2, 1, 1))
    strides, dilation, padding = np.array([1, 2]), np.array([2, 1]), np.array([[1, 0], [0, 1]])
    found = bnderiv.conv2d(x, kernel, strides=strides, dilation=dilation, padding=padding)
    expected = bnderiv.conv2d(x, kernel, strides=(1, 2), dilation=(2, 1), padding=((1, 0), (0, 1)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["strides", "dilation", "groups", "channel_axis", "batch_axis", "padding"])
@pytest.mark.parametrize("value", [1.0, True, None])
def test_options_that_are_no_integers(name, value):
    with pytest.raises(TypeError, match=name):
        bnderiv.conv2d(jnp.ones((2, 5, 5, 1)), jnp.ones((3, 3, 1, 1)), **{name: value})


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_dtypes_that_have_no_gradient(argument, dtype):
    arrays = [jnp.ones((2, 5, 5, 1)), jnp.ones((3, 3, 1, 2)), jnp.ones((2,))]
    arrays[argument] = arrays[argument].astype(dtype)
    with pytest.raises(TypeError, match=("x", "kernel", "bias")[argument]):
        bnderiv.conv2d(*arrays)
