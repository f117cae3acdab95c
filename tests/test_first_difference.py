"""`first_difference` names the commonest slips, knows other people's names, and offers no impossible slip."""

import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv import steps

RNG = np.random.default_rng(0)
X, DY = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3))
IMAGE, KERNEL = RNG.normal(size=(2, 4, 4, 2)), RNG.normal(size=(3, 3, 2, 2))
CONV_DY = RNG.normal(size=(2, 4, 4, 2))
CONV = steps.conv2d(IMAGE, KERNEL, None, CONV_DY, padding="SAME")
NORM_ARGS = X, np.array([0.5, 1.5, 2.0]), np.array([0.1, 0.2, 0.3]), DY
NORM, GRAPH = steps.batch_norm(*NORM_ARGS), steps.batch_norm_graph(*NORM_ARGS)
FUSED = steps.batch_norm_relu(*NORM_ARGS)
RELU, TANH, SIGMOID, SOFTMAX = (f(X, DY) for f in (steps.relu, steps.tanh, steps.sigmoid, steps.softmax))
LABELS = np.eye(3)[[0, 1, 2, 1]]
UP = np.array([1.0, 2.0, 3.0, 4.0])
LOSS = steps.softmax_cross_entropy(X, LABELS, UP)
FLAT = steps.flatten(IMAGE, RNG.normal(size=(2, 32)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    return np.exp(x) / np.exp(x).sum(axis, keepdims=True)


SLIPS = {
    "conv turned": (CONV, "z", steps.conv2d(IMAGE, KERNEL[::-1, ::-1], None, CONV_DY, padding="SAME").z, "correlation"),
    "dx not cropped": (
        CONV,
        "dx",
        steps.conv2d(np.pad(IMAGE, ((0, 0), (1, 1), (1, 1), (0, 0))), KERNEL, None, CONV_DY).dx,
        "not cropped",
    ),
    "softmax axis": (SOFTMAX, "s", softmax(X, 0), "axis 0"),
    "P·Y − Y": (LOSS, "d_logits", UP[:, None] * (softmax(X, 1) * LABELS - LABELS), "s y − y"),
    "relu mask": (RELU, "dx", np.where(DY > 0, DY, 0), "mask of the wrong array"),
    "relu mask behind batch norm": (FUSED, "d_y", np.where(X > 0, DY, 0), r"\[x > 0\]"),
    "upstream of tanh": (TANH, "dx", 1 - np.tanh(X) ** 2, "forgotten"),
    "upstream of the loss": (LOSS, "d_logits", softmax(X, 1) - LABELS, "forgotten"),
    "tanh from z": (TANH, "slope", 1 - X**2, "1 − z²"),
    "sigmoid twice": (SIGMOID, "dx", DY * sigmoid(sigmoid(X)) * (1 - sigmoid(sigmoid(X))), "twice"),
    "another ε": (NORM, "inv_std", 1 / np.sqrt(X.var(0) + 1e-3), "another ε: 0.001 in place of 1e-05"),
    "gamma and beta": (NORM, "d_gamma", DY.sum(0), "exchanged"),
    "C, H, W": (FLAT, "z", np.moveaxis(IMAGE, -1, 1).reshape(2, -1), "channels first"),
    "second path": (GRAPH, "d_c", GRAPH.d_c_through_x_hat, "missing path"),
    "root of std": (GRAPH, "std", X.var(0) + 1e-5, "root is missing"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_common_slip_has_its_hint(slip):
    right, step, wrong, words = SLIPS[slip]
    found = steps.first_difference({step: wrong}, right)
    assert found is not None
    assert re.search(words, found.slip or ""), found


def test_a_factor_of_two_is_no_number_of_elements():
    """Two examples and two channels: 2 and ½ are constants, not a missing or doubled 1/m."""
    x, dy = RNG.normal(size=(2, 2)), RNG.normal(size=(2, 2))
    tanh = steps.tanh(x, dy)
    for factor in (2, 0.5):
        found = steps.first_difference({"a": factor * np.asarray(tanh.a)}, tanh)
        assert found is not None
        assert "a factor is missing or wrong" in (found.slip or "")
        assert "where a" not in (found.slip or "")


def test_no_slip_in_a_step_that_was_given_and_right():
    """√(x−μ)² summed, not averaged, in var would explain dx; but var is given, and right."""
    wrong = steps.batch_norm(*NORM_ARGS)
    m = len(X)
    inv_std = (((X - X.mean(0)) ** 2).sum(0) + 1e-5) ** -0.5
    x_hat = (X - X.mean(0)) * inv_std
    g = DY * NORM_ARGS[1]
    dx = inv_std * (g - g.mean(0) - x_hat * (g * x_hat).sum(0) / m)
    alone = steps.first_difference({"dx": dx}, wrong)
    beside = steps.first_difference({"var": X.var(0), "inv_std": wrong.inv_std, "dx": dx}, wrong)
    assert alone is not None
    assert beside is not None
    assert "sum for σ²" in (alone.slip or "")
    assert "sum for σ²" not in (beside.slip or "")


def test_the_names_of_others():
    cs231n = {"dgamma": NORM.d_gamma, "dbeta": NORM.d_beta, "x_norm": NORM.x_hat, "sample_mean": NORM.mu}
    kratzert = {"xmu": GRAPH.c, "ivar": GRAPH.inv_std, "dxmu2": GRAPH.d_c_through_q, "dsqrtvar": GRAPH.d_std}
    karpathy = {"bndiff": GRAPH.c, "dbnraw": GRAPH.d_x_hat, "dbngain": GRAPH.d_gamma}
    torch = {"grad_input": NORM.dx, "grad_weight": NORM.d_gamma, "save_invstd": NORM.inv_std}
    for mine, right in (
        (cs231n, NORM),
        (kratzert, GRAPH),
        (karpathy, GRAPH),
        (torch, NORM),
        ({"dW": CONV.d_kernel}, CONV),
    ):
        assert steps.first_difference(mine, right) is None
        name = next(iter(mine))
        assert steps.first_difference({name: 3.3 + np.asarray(mine[name])}, right) is not None
    with pytest.raises(ValueError, match="did you mean d_gamma"):
        steps.first_difference({"d_gama": NORM.d_gamma}, NORM)
    with pytest.raises(ValueError, match="two names for the step d_gamma"):
        steps.first_difference({"d_gamma": NORM.d_gamma, "dgamma": NORM.d_gamma}, NORM)


def test_tensors_with_a_graph():
    """As PyTorch's: NumPy refuses them until they are detached."""
    array = np.asarray(NORM.dx)
    cpu = SimpleNamespace(dtype="torch.float64", numpy=lambda: array)
    tensor = SimpleNamespace(detach=lambda: SimpleNamespace(cpu=lambda: cpu))
    assert steps.first_difference({"dx": tensor}, NORM) is None
    assert jnp.shape(NORM.dx) == array.shape
