"""Label smoothing, class weights and `where` of the cross entropies: PyTorch, optax, what reaches nothing, errors."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bnderiv
import bnderiv.reference
from bnderiv import softmax_cross_entropy as weighted
from bnderiv import softmax_cross_entropy_with_integer_labels as indexed
from bnderiv import steps
from tests.compiling import fast_jit
from tests.contract import near

INF, NAN = np.inf, np.nan
RNG = np.random.default_rng(0)
Z, Y, C = RNG.standard_normal((6, 4)), RNG.random((6, 4)), RNG.standard_normal(6)
LABELS, W = RNG.integers(0, 4, 6), np.array([0.5, 2.0, 0.0, 1.5])
EXAMPLES = np.array([True, False, True, True, False, True])
CLASSES = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0]], bool)
LOSSES = {"weights": (weighted, Y), "integers": (indexed, LABELS)}
either = pytest.mark.parametrize("kind", LOSSES)


def value_and_gradients(loss: Any, labels: Any, z: Any = Z, w: Any = None, **options: Any) -> Any:
    """Loss and gradients of the logits, of labels of floating dtype and of the weights, by a random cotangent."""
    floats = {"z": jnp.asarray(z)}
    if jnp.issubdtype(labels.dtype, jnp.floating):
        floats["labels"] = jnp.asarray(labels)
    if w is not None:
        floats["w"] = jnp.asarray(w)

    def f(floats):
        return loss(floats["z"], floats.get("labels", labels), class_weights=floats.get("w"), **options)

    value, pull_back = jax.vjp(f, floats)
    return value, pull_back(jnp.asarray(C, value.dtype))[0]


@either
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("w", [None, W], ids=["", "class_weights"])
def test_equals_pytorch(kind, smoothing, w):
    torch = pytest.importorskip("torch")
    loss, labels = LOSSES[kind]
    value, gradients = value_and_gradients(loss, labels, w=w, label_smoothing=smoothing)
    z, t = torch.tensor(Z, requires_grad=True), torch.tensor(labels)
    weight = None if w is None else torch.tensor(w)
    expected = torch.nn.functional.cross_entropy(z, t, weight, reduction="none", label_smoothing=smoothing)
    expected.backward(torch.tensor(C))
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(gradients["z"], z.grad.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("where", [EXAMPLES, CLASSES, CLASSES[:1], EXAMPLES[:, None]], ids=lambda a: str(a.shape))
def test_equals_optax(where):
    """`where` for examples and for classes, and smoothing over the classes that count, both as in optax.

    optax gives NaN for an example of which nothing counts; here its loss is 0.
    """
    counted = np.broadcast_to(where if where.ndim == 2 else where[:, None], Z.shape)
    known = counted.any(-1)

    def theirs(z, labels, class_weights=None):
        with jax.numpy_dtype_promotion("standard"):
            smoothed = optax.smooth_labels(labels, 0.2, where=jnp.asarray(counted[known]))
        return optax.softmax_cross_entropy(z, smoothed, where=jnp.asarray(counted[known]))

    value, gradients = value_and_gradients(weighted, Y, label_smoothing=0.2, where=where)
    expected, pull_back = jax.vjp(theirs, jnp.asarray(Z[known]), jnp.asarray(Y[known]))
    near(value[known], expected, 1e-13)
    of_z, of_labels = pull_back(jnp.asarray(C[known]))
    near(gradients["z"][known], of_z, 1e-13)
    near(gradients["labels"][known], np.where(counted[known], of_labels, 0), 1e-13)  # NaN there
    for left_out in (value[~known], gradients["z"][~known], gradients["labels"][~known]):
        assert not np.asarray(left_out).any()


@pytest.mark.few(1)
@either
@pytest.mark.parametrize(
    "layers",
    [bnderiv, pytest.param(bnderiv.forward_mode, marks=pytest.mark.slow)],
    ids=["bnderiv", "forward_mode"],
)
def test_every_combination_equals_the_reference(kind, layers):
    name, labels = LOSSES[kind][0].__name__, LOSSES[kind][1]

    def all_of(layers):
        def results():
            for smoothing, w, where in itertools.product((0.0, 0.2), (None, W), (None, EXAMPLES, CLASSES)):
                loss = getattr(layers, name)
                yield value_and_gradients(loss, labels, w=w, label_smoothing=smoothing, where=where)

        return fast_jit(lambda: list(results()))()

    near(all_of(layers), all_of(bnderiv.reference), 1e-12)


@either
def test_forward_mode_and_second_derivatives_of_the_class_weights(kind):
    name, labels = LOSSES[kind][0].__name__, LOSSES[kind][1]
    tangents = RNG.standard_normal((6, 4)), RNG.standard_normal(4)

    def loss(layers: Any, z: jax.Array, w: jax.Array) -> jax.Array:
        f = getattr(layers, name)
        return (f(z, labels, class_weights=w, where=CLASSES, label_smoothing=0.2) * C).sum()

    def derivatives(layers):
        def push(z, w):
            return jax.jvp(lambda z, w: jax.grad(lambda *a: loss(layers, *a), (0, 1))(z, w), (z, w), tangents)

        return fast_jit(push)(jnp.asarray(Z), jnp.asarray(W))

    expected = derivatives(bnderiv.reference)
    near(derivatives(bnderiv), expected, 1e-12)
    both = fast_jit(lambda z, w: jax.jvp(lambda *a: loss(bnderiv.forward_mode, *a), (z, w), tangents)[1])(Z, W)
    near(both, fast_jit(lambda z, w: jax.jvp(lambda *a: loss(bnderiv.reference, *a), (z, w), tangents)[1])(Z, W), 1e-12)


@either
def test_what_does_not_count_reaches_nothing(kind):
    """Logits, labels and class weights behind False: values and gradients to the bit, second derivatives finite."""
    loss, labels = LOSSES[kind]
    hidden, column = ~CLASSES, np.array([[True, True, True, False]])  # a class that never counts
    none_counts = hidden.all(-1)

    @jax.jit
    def run(z, labels, w, where):
        return value_and_gradients(loss, labels, z, w, where=where, label_smoothing=0.2)

    @jax.jit
    def second(z, labels, w, where):
        def function_of_gradients(z, w):
            return sum(jnp.cos(gradient).sum() for gradient in jax.tree.leaves(run(z, labels, w, where)[1]))

        return jax.grad(function_of_gradients, (0, 1))(z, w)

    for bad in (NAN, INF, -INF):
        dirty = np.where(none_counts, -5, labels) if kind == "integers" else np.where(hidden, bad, labels)
        value, gradients = result = run(np.where(hidden, bad, Z), dirty, W, CLASSES)
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(run(Z, labels, W, CLASSES)), strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_array_equal(a, b)
        assert value[3] == 0
        assert not np.asarray(gradients["z"])[hidden].any()
        assert kind == "integers" or not np.asarray(gradients["labels"])[hidden].any()

        where = CLASSES & column
        given = np.where(where, Z, bad), dirty
        of_dirty, of_clean = (run(*given, np.array([1.0, 2, 3, last]), where)[1] for last in (bad, 4))
        for name in ("z", "w"):
            np.testing.assert_array_equal(of_dirty[name], of_clean[name])
        assert of_dirty["w"][3] == 0
        assert all(np.isfinite(a).all() for a in second(*given, np.array([1.0, 2, 3, bad]), where))


@pytest.mark.few(4)
@either
@pytest.mark.parametrize("layers", [bnderiv, bnderiv.forward_mode], ids=["bnderiv", "forward_mode"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_does_not_count_has_gradient_zero_beside_nan(kind, layers, bad):
    """Whatever the counted logits of the example are, also the gradient of a weight that counts nowhere."""
    loss, labels = LOSSES[kind]
    where = CLASSES & (np.arange(4) > 0)
    z = np.where(where, bad, Z)
    loss = getattr(layers, loss.__name__)
    value, gradients = value_and_gradients(loss, labels, z, W, where=where, label_smoothing=0.1)
    assert np.isnan(value[where.any(1)]).all()
    for name in gradients.keys() - {"w"}:
        np.testing.assert_array_equal(gradients[name][~where], 0)
    assert gradients["w"][0] == 0


def test_padding_by_a_label_of_minus_one():
    labels = np.array([0, -1, 2, 1, -1, 3])
    where = labels >= 0
    value, gradients = value_and_gradients(indexed, labels, where=where)
    expected, expected_gradients = value_and_gradients(indexed, np.abs(labels))
    np.testing.assert_array_equal(value, np.where(where, expected, 0))
    near(gradients["z"], np.where(where[:, None], expected_gradients["z"], 0), 1e-14)
    # An example that counts still needs a class.
    wrong, gradients = value_and_gradients(indexed, labels, w=W, where=np.array([[False, True, True, True]]))
    np.testing.assert_array_equal(np.isnan(wrong), ~where)
    np.testing.assert_array_equal(np.isnan(gradients["w"]), [False, True, True, True])


def test_a_label_whose_class_does_not_count_is_like_its_code():
    code = jax.nn.one_hot(LABELS, 4, dtype=jnp.float64)
    options: dict[str, Any] = {"where": CLASSES, "class_weights": jnp.asarray(W), "label_smoothing": 0.2}
    assert not CLASSES[np.arange(6), LABELS].all()
    plain: dict[str, Any] = {"where": CLASSES}
    for given in (options, plain):
        near(indexed(jnp.asarray(Z), LABELS, **given), weighted(jnp.asarray(Z), code, **given), 1e-14)


@pytest.mark.few(0, 3)
@pytest.mark.slow
@pytest.mark.as_users_compile
@either
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_half_precision(kind, dtype):
    loss, labels = LOSSES[kind]
    options = {"where": CLASSES, "label_smoothing": 0.2}
    narrow = jnp.asarray(labels, dtype) if kind == "weights" else labels
    z, w = jnp.asarray(Z, dtype), jnp.asarray(W, jnp.float32)
    result = value_and_gradients(loss, narrow, z, w, **options)
    assert result[0].dtype == result[1]["z"].dtype == z.dtype
    assert result[1]["w"].dtype == jnp.float32
    wide = np.asarray(narrow, np.float64) if kind == "weights" else labels
    global_c = np.asarray(jnp.asarray(C, dtype), np.float64)
    truth = value_and_gradients(loss, wide, np.asarray(z, np.float64), W, **options)
    near(result[0], truth[0], 2 * float(jnp.finfo(dtype).eps))
    floats = {"z": jnp.asarray(np.asarray(z, np.float64)), "w": jnp.asarray(W)}
    _, pull_back = jax.vjp(lambda f: loss(f["z"], wide, class_weights=f["w"], **options), floats)
    expected = pull_back(jnp.asarray(global_c))[0]
    near([result[1]["z"], result[1]["w"]], [expected["z"], expected["w"]], 2 * float(jnp.finfo(dtype).eps))


def test_smoothing_and_a_logit_of_minus_infinity():
    z = np.where([True, False, True, True], Z, -INF)
    labels = np.zeros(6, int)
    assert (indexed(jnp.asarray(z), labels, label_smoothing=0.1) == INF).all()  # as PyTorch: the class has a target
    ruled_out = np.array([[True, False, True, True]])
    value, gradients = value_and_gradients(indexed, labels, z, label_smoothing=0.1, where=ruled_out)
    expected, of_three = value_and_gradients(indexed, labels, Z[:, [0, 2, 3]], label_smoothing=0.1)
    near(value, expected, 1e-14)
    near(gradients["z"][:, jnp.array([0, 2, 3])], of_three["z"], 1e-13)
    # A weight of 0, or a label of 0, times an infinite −log s is 0.
    w = np.array([1.0, 0, 1, 1])
    value, gradients = value_and_gradients(weighted, np.ones((6, 4)), z, w)
    assert np.isfinite(value).all()
    assert np.isfinite(gradients["labels"]).all()
    assert np.isfinite(gradients["z"]).all()
    code = np.eye(4)[labels]
    assert np.isfinite(value_and_gradients(weighted, code, z, w)[1]["w"]).all()

    # So it is in forward mode, where the infinity is multiplied first.
    def push(y, w):
        forward = bnderiv.forward_mode.softmax_cross_entropy
        return jax.jvp(lambda y, w: forward(jnp.asarray(z), y, class_weights=w), (y, w), (y + 1, w + 1))[1]

    kept = np.array([0, 2, 3])
    slope = w * (code + 1) + (w + 1) * code
    expected = -(slope[:, kept] * np.asarray(jax.nn.log_softmax(z[:, kept]))).sum(-1)
    near(fast_jit(push)(code, w), expected, 1e-13)


def test_all_of_the_label_may_be_smoothed():
    loss = indexed(jnp.asarray(Z, jnp.float32), LABELS, label_smoothing=np.float64(1))
    assert loss.dtype == jnp.float32
    near(loss, -jax.nn.log_softmax(Z).mean(-1), 1e-6)


def test_saves_its_arguments_alone():
    z = jax.ShapeDtypeStruct((8, 16), jnp.bfloat16)
    labels, w, where = jnp.zeros(8, jnp.int32), jnp.ones(16, jnp.float32), jnp.ones(8, bool)

    def loss(z):
        return indexed(z, labels, class_weights=w, where=where, label_smoothing=0.1)

    saved = jax.tree.leaves(jax.eval_shape(lambda z: jax.vjp(loss, z)[1], z))
    shapes = sorted((s.dtype.name, s.shape) for s in saved)
    assert shapes == [("bfloat16", (8, 16)), ("bool", (8, 16)), ("float32", (16,)), ("int32", (8,))]


def test_under_vmap_and_shard_map():
    """Class weights shared by the mapped examples get the sum of their gradients."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    options = {"label_smoothing": 0.2}
    expected = value_and_gradients(indexed, LABELS, w=W, where=CLASSES, **options)[1]["w"]

    def mean(w, z, labels, where, c):
        return (indexed(z, labels, class_weights=w, where=where, **options) * c).sum()

    rows = (jnp.asarray(Z), jnp.asarray(LABELS), jnp.asarray(CLASSES), jnp.asarray(C))
    for f in (
        lambda w: jax.vmap(mean, (None, 0, 0, 0, 0))(w, *rows).sum(),
        lambda w: jax.shard_map(
            lambda *a: jax.lax.psum(mean(*a), "data"), mesh=mesh, in_specs=(P(), *[P("data")] * 4), out_specs=P()
        )(w, *rows),
    ):
        near(jax.jit(jax.grad(f))(jnp.asarray(W)), expected, 1e-13)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must lie in \[0, 1\], got 1.5"),
        ({"label_smoothing": -0.1}, ValueError, r"label_smoothing must lie in \[0, 1\]"),
        ({"label_smoothing": NAN}, ValueError, r"label_smoothing must lie in \[0, 1\], got nan"),
        ({"label_smoothing": True}, TypeError, "label_smoothing must be a number known when tracing, got True"),
        (
            {"label_smoothing": jnp.asarray(np.ones(()))},
            TypeError,
            "label_smoothing must be a number known when tracing",
        ),
        ({"class_weights": np.ones(3)}, ValueError, r"class_weights must have shape \(4,\) .*got float64\[3\]"),
        ({"class_weights": np.ones((6, 4))}, ValueError, r"class_weights must have shape \(4,\)"),
        ({"class_weights": np.ones(4, int)}, TypeError, "class_weights must have a floating dtype"),
        ({"class_weights": [1.0] * 4}, TypeError, "class_weights must be an array"),
        ({"where": np.ones((6, 4))}, TypeError, r"where must be boolean, got float64\[6, 4\]"),
        (
            {"where": np.ones(4, bool)},
            ValueError,
            r"where must broadcast to the shape of logits.*\(6,\), got shape \(4,\)",
        ),
        ({"where": np.ones((5, 4), bool)}, ValueError, r"where must broadcast to the shape of logits.*\(6, 4\)"),
        ({"where": True}, ValueError, r"where must have the rank of logits, 2, or one less, got shape \(\)"),
        (
            {"where": np.ones((1, 6, 4), bool)},
            ValueError,
            r"where must have the rank of logits, 2.*got shape \(1, 6, 4\)",
        ),
    ],
    ids=str,
)
@either
def test_errors(kind, options, error, message):
    loss, labels = LOSSES[kind]
    for function in (loss, getattr(steps, loss.__name__)):
        with pytest.raises(error, match=message):
            function(jnp.asarray(Z), labels, **options)


def test_the_slips_of_the_options_are_recognized():
    alpha, m, c = 0.2, CLASSES.astype(float), C[:, None]
    n = np.maximum(m.sum(-1, keepdims=True), 1)
    right = steps.softmax_cross_entropy(Z, Y, C, label_smoothing=alpha, class_weights=W, where=CLASSES)
    for wrong, words in (
        (m * W * Y, "smoothing is forgotten"),
        (m * ((1 - alpha) * Y + alpha / n), "class weights are forgotten"),
        (m * W * (Y + alpha / n), "1 − α"),
        (m * ((1 - alpha) * W * Y + alpha / n), "weighted before it is smoothed"),
        (m * W * ((1 - alpha) * Y + alpha / 4), "K = 4 in place of n"),
    ):
        for mine in ({"targets": wrong}, {"d_logits": c * (wrong.sum(-1, keepdims=True) * right.s - wrong)}):
            found = steps.first_difference(mine, right)
            assert found is not None
            assert words in str(found.slip), (words, found)
    log_s = np.where(CLASSES, right.log_s, 0)
    found = steps.first_difference({"d_labels": -c * np.where(m * W == 0, 0, W * log_s)}, right)
    assert found is not None
    assert "1 − α" in str(found.slip)
    assert "class_weights" not in str(steps.softmax_cross_entropy(Z, Y))
