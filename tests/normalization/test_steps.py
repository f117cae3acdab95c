"""The steps of batch norm: against the layer, against the derivation's numbers, every Jacobian against JAX's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv import steps
from tests.contract import near
from tests.normalization.cases import CASES
from tests.stepwise import equals_its_layer

pytestmark = pytest.mark.slow

PARTS = ("dx_through_x_hat", "dx_through_mu", "dx_through_var")
GRADIENTS = ("dx", "d_gamma", "d_beta", "d_mu", "d_var")


def _draw(*shape, seed=0):
    rng = np.random.default_rng(seed)
    C = shape[-1]
    drawn = 2 + 3 * rng.normal(size=shape), 1 + rng.normal(size=C), rng.normal(size=C), rng.normal(size=shape)
    return [jnp.asarray(a) for a in drawn]


@pytest.mark.few(0, 6)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_layer(case):
    gradients = ("dx", "d_gamma", "d_beta", "d_residual") if "residual" in case.label else GRADIENTS
    equals_its_layer(case, "a" if case.layer == "batch_norm_relu" else "y", gradients)


def test_numbers_of_the_derivation():
    """A.10, with ε = 5/4."""
    x = jnp.array([1.0, 3.0, 3.0, 1.0]).reshape(2, 1, 2, 1)
    delta = jnp.array([1.0, 2.0, 6.0, 3.0]).reshape(2, 1, 2, 1)
    s = steps.batch_norm(x, jnp.array([2.0]), jnp.array([1.0]), delta, eps=1.25)
    expected = {
        "x": [1, 3, 3, 1],
        "gamma": [2],
        "beta": [1],
        "dy": [1, 2, 6, 3],
        "eps": [1.25],
        "channel_axis": [-1],
        "mu": [2],
        "var": [1],
        "inv_std": [2 / 3],
        "x_hat": [-2 / 3, 2 / 3, 2 / 3, -2 / 3],
        "y": [-1 / 3, 7 / 3, 7 / 3, -1 / 3],
        "d_gamma": [8 / 3],
        "d_beta": [12],
        "d_x_hat": [2, 4, 12, 6],
        "d_var": [-32 / 27],
        "d_eps": [-32 / 27],
        "d_mu": [-16],
        "dx_through_x_hat": [4 / 3, 8 / 3, 8, 4],
        "dx_through_mu": [-4, -4, -4, -4],
        "dx_through_var": [16 / 27, -16 / 27, -16 / 27, 16 / 27],
        "dx": [-56 / 27, -52 / 27, 92 / 27, 16 / 27],
    }
    assert list(expected) == [name for name in s._fields if getattr(s, name) is not None]
    for name, value in expected.items():
        np.testing.assert_allclose(np.ravel(getattr(s, name)), value, rtol=1e-13, err_msg=name)


def test_the_closed_form_in_the_numbers_of_the_derivation():
    """A.10, with ε = 0, and A.11."""
    x, delta = jnp.array([[1.0], [3.0], [3.0], [1.0]]), jnp.array([[1.0], [2.0], [6.0], [3.0]])
    s = steps.batch_norm_closed_form(x, jnp.array([2.0]), jnp.array([1.0]), delta, eps=0.0)
    assert (s.sum_dy.tolist(), s.sum_dy_x_hat.tolist()) == ([12], [4])
    assert s.without_mean.ravel().tolist() == [-2, -1, 3, 0]
    assert s.without_x_hat.ravel().tolist() == [-1, -2, 2, 1]
    assert s.dx.ravel().tolist() == [-2, -4, 4, 2]
    more = steps.batch_norm_closed_form(
        x, jnp.array([2.0]), jnp.array([1.0]), delta, eps=0.0, m_bar=jnp.ones(1), v_bar=jnp.ones(1)
    )
    assert more.from_statistics is not None
    assert more.from_statistics.ravel().tolist() == [-0.25, 0.75, 0.75, -0.25]
    np.testing.assert_array_equal(more.dx, s.dx + more.from_statistics)


def _options_of_every_kind():
    rng = np.random.default_rng(5)
    statistics = {"m_bar": jnp.asarray(rng.normal(size=3)), "v_bar": jnp.asarray(rng.normal(size=3))}
    return {"eps": 0.1, "where": jnp.asarray(rng.random((6, 4, 1)) < 0.6), **statistics}


def test_the_closed_form_is_the_sum_of_the_three_parts():
    arguments, options = _draw(6, 4, 3), _options_of_every_kind()
    parts, closed = steps.batch_norm(*arguments, **options), steps.batch_norm_closed_form(*arguments, **options)
    common = [name for name in closed._fields if name in parts._fields]
    assert {"count", "mu", "x_hat", "d_gamma", "dx", "v_bar"} < set(common)
    near([getattr(closed, n) for n in common], [getattr(parts, n) for n in common], 1e-12)


def test_the_gradient_of_epsilon():
    x, gamma, beta, dy = _draw(6, 4, 3)
    where, stats = _options_of_every_kind()["where"], bnderiv.BatchStats(*jnp.ones((3, 3)))

    def layer(eps):
        return bnderiv.batch_norm(x, gamma, beta, eps=eps, where=where)

    (right,) = jax.vjp(layer, jnp.asarray(0.1))[1]((dy, stats))  # the returned variance has no ε in it
    for function in (steps.batch_norm, steps.batch_norm_graph):
        near(function(x, gamma, beta, dy, eps=0.1, where=where, v_bar=stats.var).d_eps, right, 1e-12)


@pytest.mark.few(0, 2)
@pytest.mark.parametrize("norm", ["batch_norm_inference", "layer_norm", "group_norm", "rms_norm"])
def test_the_gradient_of_epsilon_of_another_norm(norm):
    x, gamma, beta, dy = _draw(6, 4, 4)
    arguments = [x, gamma] if norm == "rms_norm" else [x, gamma, beta]
    arguments += {"group_norm": [2], "batch_norm_inference": [jnp.zeros(4), jnp.ones(4)]}.get(norm, [])
    found = getattr(steps, norm)(*arguments, dy, eps=0.1).d_eps
    plain = getattr(bnderiv.reference, norm)
    near(found, jax.grad(lambda e: (dy * plain(*arguments, eps=e)).sum())(jnp.asarray(0.1)), 1e-12)


def _renorm(x, gamma, beta, dy, **options):
    return steps.batch_renorm(x, gamma, beta, jnp.full(3, 1.5), jnp.full(3, 8.0), dy, **options)


def _grouped(x, gamma, beta, dy, **options):
    return steps.group_norm(x, gamma, beta, 3, dy, **options)


@pytest.mark.parametrize(
    "function",
    [steps.batch_norm, steps.batch_norm_closed_form, steps.batch_norm_graph, _renorm, steps.layer_norm, _grouped],
)
def test_nan_under_a_mask_stays_there(function):
    x, gamma, beta, dy = _draw(6, 4, 3)
    where = _options_of_every_kind()["where"]
    holes, dy = jnp.where(where, x, jnp.nan), jnp.where(where, dy, 0)
    with_holes, without = (function(a, gamma, beta, dy, where=where) for a in (holes, x))
    for name in ("mu", "d_gamma", "d_beta", "dx"):
        near(getattr(with_holes, name), getattr(without, name), 1e-12)


def test_nan_under_a_mask_on_several_devices():
    x, gamma, beta, dy = _draw(6, 4, 3)
    where = _options_of_every_kind()["where"]
    holes, dy = jnp.where(where, x, jnp.nan), jnp.where(where, dy, 0)
    s = steps.batch_norm_across_devices(holes, gamma, beta, dy, where=where, shards=(2, 4))
    near(s.d_gamma, steps.batch_norm(x, gamma, beta, dy, where=where).d_gamma, 1e-12)


@pytest.mark.parametrize(("axis", "shards"), [(-1, (3, 3)), (1, (1, 2, 3)), (-1, (6,))])
def test_devices_give_what_one_gives(axis, shards):
    x, gamma, beta, dy = _draw(6, 4, 3)
    gamma, beta = (jnp.resize(a, x.shape[axis]) for a in (gamma, beta))
    where = jnp.asarray(np.random.default_rng(5).random((6, 4, 3)) < 0.5).at[0].set(False)  # one shard has none at all
    for mask in (None, where):
        one = steps.batch_norm(x, gamma, beta, dy, channel_axis=axis, where=mask)
        many = steps.batch_norm_across_devices(x, gamma, beta, dy, channel_axis=axis, where=mask, shards=shards)
        for name in ("mu", "var", "y", "d_gamma", "d_beta", "dx"):
            near(getattr(many, name), getattr(one, name), 1e-12)
        assert many.counts.shape == many.sums_dy.shape == (len(shards), x.shape[axis])
        near(many.sums_dy.sum(0), one.d_beta, 1e-12)


def test_the_numbers_of_two_devices():
    """The table of C.5."""
    s = steps.batch_norm_across_devices(
        jnp.array([[0.0], [2.0], [4.0]]), jnp.ones(1), jnp.zeros(1), jnp.ones((3, 1)), shards=(1, 2)
    )
    found = s.counts, s.means, s.variances, s.count, s.mu
    assert [a.ravel().tolist() for a in found] == [[1, 2], [0, 3], [0, 1], [3], [2]]
    np.testing.assert_allclose(s.var, 8 / 3, rtol=1e-15)


@pytest.mark.parametrize("unbiased", [True, False])
def test_running_statistics_are_the_layers(unbiased):
    running = bnderiv.RunningStats(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.5, 2.0]), jnp.int32(7))
    batch = bnderiv.BatchStats(jnp.array([4.0, 5.0, 6.0]), jnp.array([9.0, 8.0, 0.0]), jnp.array([10.0, 0.0, 1.0]))
    s = steps.update_running_stats(running, batch, momentum=0.75, unbiased=unbiased)
    new = bnderiv.update_running_stats(running, batch, momentum=0.75, unbiased=unbiased)
    near((s.new_mean, s.new_var), (new.mean, new.var), 1e-14)
    assert int(s.new_batches) == int(new.count) == 8
    assert (s.correction is None) != unbiased
    for change, error, words in (
        ({"running": tuple(running)}, TypeError, "running must be a RunningStats"),
        ({"batch": running}, TypeError, "batch must be a BatchStats"),
        ({"batch": batch._replace(mean=jnp.ones(2))}, ValueError, r"batch.mean must have shape \(3,\)"),
        ({"momentum": jnp.ones(3)}, ValueError, "momentum must have shape"),
    ):
        arguments: Any = {"running": running, "batch": batch} | change
        with pytest.raises(error, match=words):
            steps.update_running_stats(**arguments)


def test_what_arrives_is_the_gradient_by_each_intermediate():
    """Each ∂J/∂(step) against JAX: the loss as a function of that intermediate, its own inputs held fixed."""
    x, gamma, beta, dy = _draw(6, 3)
    s = steps.batch_norm(x, gamma, beta, dy, eps=0.1)

    def rows(v):
        return jnp.broadcast_to(v, x.shape)

    def after_x_hat(x_hat):
        return (dy * (rows(gamma) * x_hat + rows(beta))).sum()

    def after_var(x, mu, var):
        return after_x_hat((x - rows(mu)) / jnp.sqrt(rows(var) + 0.1))

    def after_mu(x, mu):
        return after_var(x, mu, ((x - rows(mu)) ** 2).mean(0))

    near(s.d_x_hat, jax.grad(after_x_hat)(s.x_hat), 1e-13)
    near(s.d_var, jax.grad(after_var, 2)(x, s.mu, s.var), 1e-13)
    near(s.d_mu, jax.grad(after_mu, 1)(x, s.mu), 1e-13)
    near(s.dx_through_x_hat, jax.grad(after_var, 0)(x, s.mu, s.var), 1e-13)
    near(s.dx_through_var, jax.vjp(lambda x: ((x - rows(s.mu)) ** 2).mean(0), x)[1](s.d_var)[0], 1e-13)
    near(s.dx_through_mu, jax.vjp(lambda x: x.mean(0), x)[1](s.d_mu)[0], 1e-13)


def test_centering_jacobian():
    h = jnp.asarray(np.random.default_rng(0).normal(size=5))
    near(steps.centering_jacobian(5), jax.jacrev(lambda h: h - h.mean(keepdims=True))(h), 1e-14)
    for n, error in ((0, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="n must"):
            steps.centering_jacobian(n)  # pyright: ignore[reportArgumentType]


def test_variance_jacobian():
    h = _draw(5, 3)[0]
    whole = jax.jacrev(lambda h: ((h - h.mean(0, keepdims=True)) ** 2).mean(0))(h)  # (H, N, H) by [l, i, j]
    assert steps.variance_jacobian(h).shape == h.shape
    near(jnp.einsum("il,lj->lij", steps.variance_jacobian(h), jnp.eye(3)), whole, 1e-14)
    with pytest.raises(ValueError, match=r"h must have rank 2"):
        steps.variance_jacobian(h[0])


def test_normalization_jacobian_and_its_contraction():
    h, gamma, beta, dy = _draw(5, 3)
    eps = 0.1

    def normalize(h):
        c = h - h.mean(0, keepdims=True)
        return c / jnp.sqrt((c**2).mean(0, keepdims=True) + eps)

    blocks = steps.normalization_jacobian(h, eps)
    assert blocks.shape == (3, 5, 5)
    near(jnp.einsum("lki,lj->klij", blocks, jnp.eye(3)), jax.jacrev(normalize)(h), 1e-13)
    # Σ_kl δ_kl γ_l ∂ĥ_kl/∂h_il is the closed form (N18).
    contracted = jnp.einsum("kl,l,lki->il", dy, gamma, blocks)
    near(contracted, steps.batch_norm(h, gamma, beta, dy, eps=eps).dx, 1e-13)
    near(contracted, jax.vjp(lambda h: bnderiv.batch_norm(h, gamma, beta, eps=eps)[0], h)[1](dy)[0], 1e-12)


@pytest.mark.parametrize(
    ("shape", "axis", "options"),
    [((6, 3), -1, False), ((3, 2, 4, 2), -1, False), ((3, 2, 4, 2), 0, False), ((6, 4, 3), -1, True)],
)
def test_the_graph_ends_where_the_closed_form_does(shape, axis, options):
    """With a mask and a loss on the statistics as well: each common step."""
    x, gamma, beta, dy = _draw(*shape)
    gamma, beta = (jnp.resize(a, x.shape[axis]) for a in (gamma, beta))
    more: Any = _options_of_every_kind() if options else {}
    graph = steps.batch_norm_graph(x, gamma, beta, dy, channel_axis=axis, **more)
    closed = steps.batch_norm(x, gamma, beta, dy, channel_axis=axis, **more)
    common = [name for name in graph._fields if name in closed._fields]
    assert len(common) == 25
    assert all((getattr(graph, n) is None) == (getattr(closed, n) is None) for n in common)
    common = [name for name in common if getattr(graph, name) is not None]
    near([getattr(graph, n) for n in common], [getattr(closed, n) for n in common], 1e-12)
    near(graph.d_c, graph.d_c_through_x_hat + graph.d_c_through_q, 0)


def test_differentiable_and_mapped():
    """The steps are plain JAX: the gradient of the gradient is the layer's, and vmap runs over them."""
    x, gamma, beta, dy = _draw(6, 3)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))

    def by_steps(x, gamma):
        return (weights * steps.batch_norm(x, gamma, beta, dy).dx).sum()

    def by_layer(x, gamma):
        return (weights * jax.vjp(lambda x: bnderiv.batch_norm(x, gamma, beta)[0], x)[1](dy)[0]).sum()

    near(jax.grad(by_steps, (0, 1))(x, gamma), jax.grad(by_layer, (0, 1))(x, gamma), 1e-11)
    mapped = jax.vmap(lambda x: steps.batch_norm(x, gamma, beta, dy))(jnp.stack([x, 2 * x]))
    near(mapped.dx[1], steps.batch_norm(2 * x, gamma, beta, dy).dx, 1e-13)


@pytest.mark.parametrize(
    ("function", "change", "error", "words"),
    [
        (steps.batch_norm, {"dy": np.ones((3, 6))}, ValueError, r"dy must have shape \(6, 3\)"),
        (steps.batch_norm, {"gamma": np.ones(6)}, ValueError, r"gamma must have shape \(3,\)"),
        (steps.batch_norm_graph, {"x": np.ones((6, 3), jnp.int32)}, TypeError, "x must have a floating dtype"),
        (steps.batch_norm_relu, {"residual": np.ones((6, 1))}, ValueError, r"residual must have shape \(6, 3\)"),
        (steps.batch_norm_relu, {"channel_axis": 2}, ValueError, "channel_axis must lie"),
        (steps.batch_norm, {"x": np.ones((0, 3))}, ValueError, "x must not be empty"),
        (steps.batch_norm, {"x": np.ones(3)}, ValueError, "x must have rank 2 or more"),
        (steps.batch_norm, {"where": np.ones((6, 1))}, TypeError, "where must be boolean"),
        (steps.batch_norm_relu, {"where": np.ones((5, 1), bool)}, ValueError, "where must broadcast"),
        (steps.batch_norm_graph, {"m_bar": np.ones(6)}, ValueError, r"m_bar must have shape \(3,\)"),
        (steps.batch_norm_graph, {"where": np.ones((6, 1))}, TypeError, "where must be boolean"),
        (steps.layer_norm, {"where": np.ones((5, 1), bool)}, ValueError, "where must broadcast"),
        (_grouped, {"where": np.ones((6, 1))}, TypeError, "where must be boolean"),
        (steps.batch_norm_closed_form, {"v_bar": np.ones(6)}, ValueError, r"v_bar must have shape \(3,\)"),
        (steps.batch_norm_across_devices, {"shards": (2, 3)}, ValueError, "shards must sum to the 6 examples"),
        (steps.batch_norm_across_devices, {"shards": (6, 0)}, ValueError, r"shards\[1\] must be"),
        (
            steps.batch_norm_across_devices,
            {"shards": (6,), "channel_axis": 0, "gamma": np.ones(6), "beta": np.ones(6)},
            ValueError,
            "channel_axis must not be the first",
        ),
    ],
)
def test_errors(function, change, error, words):
    arguments = dict(zip(("x", "gamma", "beta", "dy"), _draw(6, 3), strict=True)) | change
    with pytest.raises(error, match=words):
        function(**arguments)


def test_half_precision_is_widened():
    x, gamma, beta, dy = (a.astype(jnp.bfloat16) for a in _draw(6, 3))
    assert {a.dtype for a in jax.tree.leaves(steps.batch_norm(x, gamma, beta, dy))} == {jnp.dtype("float32")}
