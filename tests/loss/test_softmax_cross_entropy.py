"""The two cross entropies: hand-worked numbers, optax, extremes, classes ruled out, labels out of range, errors."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

import bnderiv
import bnderiv.reference
from bnderiv import softmax_cross_entropy as weighted
from bnderiv import softmax_cross_entropy_with_integer_labels as indexed
from tests import forms
from tests.compiling import fast_jit

INF, NAN = np.inf, np.nan


def pull(loss, *args, cotangent=None):
    value, pull_back = jax.vjp(loss, *args)
    return value, pull_back(jnp.ones_like(value) if cotangent is None else jnp.asarray(cotangent, value.dtype))


# Both ways of giving the labels: the shared properties are tested on each.
def as_weights(logits, labels):
    return weighted(logits, jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype))


either = pytest.mark.parametrize("loss", [as_weights, indexed], ids=["weights", "integers"])


def test_numbers_worked_by_hand():
    # exp(z) = (1, 2, 5): softmax (1, 2, 5)/8. With y = (0, 1, 2): J = −log(2/8) − 2 log(5/8), Σy = 3,
    # dlogits = 3·(1, 2, 5)/8 − (0, 1, 2) = (3, −2, −1)/8, dlabels = −log softmax.
    z, y = jnp.log(jnp.array([[1.0, 2.0, 5.0]])), jnp.array([[0.0, 1.0, 2.0]])
    loss, (dlogits, dlabels) = pull(weighted, z, y)
    np.testing.assert_allclose(loss, [np.log(4) + 2 * np.log(8 / 5)], rtol=1e-14)
    np.testing.assert_allclose(dlogits, [[3 / 8, -2 / 8, -1 / 8]], rtol=1e-13)
    np.testing.assert_allclose(dlabels, [[np.log(8), np.log(4), np.log(8 / 5)]], rtol=1e-14)


@either
def test_both_cases_of_the_documents_by_hand(loss):
    # One-hot: the negative log-likelihood, softmax − 1 where j = y, softmax elsewhere.
    z = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))
    value, (dlogits,) = pull(lambda z: loss(z, jnp.array([1, 2])), z, cotangent=[1, 10])
    np.testing.assert_allclose(value, [np.log(4), np.log(8 / 5)], rtol=1e-14)
    np.testing.assert_allclose(dlogits, [[1 / 8, -6 / 8, 5 / 8], [10 / 8, 20 / 8, -30 / 8]], rtol=1e-13)


@fast_jit
def _ours_and_optax(z, y, labels, cotangent):
    pairs = (
        (weighted, optax.softmax_cross_entropy, (z, y)),
        (lambda z: indexed(z, labels), lambda z: optax.softmax_cross_entropy_with_integer_labels(z, labels), (z,)),
    )
    return [[pull(loss, *args, cotangent=cotangent) for loss in both] for *both, args in pairs]


@pytest.mark.slow
@given(st.sampled_from([(1, 1), (2, 3), (4, 6)]), st.floats(0.1, 30), st.integers(0, 99))
def test_equals_optax(shape, scale, seed):
    examples, classes = shape
    rng = np.random.default_rng(seed)
    z, y = scale * rng.standard_normal((examples, classes)), rng.random((examples, classes))
    labels, cotangent = rng.integers(classes, size=examples), rng.standard_normal(examples)
    for (value, grads), (expected, expected_grads) in _ours_and_optax(z, y, labels, cotangent):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-13)
        for g, e in zip(grads, expected_grads, strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-13)


@pytest.mark.few(2)
@either
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_logits_of_ten_thousand(loss, dtype):
    z = np.array(
        [[1e4, -1e4, 0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4], [1e4, 1e4 - 0.5, 1e4 - 3], [-1e4, 1 - 1e4, 2.5 - 1e4]]
    )
    labels = np.array([1, 0, 2, 1, 2])
    rows = np.arange(5)
    value, (dlogits,) = pull(lambda z: loss(z, jnp.asarray(labels)), jnp.asarray(z, dtype))
    one_hot = np.eye(3)[labels]
    tolerance = 6 * float(jnp.finfo(dtype).eps)  # relative: far better than the 5e-4 of a log-sum-exp kept as a float32
    np.testing.assert_allclose(value, -log_softmax(z, -1)[rows, labels], rtol=tolerance)
    np.testing.assert_allclose(dlogits, softmax(z, -1) - one_hot, rtol=tolerance, atol=tolerance * 1e-3)


def test_small_probabilities_to_full_relative_accuracy():
    # exp(z − log Σ exp z) would lose |z|·eps; e/Σe does not.
    z = np.array([0.0, -20.25, -50.5, -87.0], np.float32)
    total = math.fsum(math.exp(v) for v in z)
    _, (dlogits,) = pull(lambda z: indexed(z, 0), jnp.asarray(z))
    np.testing.assert_allclose(dlogits[1:], [math.exp(v) / total for v in z[1:]], rtol=3e-7)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    # 4096 equal logits: a half-precision sum of exponentials stops growing at 2048 (float16) or 256 (bfloat16).
    z = jnp.zeros((1, 4096), dtype)
    y = jnp.full((1, 4096), 1.0, dtype)
    loss, (dlogits, dlabels) = pull(weighted, z, y)
    assert loss.dtype == dlogits.dtype == dlabels.dtype == z.dtype
    np.testing.assert_array_equal(loss, np.array([4096 * math.log(4096)]).astype(z.dtype))
    np.testing.assert_array_equal(dlogits, np.zeros((1, 4096)).astype(z.dtype))  # Σy/4096 − 1
    value, (dlogits,) = pull(lambda z: indexed(z, jnp.array([7])), z)
    np.testing.assert_array_equal(value, np.array([math.log(4096)]).astype(z.dtype))
    np.testing.assert_array_equal(dlogits[0, 0], np.array(1 / 4096).astype(z.dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@either
def test_half_precision_is_rounded_once(loss, dtype):
    """Value and gradients, against float64."""
    rng = np.random.default_rng(0)
    z, c = (jnp.asarray(2 * rng.standard_normal(shape), dtype) for shape in ((40, 10), 40))
    labels = rng.integers(0, 10, 40)
    y = np.eye(10)[labels]
    if loss is indexed:
        value, gradients = pull(lambda z: indexed(z, jnp.asarray(labels)), z, cotangent=c)
    else:
        y = jnp.asarray(y + rng.random((40, 10)), dtype)
        value, gradients = pull(weighted, z, y, cotangent=c)
    z, y, c = (np.asarray(a, np.float64) for a in (z, y, c))
    log_s, c = log_softmax(z, -1), c[:, None]
    truth = -(y * log_s).sum(-1), c * (y.sum(-1, keepdims=True) * np.exp(log_s) - y), -c * log_s
    for ours, true in zip((value, *gradients), truth, strict=loss is not indexed):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours.astype(float), true, rtol=0.501 * float(jnp.finfo(dtype).eps), atol=1e-6)


# A class that is ruled out: its logit is −inf.
Z = np.array([[0.5, -INF, 1.5, -INF], [0.0, 1.0, 2.0, 3.0]])
Y = np.array([[0.25, 0.0, 0.75, 0.0], [0.0, 0.5, 0.0, 0.5]])


def test_a_label_of_zero_on_a_logit_of_minus_infinity_counts_nothing():
    kept = np.array([0, 2])
    loss, (dlogits, dlabels) = pull(weighted, jnp.asarray(Z), jnp.asarray(Y), cotangent=[2, 1])
    expected, (edlogits, edlabels) = pull(weighted, jnp.asarray(Z[:1, kept]), jnp.asarray(Y[:1, kept]), cotangent=[2])
    np.testing.assert_allclose(loss[0], expected[0], rtol=1e-15)
    np.testing.assert_allclose(dlogits[0, kept], edlogits[0], rtol=1e-14)
    np.testing.assert_array_equal(dlogits[0, [1, 3]], [0, 0])
    np.testing.assert_allclose(dlabels[0, kept], edlabels[0], rtol=1e-14)
    np.testing.assert_array_equal(dlabels[0, [1, 3]], [INF, INF])
    np.testing.assert_allclose(dlabels[1], -log_softmax(Z[1]), rtol=1e-14)
    # The reference agrees where it speaks: value and dlogits.
    np.testing.assert_allclose(
        loss, bnderiv.reference.softmax_cross_entropy(jnp.asarray(Z), jnp.asarray(Y)), rtol=1e-14
    )


@pytest.mark.few(3)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_infinite_gradient_of_a_label_times_a_zero_cotangent_is_zero(compiled, dtype):
    """0 · inf = 0 without comparing the cotangent with anything, also where XLA knows the logits when it compiles."""
    z, y = jnp.asarray(Z, dtype), jnp.asarray(Y, dtype)

    def dlabels(ct):
        return jax.vjp(lambda y: weighted(z, y), y)[1](ct)[0].astype(jnp.float64)

    dlabels = jax.jit(dlabels) if compiled else dlabels
    zero, negative = dlabels(jnp.zeros(2, dtype)), dlabels(jnp.asarray([-1e-4, 1], dtype))
    np.testing.assert_array_equal(zero, np.zeros((2, 4)))
    np.testing.assert_array_equal(negative[0, [1, 3]], [-INF, -INF])
    assert np.isfinite(negative[0, [0, 2]]).all()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_ruled_out_logit_known_when_compiling(compiled):
    only_inf = np.array([-INF, 0.0])
    value = (jax.jit if compiled else lambda f: f)(lambda y: weighted(jnp.asarray(only_inf), y))
    assert value(jnp.array([0.0, 1.0])) == 0
    assert value(jnp.array([0.5, 0.5])) == INF


@either
def test_a_positive_label_on_a_logit_of_minus_infinity(loss):
    value, (dlogits,) = pull(lambda z: loss(z, jnp.array([1, 1])), jnp.asarray(Z))
    assert value[0] == INF
    np.testing.assert_allclose(dlogits, softmax(Z, -1) - np.eye(4)[[1, 1]], rtol=1e-14)


def test_second_derivatives_beside_ruled_out_classes():
    """The Hessian of the whole with −inf in it is that of the rest, dlabels' rows for the ruled-out classes included:
    ∂²J/∂y_k ∂z_j = softmax(z)_j for k ≠ j, whatever z_k."""
    z, y, kept, out = jnp.asarray(Z[0]), jnp.asarray(Y[0]), np.array([0, 2]), np.array([1, 3])
    whole = fast_jit(jax.hessian(weighted, (0, 1)))(z, y)
    rest = fast_jit(jax.hessian(bnderiv.reference.softmax_cross_entropy, (0, 1)))(z[kept], y[kept])
    for i in (0, 1):
        for j in (0, 1):
            np.testing.assert_allclose(whole[i][j][np.ix_(kept, kept)], rest[i][j], rtol=1e-13, atol=1e-16)
    p = softmax(Z[0])
    np.testing.assert_allclose(whole[1][0][np.ix_(out, kept)], np.tile(p[kept], (2, 1)), rtol=1e-14)
    np.testing.assert_allclose(whole[0][1][np.ix_(kept, out)], np.tile(p[kept, None], (1, 2)), rtol=1e-14)
    assert all(np.isfinite(whole[i][j]).all() for i in (0, 1) for j in (0, 1))


def test_the_value_beside_a_gradient_has_the_same_slope():
    """Differentiated once more, the forward body speaks for itself: at labels of 0 and at logits of −inf too."""
    z, y = jnp.asarray(Z), jnp.asarray(Y)
    beside = jax.grad(lambda z, y: jax.vjp(weighted, z, y)[0].sum(), (0, 1))(z, y)
    of_integers = jax.grad(lambda z: jax.vjp(lambda z: indexed(z, jnp.array([0, 1])), z)[0].sum())(z)
    expected = *pull(weighted, z, y)[1], jax.nn.softmax(z) - jnp.eye(2, 4)
    for actual, wanted in zip((*beside, of_integers), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-14, atol=1e-16)


@either
@pytest.mark.parametrize("row", [[-INF, -INF], [INF, 1.0], [NAN, 1.0]])
def test_rows_without_a_softmax_are_nan_and_alone(loss, row):
    z = jnp.array([[1.0, 2.0], row, [0.0, 0.0]])
    value, (dlogits,) = pull(lambda z: loss(z, jnp.array([0, 1, 0])), z)
    assert np.isnan(value[1])
    assert np.isnan(dlogits[1]).all()
    assert np.isfinite(value[::2]).all()
    assert np.isfinite(dlogits[::2]).all()


def test_the_form_of_accelerators():
    """A sum in which the label's class alone counts, where a CPU looks it up: beside a class that is ruled out, too."""
    z = np.array([[1, -INF, 2, 0], [1e4, 3, -1e4, 0], [-INF, 5, -INF, 7], [1, -INF, 2, 0], [0, 1, 2, 3], [0, 1, 2, 3]])
    labels, c = np.array([0, 1, 1, 1, -1, 4]), np.arange(1.0, 7)
    with forms.of("cuda"):
        value, (gradient,) = pull(lambda z: indexed(z, jnp.asarray(labels)), jnp.asarray(z), cotangent=c)
    expected = np.full(6, NAN)
    expected[:4] = -log_softmax(z, -1)[range(4), labels[:4]]
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    np.testing.assert_allclose(gradient[:3], c[:3, None] * (softmax(z, -1) - np.eye(4)[labels % 4])[:3], rtol=1e-14)
    assert expected[3] == INF


@pytest.mark.few(2)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"])
def test_labels_out_of_range(compiled, dtype):
    info, rng = np.iinfo(dtype), np.random.default_rng(0)
    labels = np.array([3, info.max, info.min if info.min < 0 else 5, 0, 2, 3], dtype)
    wrong = np.array([True, True, True, False, False, True])
    z = jnp.asarray(rng.standard_normal((6, 3)))

    def both(z, labels, cotangent):
        return pull(lambda z: indexed(z, labels), z, cotangent=cotangent)

    for cotangent in (np.ones(6), np.zeros(6)):
        args = (z, jnp.asarray(labels), jnp.asarray(cotangent))
        value, (dlogits,) = (jax.jit(both) if compiled else both)(*args)
        expected, (edlogits,) = both(z[3:5], jnp.asarray(labels[3:5]), cotangent[3:5])
        np.testing.assert_array_equal(np.isnan(value), wrong)
        np.testing.assert_array_equal(np.isnan(dlogits), np.tile(wrong[:, None], (1, 3)))
        np.testing.assert_allclose(value[3:5], expected, rtol=1e-15)
        np.testing.assert_allclose(dlogits[3:5], edlogits, rtol=1e-14, atol=0)


def test_labels_of_numpy_do_not_wrap_into_range_without_x64():
    # JAX keeps the low 32 bits of an int64 then: −2**63 (what NumPy makes of a NaN) and 2**32 would be class 0.
    labels = np.array([np.iinfo(np.int64).min, 2**32, 1])
    with jax.enable_x64(False):
        loss = indexed(jnp.zeros((3, 2)), labels)
        assert loss.dtype == jnp.float32
        np.testing.assert_array_equal(np.isnan(loss), [True, True, False])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8])
def test_labels_of_any_integer_dtype_of_numpy(dtype):
    losses = indexed(jnp.zeros((3, 10)), np.array([1, 100, 3], dtype))
    np.testing.assert_allclose(losses, [math.log(10), NAN, math.log(10)], 1e-15)
    np.testing.assert_allclose(indexed(jnp.zeros(10), dtype(3)), math.log(10), 1e-15)
    assert np.isnan(indexed(jnp.zeros(10), 2**40))


@pytest.mark.parametrize("array", [jnp.array, np.array])
def test_more_classes_than_the_labels_can_count(array):
    labels = array([0, 127, -128, -1], np.int8)
    z = jnp.asarray(np.random.default_rng(0).standard_normal((4, 300)))
    expected = -log_softmax(np.asarray(z), -1)[[0, 1], [0, 127]]
    np.testing.assert_allclose(indexed(z, labels), [*expected, NAN, NAN], rtol=1e-14)


def test_one_example_may_have_a_number_for_its_label():
    assert indexed(jnp.zeros(4), 2) == indexed(jnp.zeros(4), np.int8(2)) == np.log(4)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=5), st.lists(st.integers(-3, 5), min_size=5, max_size=5))
def test_dlogits_sum_to_zero_and_equal_exact_arithmetic(powers, weights):
    """z = k log 2 makes softmax a rational number: softmax·Σy − y in fractions, against the rule."""
    y = weights[: len(powers)]
    total = sum(2**k for k in powers)
    exact = [Fraction(2**k, total) * sum(y) - w for k, w in zip(powers, y, strict=True)]
    assert sum(exact) == 0
    z = jnp.asarray(np.array(powers) * np.log(2.0))
    _, (dlogits, _) = pull(weighted, z, jnp.asarray(np.array(y, float)))
    np.testing.assert_allclose(dlogits, [float(e) for e in exact], rtol=1e-12, atol=1e-13)


def _saved(f, *args):
    return [(s.shape, s.dtype) for s in jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *args))]


def test_saves_logits_and_labels_alone():
    z = jax.ShapeDtypeStruct((8, 16), jnp.bfloat16)
    assert _saved(weighted, z, z) == 2 * [(z.shape, z.dtype)]
    labels = jnp.zeros(8, jnp.int32)
    assert _saved(lambda z: indexed(z, labels), z) == [(z.shape, z.dtype), (labels.shape, labels.dtype)]


def test_result_type_of_mixed_arguments():
    labels = jnp.array([[1, 1e-9 - 1, 0]])  # whose sum is 0 in float32
    with jax.numpy_dtype_promotion("standard"):
        loss, (dlogits, dlabels) = pull(weighted, jnp.ones((1, 3), jnp.float32), labels)
    assert [a.dtype for a in (loss, dlogits, dlabels)] == [jnp.float64, jnp.float32, jnp.float64]
    np.testing.assert_allclose(loss, 1e-9 * math.log(3), rtol=1e-6)
    np.testing.assert_allclose(dlogits[0, 2], 1e-9 / 3, rtol=1e-6)

    def of_integers(w):
        return indexed(jnp.ones((2, 3), jnp.bfloat16), jnp.zeros(2, jnp.int32), class_weights=w)

    loss, pull_back = jax.vjp(of_integers, jnp.ones(3, jnp.float16))
    assert (loss.dtype, pull_back(loss)[0].dtype) == (jnp.bfloat16, jnp.float16)


@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        (((2, 3), (2, 4)), ["labels", r"\(2, 3\)", r"\[2, 4\]"]),
        (((2, 3), (3,)), ["labels", r"\(2, 3\)", r"\[3\]"]),
        (((), ()), ["logits", "rank 1"]),
        (((2, 0), (2, 0)), ["logits", "empty"]),
        (((0, 3), (0, 3)), ["logits", "empty"]),
    ],
)
def test_weights_that_do_not_fit(shapes, names):
    for name in names:
        with pytest.raises(ValueError, match=name):
            weighted(*(jnp.ones(s) for s in shapes))


@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        (((2, 3), (3,)), ["labels", r"\(2,\)", r"\[3\]"]),
        (((2, 3), (2, 3)), ["labels", r"\(2,\)", r"\[2, 3\]"]),
        (((2, 3), (2, 1)), ["labels", r"\(2,\)", r"\[2, 1\]"]),
        (((), ()), ["logits", "rank 1"]),
        (((2, 0), (2,)), ["logits", "empty"]),
    ],
)
def test_integers_that_do_not_fit(shapes, names):
    for name in names:
        with pytest.raises(ValueError, match=name):
            indexed(jnp.ones(shapes[0]), jnp.zeros(shapes[1], jnp.int32))


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_dtypes_that_have_no_gradient(argument, dtype):
    arrays = [jnp.ones((2, 3)), jnp.ones((2, 3))]
    arrays[argument] = arrays[argument].astype(dtype)
    with pytest.raises(TypeError, match=("logits", "labels")[argument]):
        weighted(*arrays)


@pytest.mark.parametrize("labels", [jnp.asarray(np.ones(2)), np.ones(2), np.ones(2, bool), 1.0, [0, 1], None])
def test_labels_that_are_no_integers(labels):
    with pytest.raises(TypeError, match=r"labels must (have|be an array of) .*integer dtype, got"):
        indexed(jnp.ones((2, 3)), labels)


def test_logits_of_integers():
    with pytest.raises(TypeError, match="logits"):
        indexed(jnp.ones((2, 3), jnp.int32), jnp.zeros(2, jnp.int32))
