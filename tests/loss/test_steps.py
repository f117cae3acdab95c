"""The steps of the losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv import steps
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
