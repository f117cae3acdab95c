"""bnderiv.steps as a whole: what it has, how it prints, and which step of somebody else's derivation is wrong."""

import functools
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv import steps
from tests.compiling import fast_jit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def differs(mine, right) -> Any:
    """The first difference, of which there must be one."""
    found = steps.first_difference(mine, right)
    assert found is not None
    return found


@functools.cache
def _drawn(shape, dtype="float64"):
    rng = np.random.default_rng(0)
    C = shape[-1]
    drawn = 2 + 3 * rng.normal(size=shape), 1 + rng.uniform(size=C), rng.normal(size=C), rng.normal(size=shape)
    return tuple(a.astype(dtype) for a in drawn)


def _by_hand(x, gamma, beta, dy, eps=1e-5, **slip):
    """Somebody's own derivation in NumPy, over the last axis; `slip` puts lines in the place of the right ones."""
    axes = tuple(range(x.ndim - 1))
    m = x.size // x.shape[-1]
    v = dict(x=x, gamma=gamma, beta=beta, dy=dy, eps=eps, axes=axes, m=m, N=x.shape[0])
    lines = {
        "mu": lambda v: v["x"].sum(v["axes"]) / v["m"],
        "var": lambda v: ((v["x"] - v["mu"]) ** 2).sum(v["axes"]) / v["m"],
        "inv_std": lambda v: (v["var"] + v["eps"]) ** -0.5,
        "x_hat": lambda v: (v["x"] - v["mu"]) * v["inv_std"],
        "y": lambda v: v["gamma"] * v["x_hat"] + v["beta"],
        "d_gamma": lambda v: (v["dy"] * v["x_hat"]).sum(v["axes"]),
        "d_beta": lambda v: v["dy"].sum(v["axes"]),
        "d_x_hat": lambda v: v["dy"] * v["gamma"],
        "d_var": lambda v: (v["d_x_hat"] * (v["x"] - v["mu"])).sum(v["axes"]) * -0.5 * v["inv_std"] ** 3,
        "d_mu": lambda v: -(v["d_x_hat"] * v["inv_std"]).sum(v["axes"]),
        "dx_through_x_hat": lambda v: v["d_x_hat"] * v["inv_std"],
        "dx_through_mu": lambda v: np.broadcast_to(v["d_mu"] / v["m"], v["x"].shape),
        "dx_through_var": lambda v: v["d_var"] * 2 * (v["x"] - v["mu"]) / v["m"],
        "dx": lambda v: v["dx_through_x_hat"] + v["dx_through_mu"] + v["dx_through_var"],
    }
    for name, line in lines.items():
        v[name] = slip.get(name, line)(v)
    return {name: v[name] for name in lines}


# Every slip, planted: the line in which it is made, and words of the sentence that must name it.
PLANTED = [
    ("mu", lambda v: v["x"].sum(v["axes"]), "missing 1/m"),
    ("mu", lambda v: v["x"].sum(v["axes"]) / v["N"], r"N = 4, must be N·H·W = 24"),
    ("var", lambda v: ((v["x"] - v["mu"]) ** 2).sum(v["axes"]), "missing 1/m"),
    ("var", lambda v: ((v["x"] - v["mu"]) ** 2).sum(v["axes"]) / v["N"], r"N = 4, must be N·H·W = 24"),
    ("var", lambda v: v["x"].var(v["axes"], ddof=1), "unbiased variance"),
    ("var", lambda v: v["x"].std(v["axes"]), "standard deviation"),
    ("var", lambda v: (v["x"] ** 2).mean(v["axes"]), "μ² is not subtracted"),
    ("inv_std", lambda v: 1 / (np.sqrt(v["var"]) + v["eps"]), "ε is outside of the root"),
    ("inv_std", lambda v: 1 / np.sqrt(v["var"]), "ε is missing"),
    ("inv_std", lambda v: 1 / (v["var"] + v["eps"]), "root is missing"),
    ("inv_std", lambda v: np.sqrt(v["var"] + v["eps"]), "not inverted"),
    ("x_hat", lambda v: v["x"] * v["inv_std"], "not centered"),
    ("x_hat", lambda v: v["x"], "x for x̂"),
    ("y", lambda v: v["x_hat"] + v["beta"], "missing γ"),
    ("y", lambda v: v["gamma"] * v["x_hat"], "missing β"),
    ("d_gamma", lambda v: (v["dy"] * v["x"]).sum(v["axes"]), "x for x̂"),
    ("d_gamma", lambda v: (v["dy"] * v["x_hat"]).sum(0), r"sum over the wrong axes: over \(0,\)"),
    ("d_gamma", lambda v: (v["dy"] * v["x_hat"]).mean(v["axes"]), "divided by m"),
    ("d_beta", lambda v: v["dy"].sum((1, 2, 3)), r"sum over the wrong axes: over \(1, 2, 3\)"),
    ("d_beta", lambda v: -v["dy"].sum(v["axes"]), "sign"),
    ("d_x_hat", lambda v: v["dy"], "missing γ"),
    ("d_var", lambda v: (v["d_x_hat"] * (v["x"] - v["mu"])).sum(v["axes"]) * 0.5 * v["inv_std"] ** 3, "sign"),
    ("d_var", lambda v: -(v["d_x_hat"] * (v["x"] - v["mu"])).sum(v["axes"]) * v["inv_std"] ** 3, "missing 1/2"),
    ("d_var", lambda v: (v["d_x_hat"] * v["x"]).sum(v["axes"]) * -0.5 * v["inv_std"] ** 3, "x for x − μ"),
    ("d_mu", lambda v: (v["d_x_hat"] * v["inv_std"]).sum(v["axes"]), "sign"),
    ("d_mu", lambda v: -v["d_x_hat"].sum(v["axes"]), r"missing 1/√"),
    ("dx_through_mu", lambda v: np.broadcast_to(v["d_mu"], v["x"].shape), "missing 1/m in the part through μ"),
    ("dx_through_mu", lambda v: np.broadcast_to(v["d_mu"] / v["N"], v["x"].shape), "wrong m in the part through μ"),
    ("dx_through_var", lambda v: v["d_var"] * 2 * (v["x"] - v["mu"]), "missing 1/m in the part through σ²"),
    ("dx_through_var", lambda v: v["d_var"] * 2 * (v["x"] - v["mu"]) / v["N"], "wrong m in the part through σ²"),
    ("dx_through_var", lambda v: v["d_var"] * (v["x"] - v["mu"]) / v["m"], "missing 2"),
    ("dx_through_var", lambda v: v["d_var"] * 2 * v["x"] / v["m"], "x for x − μ"),
    ("dx", lambda v: v["dx_through_mu"] + v["dx_through_var"], "missing term: the part through x̂"),
    ("dx", lambda v: v["dx_through_x_hat"] + v["dx_through_var"], "missing term: the part through μ"),
    ("dx", lambda v: v["dx_through_x_hat"] + v["dx_through_mu"], "missing term: the part through σ²"),
    ("dx", lambda v: v["dx_through_x_hat"], "two missing terms"),
    ("dx", lambda v: v["dx_through_x_hat"] + v["dx_through_mu"] - v["dx_through_var"], "sign of the part through σ²"),
]


@pytest.mark.few(0, 28)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("step", "line", "words"), PLANTED, ids=[f"{s}: {w}" for s, _, w in PLANTED])
def test_a_planted_slip_is_found_and_named(step, line, words, dtype):
    arguments = _drawn((4, 2, 3, 2), dtype)
    eps = 1e-5 if dtype == "float64" else 1e-3  # beside a variance of 9, the place of 1e-5 is float32's last digit
    right = steps.batch_norm(*arguments, eps=eps)
    mine = _by_hand(*arguments, eps=eps, **{step: line})
    found = differs(mine, right)
    assert found.step == step
    assert found.slip is not None
    assert re.search(words, found.slip), found.slip
    # The same where the wrong line itself is not shown, only what came of it.
    if step not in ("x_hat", "y", "d_gamma", "d_beta", "dx"):
        last = differs({"dx": mine["dx"]}, right)
        assert last.step == "dx"
        assert last.slip is not None


@pytest.mark.parametrize("shape", [(6, 3), (4, 2, 3, 2)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_right_derivation_has_no_difference(shape, dtype):
    arguments = _drawn(shape, dtype)
    right = steps.batch_norm(*arguments)
    mine = _by_hand(*arguments)
    assert steps.first_difference(mine, right) is None
    assert steps.first_difference({"dx": jnp.asarray(mine["dx"]), "mu": mine["mu"]}, right) is None
    assert steps.first_difference(right, right) is None
    assert steps.first_difference({}, right) is None


def test_the_first_in_the_order_of_the_derivation_by_how_much_and_where():
    arguments = _drawn((4, 2, 3, 2))
    right = steps.batch_norm(*arguments)
    wrong = np.array(right.x_hat)
    wrong[2, 1, 0, 1] += 0.25
    found = differs({"dx": np.zeros((4, 2, 3, 2)), "x_hat": wrong, "mu": right.mu}, right)
    assert (found.step, found.slip, found.place) == ("x_hat", None, (2, 1, 0, 1))
    assert found.amount == pytest.approx(0.25)
    assert found.relative == pytest.approx(0.25 / float(abs(right.x_hat).max()))
    assert found.mine - found.right == pytest.approx(0.25)
    assert re.match(r"x_hat \[x̂, \(N3\)\] is off by 0.25 .* at \[2, 1, 0, 1\]: .*, must be", repr(found))
    nan = differs({"y": np.full((4, 2, 3, 2), np.nan)}, right)
    assert nan.amount == np.inf


def test_tolerance():
    right = steps.batch_norm(*_drawn((4, 2, 3, 2)))
    rng = np.random.default_rng(0)
    near_by = right.y * (1 + 1e-6 * rng.normal(size=right.y.shape))
    assert steps.first_difference({"y": near_by}, right) is not None
    assert steps.first_difference({"y": near_by}, right, rtol=1e-4) is None
    assert steps.first_difference({"y": np.asarray(near_by, np.float32)}, right) is None  # as good as float32 is
    # A gradient that cancels to 0 exactly, and what rounding leaves of it: one element a channel.
    alone = steps.batch_norm(*_drawn((1, 3)))
    assert not alone.dx.any()
    assert steps.first_difference({"dx": np.full((1, 3), 1e-15)}, alone) is None
    assert steps.first_difference({"dx": np.full((1, 3), 1e-3)}, alone) is not None


def test_every_layout_is_recognized():
    x, gamma, beta, dy = _drawn((3, 4, 3, 3))
    for axis in range(4):
        g, b = np.resize(gamma, x.shape[axis]), np.resize(beta, x.shape[axis])
        right = steps.batch_norm(x, g, b, dy, channel_axis=axis)
        found = differs({"dx": right.dx_through_x_hat + right.dx_through_mu}, right)
        assert found.slip == "a missing term: the part through σ²"


@pytest.mark.parametrize("function", [steps.batch_norm_relu, steps.batch_norm_graph])
def test_batch_norms_relatives_know_its_slips(function):
    x, gamma, beta, dy = _drawn((6, 3))
    right = function(x, gamma, beta, dy)
    found = differs({"var": x.var(0, ddof=1)}, right)
    assert "unbiased" in found.slip
    found = differs({"d_x_hat": np.asarray(right.d_x_hat) / gamma}, right)
    assert "missing γ" in found.slip


def test_the_slips_of_batch_renorm_are_recognized():
    x, gamma, beta, dy = _drawn((6, 3))
    mean, var = np.array([1.5, 2.5, 40.0]), np.array([8.0, 12.0, 0.1])  # r and d of the last are clipped
    right = steps.batch_renorm(x, gamma, beta, mean, var, dy)
    s = jax.tree.map(np.asarray, right)
    assert (s.r[2], s.d[2]) == (3, -5)
    deviation = np.sqrt(s.batch_var + 1e-5)
    free = np.array([1, 1, 0])
    d_var = s.d_var + free * 0.5 * (s.d_x_hat * s.x_hat).sum(0) / deviation**2
    d_mu = s.d_mu + free * (gamma * dy).sum(0) / s.running_std
    through_both = s.dx_through_x_hat + d_mu / 6 + d_var * 2 / 6 * (x - s.mu)
    for mine, step, words in (
        ({"r": 1 / s.r}, "r", "inverted"),
        ({"r": np.clip((s.batch_var + 1e-5) / (var + 1e-5), 1 / 3, 3)}, "r", "ratio of the variances"),
        ({"d": (s.mu - mean) / s.running_std}, "d", "not clipped"),
        ({"d": np.clip((s.mu - mean) / deviation, -5, 5)}, "d", "the batch's deviation"),
        ({"y": gamma * s.x_hat * s.r + s.d + beta}, "y", "d without γ"),
        ({"d_gamma": (dy * s.x_hat).sum(0)}, "d_gamma", "is batch norm's"),
        ({"d_x_hat": gamma * dy}, "d_x_hat", "missing r"),
        ({"d_var": d_var}, "d_var", "r is differentiated"),
        ({"d_mu": d_mu}, "d_mu", "d is differentiated"),
        ({"dx": through_both}, "dx", "r and d are differentiated"),
        ({"batch_var": x.var(0, ddof=1)}, "batch_var", "unbiased"),
        ({"dx": s.dx_through_x_hat + s.dx_through_mu}, "dx", "the part through σ²"),
    ):
        found = differs(mine, right)
        assert found.step == step
        assert words in str(found.slip), (step, found.slip)
    assert steps.first_difference(right, right) is None


def _masked():
    x, gamma, beta, dy = _drawn((4, 2, 3, 2))
    where = np.random.default_rng(2).random((4, 2, 3, 1)) < 0.6
    m_bar, v_bar = np.array([3.0, -2.0]), np.array([1.0, 5.0])
    return (x, gamma, beta, dy), {"where": where, "m_bar": m_bar, "v_bar": v_bar}


def test_the_slips_of_masks_and_returned_statistics_are_recognized():
    (x, gamma, beta, dy), options = _masked()
    right = steps.batch_norm(x, gamma, beta, dy, **options)
    s = jax.tree.map(np.asarray, right)
    others, w = (0, 1, 2), np.broadcast_to(options["where"], x.shape)
    only = np.where(w, x, 0)
    everywhere = s.d_mu_total / s.count, s.d_var_total * 2 / s.count * (x - s.mu)
    for mine, step, words in (
        ({"mu": x.mean(others)}, "mu", "the mask is forgotten"),
        ({"mu": only.mean(others)}, "mu", "all 24 elements, must be by those that count"),
        ({"mu": right.mu, "var": x.var(others)}, "var", None),  # about another mean: none of the known ones
        ({"mu": right.mu, "var": ((x - s.mu) ** 2).mean(others)}, "var", "σ² is taken over all"),
        ({"var": s.var * s.count / (s.count - 1)}, "var", "unbiased"),
        ({"d_mu": -s.inv_std * np.where(w, s.d_x_hat, 0).sum(others)}, "d_mu", "outputs use μ as well"),
        ({"d_mu": right.d_mu, "d_mu_total": right.d_mu}, "d_mu_total", "m̄ is forgotten"),
        ({"d_var": right.d_var, "d_var_total": right.d_var}, "d_var_total", "v̄ is forgotten"),
        ({"dx_through_mu": everywhere[0] + 0 * x}, "dx_through_mu", "no part in μ"),
        ({"dx": s.dx_through_x_hat + sum(everywhere)}, "dx", "no part in the statistics"),
        ({"dx": np.where(w, s.dx, 0)}, "dx", "its own output depends on it"),
        ({"dx": s.dx_through_x_hat}, "dx", "two missing terms"),
        ({"d_eps": -s.d_eps}, "d_eps", "sign"),
    ):
        found = differs(mine, right)
        assert found.step == step
        assert words is None or words in str(found.slip), (step, found.slip)
    plain = steps.batch_norm(x, gamma, beta, dy, m_bar=options["m_bar"])
    forgotten = differs({"dx": steps.batch_norm(x, gamma, beta, dy).dx}, plain)
    assert "m̄ is forgotten" in str(forgotten.slip)
    assert steps.first_difference(right, right) is None


def test_the_slips_of_masks_are_recognized_in_the_other_norms():
    (x, gamma, beta, dy), options = _masked()
    where, mean, var = options["where"], np.array([1.5, 2.5]), np.array([8.0, 12.0])
    for right, over in (
        (steps.batch_norm_graph(x, gamma, beta, dy, **options), (0, 1, 2)),
        (steps.batch_renorm(x, gamma, beta, mean, var, dy, **options), (0, 1, 2)),
        (steps.layer_norm(x, None, None, dy, axis=(2, 3), where=where), (2, 3)),
        (steps.instance_norm(x, gamma, beta, dy, where=where), (1, 2)),
        (steps.group_norm(x, gamma, beta, 1, dy, where=where), (1, 2, 3)),
    ):
        s = jax.tree.map(np.asarray, right)
        found = differs({"mu": x.mean(over).reshape(s.mu.shape)}, right)
        assert (found.step, "the mask is forgotten" in str(found.slip)) == ("mu", True), found
        assert "its own output depends on it" in str(differs({"dx": np.where(where, s.dx, 0)}, right).slip)
        assert steps.first_difference(right, right) is None


def test_the_slips_of_the_one_line_are_recognized():
    arguments, options = _masked()
    given: Any
    for given in ({}, options):
        right = steps.batch_norm_closed_form(*arguments, **given)
        s = jax.tree.map(np.asarray, right)
        dy, n = arguments[3], 24 if s.count is None else s.count
        w = 1 if s.where is None else s.where
        for mine, step, words in (
            ({"sum_dy": s.sum_dy / n}, "sum_dy", "a mean where a sum belongs"),
            ({"sum_dy_x_hat": (dy * arguments[0]).sum((0, 1, 2))}, "sum_dy_x_hat", "x for x̂"),
            ({"without_mean": dy - w * s.sum_dy}, "without_mean", "a missing 1/m"),
            ({"without_mean": dy}, "without_mean", "not taken away"),
            ({"without_x_hat": s.without_mean - w * s.x_hat * s.sum_dy_x_hat}, "without_x_hat", "a missing 1/m"),
            ({"without_x_hat": s.without_mean}, "without_x_hat", "proportional to x̂ is not taken away"),
        ):
            found = differs(mine, right)
            assert (found.step, words in str(found.slip)) == (step, True), (step, found.slip)
        assert steps.first_difference(right, right) is None
    bare = steps.batch_norm_closed_form(*arguments)
    assert "factor γ/√(σ² + ε)" in str(differs({"dx": bare.without_x_hat}, bare).slip)
    assert "missing γ" in str(differs({"dx": np.asarray(bare.inv_std) * np.asarray(bare.without_x_hat)}, bare).slip)


def test_the_slips_of_several_devices_are_recognized():
    x, gamma, beta, dy = _drawn((6, 4, 3))
    right = steps.batch_norm_across_devices(x, gamma, beta, dy, shards=(1, 2, 3))
    s = jax.tree.map(np.asarray, right)
    alone = [steps.batch_norm(x[i:j], gamma, beta, dy[i:j]) for i, j in ((0, 1), (1, 3), (3, 6))]
    own_sums = np.concatenate(
        [
            gamma * s.inv_std * (dy[i:j] - (s.sums_dy[k] + s.x_hat[i:j] * s.sums_dy_x_hat[k]) / 24)
            for k, (i, j) in enumerate(((0, 1), (1, 3), (3, 6)))
        ]
    )
    for mine, step, words in (
        ({"mu": np.mean([a.mu for a in alone], 0)}, "mu", "an average of averages"),
        ({"var": np.mean([a.var for a in alone], 0)}, "var", "an average of averages"),
        ({"var": (s.counts * s.variances).sum(0) / 24}, "var", "the means of the devices differ"),
        ({"d_beta": s.sums_dy.mean(0)}, "d_beta", "`psum`, not `pmean`"),
        ({"d_gamma": s.sums_dy_x_hat.mean(0)}, "d_gamma", "`psum`, not `pmean`"),
        ({"dx": own_sums}, "dx", "the sums of one device alone"),
        ({"dx": gamma * s.inv_std * dy}, "dx", "two missing terms"),
    ):
        found = differs(mine, right)
        assert (found.step, words in str(found.slip)) == (step, True), (step, found.slip)


def test_the_slips_of_inference_are_recognized():
    x, gamma, beta, dy = _drawn((6, 4, 3))
    right = steps.batch_norm_inference(x, gamma, beta, np.array([1.0, 2, 3]), np.array([4.0, 5, 6]), dy)
    s = jax.tree.map(np.asarray, right)
    r, train = s.inv_std, s.d_x_hat - s.d_x_hat.mean((0, 1)) - s.x_hat * (s.d_x_hat * s.x_hat).mean((0, 1))
    for mine, step, words in (
        ({"x_hat": (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)}, "x_hat", "the batch's own statistics"),
        ({"inv_std": 1 / np.sqrt(s.var)}, "inv_std", "ε is missing"),
        ({"dx": r * train}, "dx", "the gradient of training"),
        ({"dx": r * dy}, "dx", "a missing γ"),
        ({"d_var": 2 * s.d_var}, "d_var", "a missing 1/2"),
    ):
        found = differs(mine, right)
        assert (found.step, words in str(found.slip)) == (step, True), (step, found.slip)
    assert steps.first_difference(right, right) is None


def test_the_slips_of_running_statistics_are_recognized():
    running = bnderiv.RunningStats(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.5, 2.0]), jnp.int32(0))
    batch = bnderiv.BatchStats(jnp.array([4.0, 5.0, 6.0]), jnp.array([9.0, 8.0, 7.0]), jnp.array([10.0, 10.0, 10.0]))
    right = steps.update_running_stats(running, batch, momentum=0.75)
    mean, var = np.asarray(running.mean), np.asarray(running.var)
    for mine, step, words in (
        ({"new_mean": 0.25 * mean + 0.75 * np.asarray(batch.mean)}, "new_mean", "weighs the new value"),
        ({"new_var": 0.75 * var + 0.25 * np.asarray(batch.var)}, "new_var", "the biased variance"),
        ({"new_var": 0.25 * var + 0.75 * np.asarray(right.stored_var)}, "new_var", "weighs the new value"),
        ({"stored_var": batch.var}, "stored_var", "the biased variance"),
    ):
        found = differs(mine, right)
        assert (found.step, words in str(found.slip)) == (step, True), (step, found.slip)
    biased = steps.update_running_stats(running, batch, momentum=0.75, unbiased=False)
    assert "unbiased=False" in str(differs({"stored_var": right.stored_var}, biased).slip)


def test_the_slips_of_a_residual_are_recognized():
    x, gamma, beta, dy = _drawn((6, 3))
    z = 2 * np.random.default_rng(1).normal(size=x.shape)
    right = steps.batch_norm_relu(x, gamma, beta, dy, residual=z)
    y = np.asarray(right.y)
    for mine, step, words in (
        ({"a": np.maximum(y, 0) + z}, "a", "after the ReLU"),
        ({"total": y + z, "a": np.maximum(y, 0)}, "a", "residual is forgotten"),
        ({"d_y": np.where(y > 0, dy, 0)}, "d_y", "[y > 0] in place of [y + z > 0]"),
        ({"d_y": dy}, "d_y", "no mask"),
        ({"d_y": right.d_y, "d_residual": dy}, "d_residual", "no mask"),
        ({"d_residual": right.dx}, "d_residual", None),
    ):
        found = differs(mine, right)
        assert found.step == step
        assert words is None or words in found.slip, mine.keys()
    assert "residual" not in str(steps.batch_norm_relu(x, gamma, beta, dy))


def _dense(D, H):
    rng = np.random.default_rng(0)
    arguments = [rng.normal(size=shape) for shape in ((5, D), (D, H), (H,), (5, H))]
    return arguments, steps.dense(*arguments)


def _convolution(**options):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 5, 2)), rng.normal(size=(3, 2, 2, 4))
    dy = rng.normal(size=jax.eval_shape(lambda x, w: bnderiv.conv2d(x, w, **options), x, kernel).shape)
    return steps.conv2d(x, kernel, None, dy, **options)


@pytest.mark.parametrize(
    ("planted", "step", "words"),
    [
        (lambda a, s: {"d_kernel": s.d_kernel.T}, "d_kernel", "transpose"),
        (lambda a, s: {"dx": a[3] @ a[1]}, "dx", "missing transpose: δ W in place of δ Wᵀ"),
        (lambda a, s: {"d_kernel": s.d_kernel / 5}, "d_kernel", "divided by N = 5"),
        (lambda a, s: {"d_bias": a[3].mean(0)}, "d_bias", "a mean where a sum belongs"),
        (lambda a, s: {"d_bias": a[3].sum(0, keepdims=True)}, "d_bias", "axes of length 1"),
        (lambda a, s: {"d_bias": a[3].sum(0), "dx": -s.dx}, "dx", "sign"),
        (lambda a, s: {"dx": 0.7 * s.dx}, "dx", "0.7 times"),
    ],
)
def test_slips_of_the_fully_connected_layer(planted, step, words):
    arguments, right = _dense(3, 3)
    found = differs(planted(arguments, right), right)
    assert found.step == step
    assert words in found.slip


def test_a_product_that_fits_where_the_batch_is_as_large_as_the_input():
    arguments, right = _dense(5, 3)
    found = differs({"d_kernel": arguments[0] @ arguments[3]}, right)
    assert (found.step, found.slip) == ("d_kernel", "a missing transpose: a δ in place of aᵀ δ")


def test_a_transpose_of_another_shape():
    _, right = _dense(3, 4)
    found = differs({"z": right.z, "d_kernel": right.d_kernel.T}, right)
    assert (found.step, found.amount, found.place) == ("d_kernel", None, None)
    assert (found.mine, found.right) == ((4, 3), (3, 4))
    assert "transpose" in found.slip
    assert "has shape (4, 3), must have (3, 4)" in repr(found)


@pytest.mark.parametrize("options", [{}, {"strides": 2, "padding": 1}, {"padding": "SAME", "dilation": (1, 2)}])
def test_a_flipped_kernel(options):
    right = _convolution(**options)
    found = differs({"d_kernel": right.d_kernel[::-1, ::-1]}, right)
    assert "flipped kernel" in found.slip
    unturned = jax.lax.conv_general_dilated(
        right.delta_padded,
        right.kernel_turned[::-1, ::-1],
        (1, 1),
        "VALID",
        rhs_dilation=options.get("dilation"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = differs({"d_bias": right.d_bias, "dx": unturned}, right)
    assert found.step == "dx"
    assert "flipped kernel" in found.slip


def test_slips_of_the_activations():
    z, v = (jnp.asarray(np.random.default_rng(i).normal(size=(3, 4))) for i in range(2))
    tanh, sigmoid, softmax = steps.tanh(z, v), steps.sigmoid(z, v), steps.softmax(z, v)
    for right, mine, words in (
        (tanh, {"slope": 1 - jnp.tanh(tanh.a) ** 2}, "1 − tanh(a)²"),
        (tanh, {"dx": v * (1 - tanh.a)}, "missing square"),
        (tanh, {"dx": v}, "missing factor"),
        (sigmoid, {"dx": v * (1 - sigmoid.s**2)}, "1 − s²"),
        (softmax, {"dx": v * softmax.s * (1 - softmax.s)}, "diagonal"),
        (softmax, {"dx": v * softmax.s}, "missing term"),
    ):
        found = differs(mine, right)
        assert words in found.slip


class Mine(NamedTuple):
    mu: np.ndarray
    sigma: np.ndarray


def test_errors_of_first_difference():
    right = steps.batch_norm(*_drawn((6, 3)))
    with pytest.raises(ValueError, match=r"unknown steps \['sigma'\]; BatchNorm has x, .*, mu, var, inv_std"):
        steps.first_difference(Mine(np.zeros(3), np.zeros(3)), right)
    with pytest.raises(TypeError, match=r"mine must be a mapping .* got list"):
        steps.first_difference([right.mu], right)
    with pytest.raises(TypeError, match="mine must hold real numbers, got complex128 for mu"):
        steps.first_difference({"mu": np.asarray(right.mu) * (1 + 1j)}, right)
    with pytest.raises(TypeError, match="steps must be what a function"):
        steps.first_difference(right, right._asdict())
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda mu: steps.first_difference({"mu": mu}, right) is None)(right.mu)


def test_prints_as_a_table():
    right = steps.batch_norm(*_drawn((4, 2, 3, 2)))
    lines = str(right).splitlines()
    assert lines[0] == "BatchNorm"
    assert lines[1].split() == ["step", "symbol", "shape", "norm", "label", "values,", "up", "to", "12"]
    assert [line.split()[0] for line in lines[2:]] == [n for n in right._fields if getattr(right, n) is not None]
    norm = f"{np.linalg.norm(right.dx):.6g}"
    assert re.fullmatch(rf"dx +∂J/∂x +\(4, 2, 3, 2\) +{norm} +\(N11\)", lines[-1])


def test_prints_the_values_of_few_elements():
    x = jnp.array([[1.0], [3.0], [3.0], [1.0]])
    lines = str(steps.batch_norm(x, jnp.array([2.0]), jnp.array([1.0]), x / 7, eps=0.0)).splitlines()
    shown = {line.split()[0]: line for line in lines}
    assert re.fullmatch(r"x_hat +x̂ +\(4, 1\) +2 +\(N3\) +\[\[-1\], \[1\], \[1\], \[-1\]\]", shown["x_hat"])
    assert re.fullmatch(r"dy .* input +\[\[0\.1429\], \[0\.4286\], \[0\.4286\], \[0\.1429\]\]", shown["dy"])
    assert re.fullmatch(r"d_eps .* \(N8\) +\S+", shown["d_eps"])  # a number of no axis has no brackets
    thirteen, twelve = (str(steps.tanh(jnp.ones(n), jnp.ones(n))).splitlines()[2] for n in (13, 12))
    assert twelve.endswith("  [" + ", ".join(12 * "1") + "]")
    assert thirteen.endswith("input")


def test_prints_without_numbers():
    seen = []

    @jax.jit
    def run(x, gamma, beta, dy):
        s = steps.batch_norm(x, gamma, beta, dy)
        seen.append(str(s))
        return s

    arguments = _drawn((6, 3))
    run(*arguments)
    assert "traced" in seen[0]
    assert "(6, 3)" in seen[0]
    assert "(6, 3)" in str(jax.eval_shape(run, *arguments))
    assert "BatchNorm" in str(jax.tree.map(lambda _: None, run(*arguments)))


def _results():
    image, z = jnp.ones((2, 4, 4, 2)), jnp.ones((2, 3))
    ones = jnp.ones(3)
    yield steps.dense, (z, jnp.ones((3, 3)), ones, z)
    yield steps.flatten, (z, z)
    yield steps.conv, (image[0], jnp.ones((3, 2, 1)), None, jnp.ones((4, 2, 1)))
    yield steps.conv2d, (image, jnp.ones((3, 3, 2, 1)), None, jnp.ones((2, 2, 2, 1)))
    yield lambda x, dy: steps.avg_pool(x, 2, dy), (image, image[:, ::2, ::2])
    yield lambda x, dy: steps.max_pool(x, 2, dy), (image, image[:, ::2, ::2])
    norms = steps.batch_norm, steps.batch_norm_relu, steps.batch_norm_graph, steps.batch_norm_closed_form
    for batch_norm in (*norms, functools.partial(steps.batch_norm_across_devices, shards=(1, 1))):
        yield batch_norm, (z, ones, ones, z)
    yield functools.partial(steps.batch_norm, where=jnp.array([[True], [False]]), v_bar=ones), (z, ones, ones, z)
    yield steps.update_running_stats, (bnderiv.init_running_stats(3, jnp.float64), bnderiv.BatchStats(ones, ones, ones))
    yield steps.batch_norm_inference, (z, ones, ones, ones, ones, z)
    yield steps.layer_norm, (z, ones, ones, z)
    yield lambda x, dy: steps.group_norm(x, ones[:2], ones[:2], 2, dy), (image, image)
    yield steps.instance_norm, (image, ones[:2], ones[:2], image)
    yield steps.rms_norm, (z, ones, z)
    yield steps.batch_renorm, (z, ones, ones, ones, ones, z)
    for activation in (steps.relu, steps.tanh, steps.sigmoid, steps.softmax, steps.log_softmax):
        yield activation, (z, z)
    yield steps.softmax_cross_entropy, (z, z)
    yield steps.softmax_cross_entropy_with_integer_labels, (z, jnp.array([0, 1]))
    yield steps.squared_error, (z, z)


def test_every_field_is_documented_and_no_rule_is_attached():
    names = set()
    for function, arguments in _results():
        jaxpr = jax.make_jaxpr(function)(*arguments)
        assert not re.search("custom_(vjp|jvp)", str(jaxpr))
        result = jax.eval_shape(function, *arguments)
        cls = type(result)
        names.add(cls.__name__)
        has = [name for name in cls._fields if getattr(result, name) is not None]
        assert [line.split()[0] for line in str(result).splitlines()[2:]] == has
        for name in cls._fields:
            assert re.fullmatch(r"(.+, shape .+ .*|option): .+\.", getattr(cls, name).__doc__), name
    assert len(names) == 25  # one for each of the functions, except that `conv` and `conv2d` share theirs


def test_a_step_function_for_every_layer_and_loss():
    not_derivations = {"init_running_stats", "update_running_stats", "BatchStats", "RunningStats"}
    assert set(bnderiv.reference.__all__) - not_derivations <= set(steps.__all__)
    assert all(callable(getattr(steps, name)) for name in steps.__all__)


def _ways():
    """A function of x alone for every layer, its options neither the defaults nor all numbers, and an x."""
    image, z, ones = jnp.arange(64.0).reshape(2, 2, 4, 4), jnp.arange(6.0).reshape(2, 3), jnp.ones(3)
    dy = jnp.ones((2, 2, 4, 4))
    pooled = {"strides": 1, "padding": ((0, 1), (1, 0)), "channel_axis": 1}
    yield lambda x: steps.dense(x, jnp.ones((3, 3)), None, z), z
    yield lambda x: steps.conv2d(x, jnp.ones((3, 3, 2, 2)), None, dy, padding="SAME", channel_axis=1), image
    yield lambda x: steps.conv(x, jnp.ones((3, 4, 4)), None, dy[0], padding=((0, 2),), channel_axis=1), image[0]
    yield lambda x: steps.avg_pool(x, 2, dy, count_include_pad=False, **pooled), image
    yield lambda x: steps.max_pool(x, 2, dy, **pooled), image
    for batch_norm in (steps.batch_norm, steps.batch_norm_relu, steps.batch_norm_graph):
        yield lambda x, batch_norm=batch_norm: batch_norm(x, ones[:2], ones[:2], dy, channel_axis=1), image
    masked: Any = {"where": jnp.array([[True], [False]]), "m_bar": ones}
    yield lambda x: steps.batch_norm_closed_form(x, ones, ones, z, **masked), z
    yield lambda x: steps.batch_norm_inference(x, ones, ones, ones, ones, z, eps=0), z
    yield lambda x: steps.layer_norm(x, jnp.ones((2, 3)), jnp.ones((2, 3)), z, axis=(0, 1), eps=0.1, where=z > 1), z
    yield lambda x: steps.group_norm(x, ones[:2], ones[:2], 1, dy, channel_axis=1, where=image > 3), image
    yield lambda x: steps.instance_norm(x, ones[:2], ones[:2], dy, channel_axis=1), image
    yield lambda x: steps.rms_norm(x, ones[:2], z, axis=0), z
    yield lambda x: steps.batch_renorm(x, ones, ones, ones, ones, z, r_max=2, eps=0), z
    yield lambda x: steps.softmax(x, z, axis=0), z
    yield lambda x: steps.log_softmax(x, z, axis=0), z
    yield lambda x: steps.squared_error(x, z), z
    yield lambda x: steps.softmax_cross_entropy_with_integer_labels(x, jnp.array([0, 1])), z
    options = {"label_smoothing": 0.1, "class_weights": ones, "where": jnp.array([True, True, False])[None]}
    yield lambda x: steps.softmax_cross_entropy_with_integer_labels(x, jnp.array([0, 1]), **options), z
    yield lambda x: steps.softmax_cross_entropy(x, z, **options), z


@pytest.mark.exhaustive
def test_inputs_and_options_come_along_under_every_transform():
    for function, x in _ways():
        s = function(x)
        first, *_, last = (name for name in s._fields if getattr(s, name) is not None)
        options = [name for name in s._fields if getattr(type(s), name).__doc__.startswith("option")]
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(s))
        compiled, mapped, slopes = (
            fast_jit(function)(x),
            fast_jit(jax.vmap(function))(jnp.stack([x, 2 * x])),
            jax.eval_shape(jax.jacfwd(function), x),
        )
        for other in (compiled, mapped, slopes, jax.tree.map(np.asarray, s)):
            assert type(other) is type(s)
            assert [getattr(other, name) for name in options] == [getattr(s, name) for name in options]
        np.testing.assert_array_equal(getattr(compiled, first), x)
        np.testing.assert_array_equal(getattr(mapped, first)[1], 2 * x)
        assert steps.first_difference(s, compiled) is None
        assert steps.first_difference(pickle.loads(pickle.dumps(s)), s) is None
        # In a batch of them a difference is found as well; the known slips are those of one layer alone.
        wrong = np.asarray(getattr(mapped, last)) + 1
        assert differs({last: wrong}, mapped).step == last


def test_the_inputs_are_the_first_rows():
    x = jnp.ones((1, 4, 4, 1))
    lines = str(steps.avg_pool(x, 2, jnp.ones((1, 2, 2, 1)), padding=((0, 1), (0, 0)))).splitlines()
    assert re.fullmatch(r"x +a +\(1, 4, 4, 1\) +4 +input", lines[2])
    assert re.fullmatch(r"padding +\(\(0, 1\), \(0, 0\)\) +option", lines[6])
    assert re.fullmatch(r"channel_axis +-1 +option", lines[9])
    assert re.search(r"\nbias +b", str(steps.dense(x, x[0, :1, 0], jnp.ones(1), x)))
    assert not re.search(r"\nbias +b", str(steps.dense(x, x[0, :1, 0], None, x)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_another_input(dtype):
    """Compared where they are given, and first: all that follows is for another x."""
    x, gamma, beta, dy = _drawn((6, 3), dtype)
    right = steps.batch_norm(1e4 + x, gamma, beta, dy)
    found = differs({"dx": np.zeros((6, 3)), "x": 1e4 + 1.1 * x}, right)
    assert (found.step, found.slip) == ("x", "another input: all that follows is for another x")
    assert differs({"gamma": gamma[:2]}, right).slip == "another input: all that follows is for another gamma"
    assert steps.first_difference({"x": 1e4 + x, "gamma": gamma, "dy": dy, "eps": 1e-5}, right) is None
    assert differs({"eps": 1e-3}, right).step == "eps"


def test_another_option():
    right = steps.avg_pool(jnp.ones((1, 5, 5, 1)), 3, jnp.ones((1, 2, 2, 1)), strides=2)
    assert steps.first_difference({"window": 3, "strides": (2, 2), "padding": 0, "channel_axis": -1}, right) is None
    found = differs({"window": (3, 2), "z": right.z}, right)
    assert (found.step, found.mine, found.right) == ("window", (3, 2), (3, 3))
    assert repr(found).startswith("window is (3, 2), here (3, 3)\n  likely: another option")
    assert differs({"padding": "SAME"}, right).step == "padding"
    assert differs({"count_include_pad": False}, right).step == "count_include_pad"


ROOMS = ("activation", "convolution", "linear", "loss", "models", "normalization", "pooling")


FIRST_OF_ALL = f"""
import importlib, sys
import bnderiv
before = set(sys.modules)
for room in {ROOMS}:
    importlib.import_module(f"bnderiv.{{room}}.steps")
    added = set(sys.modules) - before
    assert "bnderiv.steps" in added, added
    for name in added:
        package, _, module = name.rpartition(".")
        if package in before:
            vars(sys.modules[package]).pop(module, None)
        del sys.modules[name]
"""


def test_every_room_can_be_imported_first():
    """The rooms import the table of `bnderiv.steps`, which has the rooms' functions: each as if it were the first."""
    subprocess.run([sys.executable, "-W", "error", "-c", FIRST_OF_ALL], check=True, cwd=ROOT)


def test_the_door():
    everything = {}
    exec("from bnderiv.steps import *", everything)
    assert dir(steps) == sorted(steps.__all__)
    for name in steps.__all__:
        assert everything[name] is getattr(steps, name)
        assert pickle.loads(pickle.dumps(getattr(steps, name))) is getattr(steps, name)
        assert getattr(steps, name).__name__ == name
        assert name in inspect.getmodule(getattr(steps, name)).__dict__  # where it is defined, help() finds it
    with pytest.raises(AttributeError, match="no attribute 'trapezoid'"):
        steps.trapezoid  # noqa: B018
