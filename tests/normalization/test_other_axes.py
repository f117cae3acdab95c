"""Layer, group, instance and RMS norm: precision against long double, masks, what they are of each other, errors."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv.normalization.groups import Groups
from bnderiv.normalization.rms_norm import by_root_mean_square
from bnderiv.normalization.units import Epsilon
from tests.case import random_like
from tests.compiling import fast_jit
from tests.contract import near
from tests.normalization import truth

OURS: Any = bnderiv  # whose annotations say jax.Array
EPS = np.float64(np.float32(1e-5))

# Each norm, a shape, the view of it whose axes the statistics are over, these axes, and those γ and β are shared over.
NORMS = {
    "layer_norm": (bnderiv.layer_norm, (40, 768), (40, 768), (1,), (0,)),
    "layer_norm-two-axes": (
        lambda x, g, b: bnderiv.layer_norm(x, jnp.tile(g, (12, 1)), jnp.tile(b, (12, 1)), axis=(1, 2)),
        (6, 12, 16),
        (6, 12, 16),
        (1, 2),
        (0,),
    ),
    "group_norm": (partial(bnderiv.group_norm, groups=4), (4, 14, 14, 16), (4, 14, 14, 4, 4), (1, 2, 4), (0, 1, 2)),
    "instance_norm": (bnderiv.instance_norm, (4, 14, 14, 16), (4, 14, 14, 16), (1, 2), (0, 1, 2)),
    "rms_norm": (lambda x, g, b: bnderiv.rms_norm(x, g, eps=1e-5), (40, 768), (40, 768), (1,), (0,)),
}
every_norm = pytest.mark.parametrize("name", NORMS)


def _draw(name, seed=0):
    rng = np.random.default_rng(seed)
    shape = NORMS[name][1]
    return rng.standard_normal(shape), 1 + rng.standard_normal(shape[-1]), rng.standard_normal(shape[-1])


@cache
def _both_ways(name, jit=fast_jit):
    """A program of y and the gradients, from x, γ, β and δ."""

    def run(x, gamma, beta, delta):
        y, pull_back = jax.vjp(NORMS[name][0], x, gamma, beta)
        return y, *pull_back(delta)

    return jit(run)


def _errors(name, x, dtype: Any = jnp.float32):
    """Of y and dx, then of dγ."""
    _, shape, view, over, rest = NORMS[name]
    _, gamma, beta = _draw(name, 1)
    x, gamma, beta = jnp.asarray(x, dtype), jnp.asarray(gamma, jnp.float32), jnp.asarray(beta, jnp.float32)
    delta = jnp.asarray(np.random.default_rng(2).standard_normal(shape), dtype)
    y, dx, d_gamma, _ = _both_ways(name, jax.jit)(x, gamma, beta, delta)  # as users compile it
    own = tuple(1 if i in rest else n for i, n in enumerate(view))
    if name == "layer_norm-two-axes":  # γ along the second of the two, and d_gamma summed over the first
        own, rest = (1, 1, shape[-1]), (0, 1)
    rms = name == "rms_norm"
    expected = truth.over_other_axes(
        np.reshape(x, view), np.reshape(gamma, own), 0 if rms else np.reshape(beta, own), np.reshape(delta, view), over,
        rest, EPS, centred=not rms,
    )  # fmt: skip
    expected = [np.reshape(e, a.shape) for e, a in zip(expected, (y, dx, d_gamma), strict=False)]
    return [truth.relative_error(a, e) for a, e in zip((y, dx, d_gamma), expected, strict=True)]


@pytest.mark.few(1, 6)
@pytest.mark.as_users_compile
@every_norm
@pytest.mark.parametrize(
    ("mean", "deviation"), [(0, 1), (1e2, 1), (1e4, 1), (0, 1e20), (3e30, 1e30), (0, 1e-3), (1e2, 1e-2)]
)
def test_right_at_any_mean_and_scale(name, mean, deviation):
    y, dx, d_gamma = _errors(name, mean + deviation * _draw(name)[0])
    assert max(y, dx) < 2e-7
    assert d_gamma < 5e-7


@pytest.mark.parametrize(("scale", "size"), [(1e-22, 1e-12), (1, 1), (1e22, 1e20)])
@pytest.mark.parametrize(("norm", "centred"), [(bnderiv.layer_norm, True), (bnderiv.rms_norm, False)])
def test_the_gradient_of_epsilon_at_any_scale(norm, centred, scale, size):
    """-½ Σ r³ Σ δ (x − μ), which is a float32 where r² is none."""
    x, delta = (a * np.random.default_rng(3).standard_normal((4, 16)).astype(np.float32) for a in (scale, size))
    x, delta = jnp.asarray(x, jnp.float32), jnp.asarray(delta, jnp.float32)
    others = (None, None) if centred else (None,)
    _, pull_back = jax.vjp(lambda eps: norm(x, *others, eps=eps), jnp.float32(0))
    c, delta = (np.asarray(a, np.longdouble) for a in (x, delta))
    c = c - c.mean(1, keepdims=True) if centred else c
    r = (c**2).mean(1, keepdims=True) ** -0.5
    np.testing.assert_allclose(pull_back(delta.astype(np.float32))[0], float((-0.5 * r**3 * delta * c).sum()), 1e-6)


@pytest.mark.few(1)
@pytest.mark.as_users_compile
@every_norm
def test_a_mean_of_a_million(name):
    assert max(_errors(name, 1e6 + _draw(name)[0])) < 1e-6


@pytest.mark.few(0, 5)
@pytest.mark.slow
@pytest.mark.as_users_compile
@every_norm
@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_half_precision(name, dtype):
    """The rounding of the results, and nothing else."""
    y, dx, _ = _errors(name, 1e3 + 100 * _draw(name)[0], dtype)
    assert max(y, dx) < float(jnp.finfo(dtype).eps) / 2


@pytest.mark.few(1)
@pytest.mark.as_users_compile
@every_norm
def test_rows_of_any_magnitude_beside_each_other(name):
    """Each is right by itself: the first of 1e30, the second of 1e-30, the third all zero, the rest as usual."""
    x, gamma, beta = (jnp.asarray(a, jnp.float32) for a in _draw(name))
    delta = random_like(x, 3)
    run = _both_ways(name)
    factor = jnp.asarray([1e30, 1e-30, 0, *[1] * (len(x) - 3)], jnp.float32).reshape(-1, *[1] * (x.ndim - 1))
    mixed, mixed_dx, *_ = run(x * factor, gamma, beta, delta)
    large, large_dx, *_ = run(x * jnp.float32(1e30), gamma, beta, delta)
    np.testing.assert_allclose(mixed[0], large[0], rtol=1e-6)
    np.testing.assert_allclose(mixed_dx[0], large_dx[0], rtol=1e-5, atol=1e-36)
    usual, usual_dx, *_ = run(x, gamma, beta, delta)
    np.testing.assert_allclose(mixed[3:], usual[3:], rtol=1e-6, atol=1e-6)
    near(mixed_dx[3:], usual_dx[3:], 2e-7)
    zero = 0 * beta if name == "rms_norm" else beta
    np.testing.assert_array_equal(mixed[2], jnp.broadcast_to(zero, x[2].shape))


@pytest.mark.few(8)
@pytest.mark.as_users_compile
@every_norm
@pytest.mark.parametrize("value", [0.0, 1.0, 1234.567, -1e36, 3e38])
def test_constant_examples(name, value):
    """y = β and dx finite, as the deviation is exactly 0; RMS norm divides by |x|."""
    x, gamma, beta = (jnp.asarray(a, jnp.float32) for a in _draw(name))
    y, dx, d_gamma, _ = _both_ways(name)(jnp.full_like(x, value), gamma, beta, random_like(x, 4))
    expected = gamma * jnp.float32(np.sign(value)) if name == "rms_norm" else beta
    np.testing.assert_allclose(y, jnp.broadcast_to(expected, y.shape), rtol=1e-5 if value == 1 else 1e-6)
    assert np.isfinite(dx).all()
    assert np.isfinite(d_gamma).all()


@pytest.mark.few(2, 4)
@every_norm
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_example(name, bad):
    x, gamma, beta = (jnp.asarray(a, jnp.float32) for a in _draw(name))
    delta = random_like(x, 5)
    y, dx, *_ = _both_ways(name)(x.at[0].set(bad), gamma, beta, delta)
    right, right_dx, *_ = _both_ways(name)(x, gamma, beta, delta)
    near((y[1:], dx[1:]), (right[1:], right_dx[1:]), 2e-7)
    assert np.isnan(y[0]).all()


@pytest.mark.slow
@pytest.mark.as_users_compile
def test_heavy_tails_take_one_read(measured_again):
    """Every row has a few elements that its deviation is due to: no sample's mean is a deviation off by them."""
    rng = np.random.default_rng(6)
    ones = jnp.ones(768, jnp.float32)
    f = jax.jit(lambda x: bnderiv.layer_norm(x, ones, ones))
    for x in (rng.standard_t(3, (2000, 768)), rng.exponential(size=(2000, 768)), rng.standard_normal((2000, 768)) + 50):
        assert measured_again(f, jnp.asarray(x, jnp.float32))[0] == 0


@pytest.mark.slow
def test_padding_is_not_measured_at_every_step(measured_again):
    x = jnp.asarray(np.random.default_rng(7).standard_normal((8, 128, 64)), jnp.float32).at[:, 100:].set(0)
    ones = jnp.ones(64, jnp.float32)
    for norm in (bnderiv.layer_norm, bnderiv.instance_norm, partial(bnderiv.group_norm, groups=8)):
        assert measured_again(jax.jit(lambda x, norm=norm: norm(x, ones, ones)), x)[0] == 0
    count, _ = measured_again(jax.jit(lambda x: bnderiv.layer_norm(x, ones, ones)), x.at[0, 0, 0].set(1e30))
    assert count > 0  # and here it is seen to be


@pytest.mark.slow
def test_what_they_are_of_each_other():
    x, gamma, beta = (jnp.asarray(a) for a in _draw("group_norm"))
    delta = random_like(x, 8)

    def both_ways(norm):
        def run(x, gamma, beta):
            y, pull_back = jax.vjp(norm, x, gamma, beta)
            return y, pull_back(delta)

        return fast_jit(run)(x, gamma, beta)

    everywhere = both_ways(
        lambda x, g, b: bnderiv.layer_norm(x, *(jnp.broadcast_to(a, x.shape[1:]) for a in (g, b)), axis=(1, 2, 3))
    )
    near(both_ways(partial(bnderiv.group_norm, groups=1)), everywhere, 1e-13)
    near(both_ways(partial(bnderiv.group_norm, groups=16)), both_ways(bnderiv.instance_norm), 1e-13)
    centred = x - x.mean(-1, keepdims=True)
    near(bnderiv.rms_norm(centred, gamma, eps=1e-5), bnderiv.layer_norm(x, gamma, None), 1e-13)
    one = x[:1]  # batch norm of one example, where both have the same elements
    near(bnderiv.instance_norm(one, gamma, beta), bnderiv.batch_norm(one, gamma, beta)[0], 1e-13)


def test_gradients_reach_epsilon():
    rng = np.random.default_rng(13)
    x, delta, gamma = (jnp.asarray(rng.standard_normal(shape)) for shape in ((3, 4, 6), (3, 4, 6), 6))

    def gradients(layers):
        norms = (
            layers.layer_norm,
            partial(layers.group_norm, groups=2),
            lambda x, g, _, eps: layers.rms_norm(x, g, eps=eps),
        )

        def of_each(eps):
            return [jax.grad(lambda e, norm=n: jnp.vdot(delta, norm(x, gamma, None, eps=e)))(eps) for n in norms]

        return fast_jit(of_each)(jnp.asarray(0.1))

    near(gradients(bnderiv), gradients(bnderiv.reference), 1e-12)


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 6)])
def test_the_channel_axis_is_where_it_is_said(shape):
    x = jnp.asarray(np.random.default_rng(9).standard_normal(shape))
    gamma, beta = jnp.arange(1.0, 7.0), -jnp.arange(6.0)
    norm = partial(bnderiv.group_norm, gamma=gamma, beta=beta, groups=2)
    near(jnp.moveaxis(norm(jnp.moveaxis(x, -1, 1), channel_axis=1), 1, -1), norm(x), 1e-14)


@pytest.mark.few(2)
@every_norm
def test_none_changes_nothing(name):
    norm: Any = {"rms_norm": lambda x, g, b: bnderiv.rms_norm(x, g)}.get(name, NORMS[name][0])
    if name == "layer_norm-two-axes":
        norm = partial(OURS.layer_norm, axis=(1, 2))
    x = jnp.asarray(_draw(name)[0], jnp.float32)
    own = x.shape[1:] if name == "layer_norm-two-axes" else x.shape[-1:]
    ones, zeros = jnp.ones(own, jnp.float32), jnp.zeros(own, jnp.float32)
    y, pull_back = jax.vjp(lambda x: norm(x, ones, zeros), x)
    same, pull_back_too = jax.vjp(lambda x: norm(x, None, None), x)
    np.testing.assert_array_equal(y, same)
    delta = random_like(x, 10)
    np.testing.assert_array_equal(pull_back(delta)[0], pull_back_too(delta)[0])


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("layers", [bnderiv, bnderiv.forward_mode], ids=lambda m: m.__name__)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_what_is_masked_out_reaches_nothing(layers, bad):
    rng = np.random.default_rng(11)
    x, where = jnp.asarray(rng.standard_normal((4, 5, 8))), jnp.asarray(rng.random((4, 5, 8)) < 0.6)
    gamma, beta = jnp.asarray(rng.standard_normal(8)), jnp.asarray(rng.standard_normal(8))
    delta = jnp.where(where, random_like(x, 12), 0)
    norms = (layers.layer_norm, partial(layers.group_norm, groups=2), layers.instance_norm)

    @fast_jit
    def run(x):
        ways = [jax.vjp(partial(norm, where=where), x, gamma, beta) for norm in norms]
        return [(jnp.where(where, y, 0), pull_back(delta)) for y, pull_back in ways]

    with_bad = run(jnp.where(where, x, bad))
    near(with_bad, run(jnp.where(where, x, 0)), 0)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(with_bad))


@pytest.mark.few(1)
@pytest.mark.parametrize("centred", [False, True], ids=["mean square", "layer_norm"])
def test_what_is_masked_is_normalized_too(centred):
    """As any other element if it is finite; otherwise it reaches nothing. (Other libraries mask a mean square, too.)"""
    rng = np.random.default_rng(14)
    x, delta, gamma, beta = (jnp.asarray(rng.standard_normal(s)) for s in ((4, 8), (4, 8), (1, 8), (1, 8)))
    where = jnp.asarray(rng.random((4, 8)) < 0.6).at[3].set(False)
    n = jnp.maximum(where.sum(-1, keepdims=True), 1).astype(jnp.float64)
    groups = Groups((), statistics=(1,), parameters=(0,))

    def ours(x, gamma, beta, eps):
        if centred:
            return OURS.layer_norm(x, gamma[0], beta[0], eps=eps, where=where)
        return by_root_mean_square(groups, x, where, n, gamma, beta, Epsilon.of(eps, x.dtype))

    def plain(x, gamma, beta, eps):
        if centred:
            x = x - jnp.where(where, x, 0).sum(-1, keepdims=True) / n
        return gamma * x / jnp.sqrt((jnp.where(where, x, 0) ** 2).sum(-1, keepdims=True) / n + eps) + beta

    @fast_jit
    def run(x, delta):
        def of(norm):
            y, pull_back = jax.vjp(norm, x, gamma, beta, jnp.asarray(0.1))
            # The value beside a gradient is differentiated by JAX.
            beside = jax.grad(lambda x: jnp.vdot(jax.vjp(lambda x: norm(x, gamma, beta, 0.1), x)[0], delta))(x)
            return jnp.where(where | jnp.isfinite(x), y, 0), pull_back(delta), beside

        return of(ours), of(plain)

    found, expected = run(x, delta)
    near(found, expected, 1e-13)
    kept = jnp.where(where, delta, 0)
    _, (y, *gradients) = run(x, kept)
    for bad in (np.nan, np.inf, 1e300):
        found, *others = run(jnp.where(where, x, bad), kept)[0]
        near((jnp.where(where, found, 0), others), (jnp.where(where, y, 0), gradients), 1e-13)
        # A row that is measured again, as its squares overflow.
        large, of_zeros = (run(jnp.where(where, 1e200 * x, a), kept)[0] for a in (bad, 0))
        near((jnp.where(where, large[0], 0), large[1:]), (jnp.where(where, of_zeros[0], 0), of_zeros[1:]), 0)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(of_zeros))


def test_an_epsilon_far_above_a_tiny_mean_square():
    """In the unit of x its square would be no float32."""
    y = bnderiv.rms_norm(jnp.full((1, 4), 1e-37, jnp.float32), None, eps=1e-30)
    np.testing.assert_allclose(y, np.full((1, 4), 1e-22), rtol=1e-5)


def test_one_feature_has_no_gradient():
    """It is its own mean: the terms of ∂J/∂x cancel to the bit."""
    x = jnp.asarray(np.random.default_rng(15).standard_normal((64, 1)), jnp.float32)
    gamma = jnp.full(1, 1.37, jnp.float32)
    dx = fast_jit(lambda x: jax.vjp(lambda x: bnderiv.layer_norm(x, gamma, None), x)[1](x))(x)
    np.testing.assert_array_equal(dx[0], 0)


def test_an_example_without_elements():
    """μ = 0 and σ² = 0 by convention: y is the map of x by these."""
    x = jnp.asarray([[1.0, -2.0], [3.0, 5.0]])
    where = jnp.asarray([[False], [True]])
    y, pull_back = jax.vjp(lambda x: bnderiv.layer_norm(x, None, None, eps=0.25, where=where), x)
    near(y[0], x[0] / 0.5, 1e-15)
    near(pull_back(jnp.ones_like(x))[0][0], jnp.full(2, 2.0), 1e-15)


@every_norm
def test_x_alone_is_saved(name):
    """Besides x there are a few numbers for each group, γ, and β where nothing else has its dtype."""
    norm, shape, view, over, _ = NORMS[name]
    arrays = [jnp.asarray(a, jnp.float32) for a in _draw(name)]
    saved = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(norm, *a)[1], *arrays))
    groups = int(np.prod([n for i, n in enumerate(view) if i not in over]))
    allowance = 8 * groups + (2 * 12 * 16 if "two" in name else 4 * shape[-1]) + 16
    assert sum(a.size for a in saved) <= arrays[0].size + allowance
    assert sum(a.shape == shape for a in saved) == 1


X = np.ones((2, 3, 4), np.float32)


@pytest.mark.parametrize("axis", [np.array([-1, 1]), range(1, 3), [np.int64(1), 2]], ids=["array", "range", "list"])
def test_several_axes_are_any_sequence_or_an_array(axis):
    """As `jax.numpy` and Flax take them."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(X.shape))
    for norm in (
        lambda axis: OURS.layer_norm(x, None, None, axis=axis),
        lambda axis: OURS.rms_norm(x, None, axis=axis),
    ):
        np.testing.assert_array_equal(norm(axis), norm((1, 2)))


WRONG = {
    "gamma of another shape": (
        lambda: OURS.layer_norm(X, np.ones(3, np.float32), None),
        ValueError,
        r"gamma must have shape \(4,\) \(that of x along axis 2\), got float32\[3\]",
    ),
    "beta of another shape": (
        lambda: OURS.layer_norm(X, None, np.ones(4, np.float32), axis=(1, 2)),
        ValueError,
        r"beta must have shape \(3, 4\) \(that of x along axes 1, 2\), got float32\[4\]",
    ),
    "an axis twice": (
        lambda: OURS.layer_norm(X, None, None, axis=(2, -1)),
        ValueError,
        r"axis must name at least one axis, and none twice, got \(2, -1\)",
    ),
    "no axis": (lambda: OURS.rms_norm(X, None, axis=()), ValueError, r"axis must name at least one axis.*got \(\)"),
    "an axis out of range": (lambda: OURS.rms_norm(X, None, axis=3), ValueError, "axis must lie in"),
    "an axis as a string": (lambda: OURS.rms_norm(X, None, axis="-1"), TypeError, "axis must be an integer, got '-1'"),
    "a float axis": (lambda: OURS.layer_norm(X, None, None, axis=1.0), TypeError, "axis must be an int"),
    "groups that do not divide": (
        lambda: OURS.group_norm(X, None, None, 3),
        ValueError,
        "groups must divide the 4 channels of x, got 3",
    ),
    "no groups": (lambda: OURS.group_norm(X, None, None, 0), ValueError, "groups must be at least 1, got 0"),
    "float groups": (lambda: OURS.group_norm(X, None, None, 2.0), TypeError, "groups must be an int"),
    "the batch for channels": (
        lambda: OURS.group_norm(X, None, None, 2, channel_axis=-3),
        ValueError,
        "channel_axis must not be the first axis, which is the batch, got -3",
    ),
    "no places": (lambda: OURS.instance_norm(X[0], None, None), ValueError, "x must have rank 3 or more"),
    "a scalar": (lambda: OURS.rms_norm(X[0, 0, 0], None), ValueError, "x must have rank 1 or more"),
    "integers": (lambda: OURS.rms_norm(X.astype(int), None), TypeError, "x must have a floating dtype"),
    "empty": (lambda: OURS.layer_norm(X[:0], None, None), ValueError, "x must not be empty"),
    "a negative epsilon": (lambda: OURS.rms_norm(X, None, eps=-1.0), ValueError, "eps must be finite and at least 0"),
    "a mask of floats": (lambda: OURS.group_norm(X, None, None, 2, where=X), TypeError, "where must"),
    "a mask that does not fit": (
        lambda: OURS.instance_norm(X, None, None, where=np.ones((2, 2, 4), bool)),
        ValueError,
        "where must",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), WRONG.values(), ids=WRONG)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()
