"""The steps of the activations, and the Jacobian of softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv import steps
from tests.activation.cases import CASES
from tests.compiling import fast_jit
from tests.contract import near
from tests.stepwise import equals_its_layer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_layer(case):
    equals_its_layer(case, {"sigmoid": "s", "softmax": "s", "log_softmax": "log_s"}.get(case.layer, "a"), ("dx",))


@pytest.mark.parametrize(
    ("function", "z", "value", "slope"),
    [
        (steps.tanh, np.log(2), 3 / 5, 16 / 25),
        (steps.sigmoid, np.log(3), 3 / 4, 3 / 16),
        (steps.relu, 2.0, 2.0, 1.0),
        (steps.relu, 0.0, 0.0, 0.0),
    ],
)
def test_numbers_of_the_derivation(function, z, value, slope):
    s = function(jnp.array([z]), jnp.array([10.0]))
    a = s.s if function is steps.sigmoid else s.a
    np.testing.assert_allclose([float(step[0]) for step in (a, s.slope, s.dx)], [value, slope, 10 * slope], rtol=1e-14)


def test_numbers_of_softmax():
    z, v = jnp.log(jnp.array([1.0, 2.0, 5.0])), jnp.array([8.0, 0.0, 16.0])
    s = steps.softmax(z, v)
    near(s.s, jnp.array([1, 2, 5]) / 8, 1e-14)
    near(s.mean, jnp.array([11.0]), 1e-14)
    near(s.dx, jnp.array([-3, -22, 25]) / 8, 1e-14)
    jacobian = jnp.array([[7, -2, -5], [-2, 12, -10], [-5, -10, 15]]) / 64
    near(steps.softmax_jacobian(z), jacobian, 1e-14)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 1)])
def test_softmax_jacobian_and_its_contraction(shape):
    rng = np.random.default_rng(0)
    z, v = (jnp.asarray(rng.normal(size=shape)) for _ in range(2))
    jacobian = steps.softmax_jacobian(z)
    assert jacobian.shape == (*shape, shape[-1])
    whole = fast_jit(jax.jacrev(lambda z: steps.softmax(z, z).s))(z).reshape(
        z.size // shape[-1], shape[-1], -1, shape[-1]
    )
    rows = jnp.arange(whole.shape[0])
    near(jacobian.reshape(-1, shape[-1], shape[-1]), whole[rows, :, rows, :], 1e-13)
    near(jnp.einsum("...i,...ij->...j", v, jacobian), steps.softmax(z, v).dx, 1e-13)
    reference = fast_jit(jax.jacrev(jax.nn.softmax))(z).reshape(whole.shape)
    near(jacobian.reshape(-1, shape[-1], shape[-1]), reference[rows, :, rows, :], 1e-13)


def test_second_derivatives_at_the_kink():
    def slope(z):
        return jax.grad(lambda z: steps.relu(z, jnp.ones_like(z)).a.sum())(z)

    np.testing.assert_array_equal(slope(jnp.array([-1.0, 0.0, 1.0])), [0, 0, 1])


def test_errors():
    with pytest.raises(ValueError, match=r"dy must have shape \(2,\)"):
        steps.tanh(jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match="axis must lie"):
        steps.softmax(jnp.ones(2), jnp.ones(2), axis=1)
    with pytest.raises(TypeError, match="x must have a floating dtype"):
        steps.relu(jnp.ones(2, jnp.int32), jnp.ones(2))
    with pytest.raises(ValueError, match="z must have rank 1"):
        steps.softmax_jacobian(1.0)
