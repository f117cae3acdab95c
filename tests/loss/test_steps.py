"""The steps of the losses, and the slips that are recognized."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv import steps
from tests.compiling import fast_jit
from tests.contract import near
from tests.loss.cases import CASES
from tests.stepwise import equals_its_layer

pytestmark = pytest.mark.slow

GRADIENTS = {
    "squared_error": ("d_predictions", "d_targets"),
    "softmax_cross_entropy": ("d_logits", "d_labels"),
    "softmax_cross_entropy_with_integer_labels": ("d_logits",),
}
Z = jnp.log(jnp.array([1.0, 2.0, 5.0]))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_layer(case):
    equals_its_layer(case, "loss", GRADIENTS[case.layer])


def test_numbers_of_the_squared_error():
    s = steps.squared_error(jnp.array([2.0, 1.0]), jnp.array([1.0, 2.0]))
    assert s.loss == 1
    np.testing.assert_array_equal(s.d_predictions, [1, -1])
    np.testing.assert_array_equal(s.d_targets, [-1, 1])


def test_numbers_of_the_cross_entropy():
    s = steps.softmax_cross_entropy(Z, jnp.array([0.0, 1.0, 2.0]))
    near(s.loss, np.log(4) + 2 * np.log(8 / 5), 1e-14)
    near(s.label_sum, jnp.array([3.0]), 0)
    near(s.d_logits, jnp.array([3, -2, -1]) / 8, 1e-14)
    near(s.d_labels, jnp.log(jnp.array([8, 4, 8 / 5])), 1e-14)


def test_numbers_of_integer_labels():
    s = steps.softmax_cross_entropy_with_integer_labels(Z, jnp.array(1))
    near(s.loss, np.log(4), 1e-14)
    near(s.d_logits, jnp.array([1, -6, 5]) / 8, 1e-14)
    np.testing.assert_array_equal(s.one_hot, [0, 1, 0])


def test_two_roads_to_the_same_delta():
    """Cross entropy and softmax apart, v = −y/s through the Jacobian (A9), is Y s − y (S7)."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=5))
    y = jnp.asarray(np.random.default_rng(1).uniform(size=5))
    s = steps.softmax_cross_entropy(z, y)
    near(steps.softmax_jacobian(z) @ (-y / s.s), s.d_logits, 1e-13)
    near(steps.softmax(z, -y / s.s).dx, s.d_logits, 1e-13)


def test_a_label_that_is_no_class_spoils_its_own_row_alone():
    s = steps.softmax_cross_entropy_with_integer_labels(jnp.stack([Z, Z, Z]), jnp.array([-1, 0, 3]))
    np.testing.assert_array_equal(jnp.isnan(s.loss), [True, False, True])
    np.testing.assert_array_equal(jnp.isnan(s.d_logits).all(1), [True, False, True])


def test_a_class_ruled_out():
    s = steps.softmax_cross_entropy(Z.at[0].set(-jnp.inf), jnp.array([0.0, 1.0, 0.0]))
    near(s.loss, np.log(7 / 2), 1e-14)
    near(s.d_logits, jnp.array([0, 2 / 7 - 1, 5 / 7]), 1e-14)


def _slip(mine, right):
    found = steps.first_difference(mine, right)
    assert found is not None
    assert found.step == next(iter(mine))
    return found.slip or ""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_slips_of_the_squared_error(dtype):
    rng = np.random.default_rng(0)
    a, y, c = (rng.normal(size=size).astype(dtype) for size in ((6, 4), (6, 4), 6))
    right = steps.squared_error(a, y, c)
    c = c[:, None]
    for mine, words in (
        ({"difference": y - a}, "the sign: y − a in place of a − y"),
        ({"loss": ((a - y) ** 2).sum(-1)}, "missing ½"),
        ({"loss": ((a - y) ** 2).mean(-1)}, "a mean over the K = 4"),
        ({"d_predictions": c * (y - a)}, "the sign: y − a in place of a − y"),
        ({"d_predictions": 2 * c * (a - y)}, "a factor 2"),
        ({"d_predictions": c * (a - y) / 4}, "divided by K = 4"),
        ({"d_predictions": c * (a - y) / 6}, "divided by N = 6"),
        ({"d_targets": c * (a - y)}, "the sign: a − y in place of y − a"),
    ):
        assert words in _slip(mine, right)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("integers", [False, True])
def test_slips_of_the_cross_entropy(integers, dtype):
    rng = np.random.default_rng(0)
    z, c = rng.normal(size=(6, 4)).astype(dtype), rng.normal(size=6).astype(dtype)
    labels = rng.integers(0, 4, 6)
    y = np.eye(4, dtype=dtype)[labels] if integers else rng.uniform(0.1, 1, (6, 4)).astype(dtype)
    name = "softmax_cross_entropy" + "_with_integer_labels" * integers
    right = fast_jit(getattr(steps, name))(z, labels if integers else y, c)
    E = np.exp(z - z.max(-1, keepdims=True))
    s, c, Y = E / E.sum(-1, keepdims=True), c[:, None], y.sum(-1, keepdims=True)
    planted = [
        ({"s": E / E.sum(0)}, "over the examples"),
        ({"s": E}, "not divided by S"),
        ({"log_s": np.log(E)}, "log S is not subtracted"),
        ({"loss": (y * np.log(s)).sum(-1)}, "the sign"),
        ({"loss": -(y * np.log(s)).mean(-1)}, "a mean over the K = 4"),
        ({"d_logits": -c * y}, "softmax is not added"),
        ({"d_logits": c * s}, "the labels are not subtracted"),
        ({"d_logits": c * (y - Y * s)}, "the sign: y − s"),
        ({"d_logits": -c * y / s}, "Jacobian of softmax is missing"),
        ({"d_logits": c * (np.log(s) - y)}, "log s − y"),
        ({"d_logits": c * (Y * s - y) / 6}, "divided by N = 6"),
    ]
    if not integers:
        planted += [
            ({"d_logits": c * (s - y)}, "missing factor Y"),
            ({"d_labels": c * np.log(s)}, "the sign"),
            ({"d_labels": c * s}, "missing logarithm"),
        ]
    for mine, words in planted:
        assert words in _slip(mine, right)
    assert steps.first_difference({"s": s, "d_logits": c * (Y * s - y)}, right) is None


def test_slips_beside_a_label_that_is_no_class():
    logits, labels = jnp.stack([Z, -Z, 2 * Z]), jnp.array([-1, 0, 2])
    right = steps.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert "labels are not subtracted" in _slip({"d_logits": right.s * jnp.array([[np.nan], [1], [1]])}, right)


def test_differentiable():
    near(
        jax.grad(lambda z: steps.softmax_cross_entropy(z, Z).loss)(Z), steps.softmax_cross_entropy(Z, Z).d_logits, 1e-13
    )


def test_errors():
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\)"):
        steps.softmax_cross_entropy(Z, jnp.ones(2))
    with pytest.raises(TypeError, match="labels must have an integer dtype"):
        steps.softmax_cross_entropy_with_integer_labels(Z, jnp.array(1.0))
    with pytest.raises(ValueError, match=r"labels must have shape \(\)"):
        steps.softmax_cross_entropy_with_integer_labels(Z, jnp.array([1]))
    with pytest.raises(ValueError, match=r"dy must have shape \(\)"):
        steps.squared_error(Z, Z, jnp.ones(3))
