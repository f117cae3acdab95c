"""`first_difference` names the commonest slips, knows other people's names, and offers no impossible slip."""

import re
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv import steps

RNG = np.random.default_rng(0)
X, DY = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3))
IMAGE, KERNEL = RNG.normal(size=(2, 4, 4, 2)), RNG.normal(size=(3, 3, 2, 2))
CONV_DY = RNG.normal(size=(2, 4, 4, 2))
NORM_ARGS = X, np.array([0.5, 1.5, 2.0]), np.array([0.1, 0.2, 0.3]), DY
LABELS = np.eye(3)[[0, 1, 2, 1]]
UP = np.array([1.0, 2.0, 3.0, 4.0])
FLAT_DY = RNG.normal(size=(2, 32))


@pytest.fixture(scope="module")
def right():
    """The layers' steps."""
    return SimpleNamespace(
        conv=steps.conv2d(IMAGE, KERNEL, None, CONV_DY, padding="SAME"),
        norm=steps.batch_norm(*NORM_ARGS),
        graph=steps.batch_norm_graph(*NORM_ARGS),
        fused=steps.batch_norm_relu(*NORM_ARGS),
        relu=steps.relu(X, DY),
        tanh=steps.tanh(X, DY),
        sigmoid=steps.sigmoid(X, DY),
        softmax=steps.softmax(X, DY),
        loss=steps.softmax_cross_entropy(X, LABELS, UP),
        flat=steps.flatten(IMAGE, FLAT_DY),
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    return np.exp(x) / np.exp(x).sum(axis, keepdims=True)


def turned():
    return steps.conv2d(IMAGE, KERNEL[::-1, ::-1], None, CONV_DY, padding="SAME").z


def not_cropped():
    return steps.conv2d(np.pad(IMAGE, ((0, 0), (1, 1), (1, 1), (0, 0))), KERNEL, None, CONV_DY).dx


# Of which layer, the step, what stands in its place, and words of the hint.
SLIPS = {
    "conv turned": ("conv", "z", turned, "correlation"),
    "dx not cropped": ("conv", "dx", not_cropped, "not cropped"),
    "softmax axis": ("softmax", "s", softmax(X, 0), "axis 0"),
    "P·Y − Y": ("loss", "d_logits", UP[:, None] * (softmax(X, 1) * LABELS - LABELS), "s y − y"),
    "relu mask": ("relu", "dx", np.where(DY > 0, DY, 0), "mask of the wrong array"),
    "relu mask behind batch norm": ("fused", "d_y", np.where(X > 0, DY, 0), r"\[x > 0\]"),
    "upstream of tanh": ("tanh", "dx", 1 - np.tanh(X) ** 2, "forgotten"),
    "upstream of the loss": ("loss", "d_logits", softmax(X, 1) - LABELS, "forgotten"),
    "tanh from z": ("tanh", "slope", 1 - X**2, "1 − z²"),
    "sigmoid twice": ("sigmoid", "dx", DY * sigmoid(sigmoid(X)) * (1 - sigmoid(sigmoid(X))), "twice"),
    "another ε": ("norm", "inv_std", 1 / np.sqrt(X.var(0) + 1e-3), "another ε: 0.001 in place of 1e-05"),
    "gamma and beta": ("norm", "d_gamma", DY.sum(0), "exchanged"),
    "C, H, W": ("flat", "z", np.moveaxis(IMAGE, -1, 1).reshape(2, -1), "channels first"),
    "second path": ("graph", "d_c", lambda: steps.batch_norm_graph(*NORM_ARGS).d_c_through_x_hat, "missing path"),
    "root of std": ("graph", "std", X.var(0) + 1e-5, "root is missing"),
}


@pytest.mark.few(5)
@pytest.mark.parametrize("slip", SLIPS)
def test_a_common_slip_has_its_hint(slip, right):
    layer, step, wrong, words = SLIPS[slip]
    found = steps.first_difference({step: wrong() if callable(wrong) else wrong}, getattr(right, layer))
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


def test_the_names_of_others(right):
    norm, graph, conv = right.norm, right.graph, right.conv
    cs231n = {"dgamma": norm.d_gamma, "dbeta": norm.d_beta, "x_norm": norm.x_hat, "sample_mean": norm.mu}
    kratzert = {"xmu": graph.c, "ivar": graph.inv_std, "dxmu2": graph.d_c_through_q, "dsqrtvar": graph.d_std}
    karpathy = {"bndiff": graph.c, "dbnraw": graph.d_x_hat, "dbngain": graph.d_gamma}
    torch = {"grad_input": norm.dx, "grad_weight": norm.d_gamma, "save_invstd": norm.inv_std}
    for mine, its in (
        (cs231n, norm),
        (kratzert, graph),
        (karpathy, graph),
        (torch, norm),
        ({"dW": conv.d_kernel}, conv),
    ):
        assert steps.first_difference(mine, its) is None
        name = next(iter(mine))
        assert steps.first_difference({name: 3.3 + np.asarray(mine[name])}, its) is not None
    with pytest.raises(ValueError, match="did you mean d_gamma"):
        steps.first_difference({"d_gama": norm.d_gamma}, norm)
    with pytest.raises(ValueError, match="two names for the step d_gamma"):
        steps.first_difference({"d_gamma": norm.d_gamma, "dgamma": norm.d_gamma}, norm)


def test_tensors_with_a_graph(right):
    """As PyTorch's: NumPy refuses them until they are detached."""
    array = np.asarray(right.norm.dx)
    cpu = SimpleNamespace(dtype="torch.float64", numpy=lambda: array)
    tensor = SimpleNamespace(detach=lambda: SimpleNamespace(cpu=lambda: cpu))
    assert steps.first_difference({"dx": tensor}, right.norm) is None
    assert jnp.shape(right.norm.dx) == array.shape


def test_kept_axes_hide_no_slip():
    """NumPy's keepdims=True is harmless until the end, so a slip after it is named first."""
    x, dy = RNG.normal(size=(2, 5, 3))
    right = steps.batch_norm(x, np.ones(3), np.zeros(3), dy)
    kept = {"mu": x.mean(0, keepdims=True), "var": x.var(0, keepdims=True)}
    found: Any = steps.first_difference(kept | {"dx": -np.asarray(right.dx)}, right)
    assert (found.step, found.slip) == ("dx", "the sign: it is minus the right value")
    found = steps.first_difference(kept | {"dx": right.dx}, right)
    assert (found.step, found.mine, found.right) == ("mu", (1, 3), (3,))
    assert "axes of length 1" in found.slip
    found = steps.first_difference({"var": x.var(0, keepdims=True, ddof=1)}, right)
    assert found.step == "var"
    assert found.amount > 0.01  # its numbers are compared
