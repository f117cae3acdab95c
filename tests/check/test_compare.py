"""The checker passes every layer, and names what is wrong with rules broken in the ways people break them."""

import itertools
import re
import subprocess
import sys
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

import bnderiv
import bnderiv.reference
from bnderiv.check import Report, Row, compare, programs, roundings
from bnderiv.check.__main__ import _draw, _shapes, main
from bnderiv.check.lines import Lines
from tests.cases import CASES
from tests.compiling import of_a_user

pytestmark = pytest.mark.slow

LAYERS = {case.layer: case for case in reversed(CASES)}  # the first case of each


# These have the rules of batch norm and layer norm.
ALIKE = {"batch_norm_relu", "group_norm", "instance_norm"}


@pytest.mark.few(0, 4)
@pytest.mark.parametrize(
    "layer", [pytest.param(n, marks=pytest.mark.exhaustive if n in ALIKE else ()) for n in sorted(LAYERS)]
)
def test_every_layer_passes(layer):
    case = LAYERS[layer]
    f, args = case.bind(bnderiv, np.float32)
    g, _ = case.bind(bnderiv.reference)
    report = compare(f, g, *args)
    report.raise_if_failed()
    assert {row.mode for row in report.rows} >= {"value", "gradient", "float64", "second_order", "vmap", "linearity"}


@pytest.mark.few(0, 2)
@pytest.mark.parametrize("layer", ["batch_norm", "dense", "max_pool", "softmax_cross_entropy"])
def test_the_attachment_for_both_modes_passes(layer):
    case = LAYERS[layer]
    f, args = case.bind(bnderiv.forward_mode)
    g, _ = case.bind(bnderiv.reference)
    report = compare(f, g, *args, modes=("value", "gradient", "jvp", "linearity"))
    report.raise_if_failed()
    assert [row.verdict for row in report.rows if row.mode == "jvp"][-1] == "ok"


# Rules to break. The right ones first.


def plain(x, w):
    return jnp.tanh(x * w)


def rule(forward, bwd, fwd=None) -> Any:
    """A custom_vjp whose residuals are the arguments."""
    f = jax.custom_vjp(forward)
    f.defvjp(fwd or (lambda *args: (forward(*args), args)), bwd)
    return f


def slope(x, w):
    return 1 - jnp.tanh(x * w) ** 2


def right_bwd(residuals, ct):
    x, w = residuals
    return ct * w * slope(x, w), ct * x * slope(x, w)


def arrays(*shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


X_W = arrays((4, 3), (4, 3))


def normal(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def failures(report):
    return {row.check for row in report.rows if row.verdict == "FAIL"}


@pytest.mark.parametrize("reference", [plain, None])
def test_a_right_rule_passes(reference):
    report = compare(rule(plain, right_bwd), reference, *X_W)
    report.raise_if_failed()
    (row,) = [row for row in report.rows if row.mode == "jvp"]
    assert row.verdict == "n/a"
    assert "custom_vjp" in row.note
    ran = {row.mode for row in report.rows}
    assert ("finite_differences" in ran) == (reference is None)


def test_one_program_is_compiled_as_users_do_and_the_others_quickly(monkeypatch):
    optimized = []

    class Counted(programs.Program):
        def __init__(self, function, optimized_=False, **options):
            optimized.append(options.get("optimized", optimized_))
            super().__init__(function, **options)

    monkeypatch.setattr(programs, "Program", Counted)
    compare(rule(plain, right_bwd), plain, *X_W).raise_if_failed()
    assert sum(optimized) == 1
    assert len(optimized) <= 12
    assert programs._quick_options("cpu")
    assert programs._quick_options("tpu") is None


def wrong_sign(residuals, ct):
    dx, dw = right_bwd(residuals, ct)
    return dx, -dw


def missing_factor(residuals, ct):
    x, w = residuals
    return ct * slope(x, w), ct * x * slope(x, w)


def swapped(residuals, ct):
    dx, dw = right_bwd(residuals, ct)
    return dw, dx


def tiny_error(residuals, ct):
    dx, dw = right_bwd(residuals, ct)
    return dx * 1.00002, dw


def transposed(residuals, ct):
    dx, dw = right_bwd(residuals, ct)
    return dx[::-1], dw


@pytest.mark.few(0, 4)
@pytest.mark.parametrize("reference", [plain, None], ids=["reference", "differences"])
@pytest.mark.parametrize(
    ("bwd", "arguments"),
    [(wrong_sign, {"w"}), (missing_factor, {"x"}), (swapped, {"x", "w"}), (transposed, {"x"})],
    ids=lambda p: getattr(p, "__name__", ""),
)
def test_a_wrong_formula_is_named_with_its_argument(bwd, arguments, reference):
    def f(x, w):
        return rule(plain, bwd)(x, w)

    report = compare(f, reference, *X_W, modes=("structure", "gradient", "finite_differences", "jit", "linearity"))
    check = "gradient" if reference else "finite differences"
    wrong = [row for row in report.rows if row.check == check and row.verdict == "FAIL"]
    assert {row.argument for row in wrong} == arguments
    assert failures(report) <= {"gradient", "finite differences"}
    for row in wrong:
        assert row.index is not None
        assert "got" in row.note


def test_the_worst_element_is_named():
    def bwd(residuals, ct):
        dx, dw = right_bwd(residuals, ct)
        return dx.at[2, 1].multiply(3.0), dw

    report = compare(rule(plain, bwd), plain, *X_W, modes="gradient")
    (row,) = report.failures
    assert (row.check, row.index) == ("gradient", (2, 1))


def test_an_error_within_the_rounding_of_a_formula_shows_in_ulps():
    report = compare(rule(plain, tiny_error), plain, *X_W, modes=("gradient", "float64"))
    assert failures(report) == {"float64: gradient"}
    (row,) = report.failures
    assert row.unit == "ulp"
    assert 32 < (row.error or 0) < 400


def centered(x):
    return x**2 - (x**2).mean(0, keepdims=True)


def test_a_missing_term():
    f = rule(centered, lambda residuals, ct: (2 * residuals[0] * ct,))  # the gradient through the mean is left out
    assert {"gradient", "float64: gradient"} <= failures(compare(f, centered, X_W[0]))
    # Why cotangents are random: to the sum of a function that is odd in the rest, ...
    right = rule(centered, lambda residuals, ct: (2 * residuals[0] * (ct - ct.mean(0, keepdims=True)),))
    compare(right, centered, X_W[0]).raise_if_failed()
    # ... a rule that returns zeros is right.
    zeros = rule(centered, lambda residuals, ct: (0 * ct,))
    ones = jnp.ones_like(X_W[0])
    assert compare(zeros, centered, X_W[0], cotangent=ones, modes="gradient").passed
    assert not compare(zeros, centered, X_W[0], modes="gradient").passed


def test_a_wrong_dtype():
    """JAX lets it pass: the gradient itself is right."""

    def bwd(residuals, ct):
        dx, dw = right_bwd(residuals, ct)
        return dx, dw.astype(jnp.float64)

    report = compare(rule(plain, bwd), plain, *X_W)
    named = [row for row in report.failures if row.check == "structure"]
    assert [(row.argument, row.note) for row in named] == [("w", "dtype float64, the argument's is float32")]
    assert "gradient" not in failures(report)


def test_a_wrong_shape():
    """JAX raises; said once, not in every check that needs the gradient."""
    f = rule(plain, lambda residuals, ct: (ct.sum(), ct))
    (row,) = compare(f, plain, *X_W).rows
    assert (row.check, row.verdict) == ("the backward raises", "FAIL")
    assert "shape" in row.note


def test_a_primal_that_differs_from_fwd():
    def fwd(x, w):
        return plain(x, w) * 1.5, (x, w)

    report = compare(rule(plain, right_bwd, fwd), plain, *X_W, modes=("value", "structure", "gradient", "linearity"))
    assert failures(report) == {"primal = fwd"}


def test_a_nonlinear_backward():
    """Clipped gradients, as people write them into a rule."""

    def bwd(residuals, ct):
        return tuple(jnp.clip(g, -0.1, 0.1) for g in right_bwd(residuals, ct))

    report = compare(rule(plain, bwd), None, *X_W, modes="linearity")
    assert failures(report) == {"linearity: times 2", "linearity: sum of two"}


def test_a_gradient_at_a_zero_cotangent():
    def bwd(residuals, ct):
        size = jnp.sqrt((ct * ct).sum())
        return tuple(g * size for g in right_bwd(residuals, ct / size))  # right but where ct = 0

    report = compare(rule(plain, bwd), plain, *X_W, modes=("structure", "gradient", "linearity", "float64"))
    assert "linearity: zero" in failures(report)
    assert {row.mode for row in report.failures} == {"linearity"}
    assert "nan" in report.failures[0].note


def test_nan_at_a_zero_cotangent_where_residuals_are_huge():
    def identity(x):
        return x * 1

    f = rule(identity, lambda residuals, ct: (ct * residuals[0] ** 3 / residuals[0] ** 3,))
    for reference in (identity, None):
        report = compare(f, reference, X_W[0], modes=("gradient", "linearity"))
        assert "linearity: zero, arguments of 2^60" in failures(report)
        assert "linearity: zero" not in failures(report)


def test_zero_times_infinity_in_plain_autodiff_is_nobody_elses_fault():
    def cube(x):
        return x**3 * x**3

    report = compare(cube, cube, X_W[0], modes="linearity")
    assert report.passed
    assert any("plain autodiff" in row.note for row in report.rows)


def test_stale_state():
    """The forward keeps what the backward should have been given."""
    kept = {}

    def fwd(x, w):
        kept["residuals"] = x, w
        return plain(x, w), None

    report = compare(rule(plain, lambda _, ct: right_bwd(kept["residuals"], ct), fwd), plain, *X_W)
    assert "determinism: after a call elsewhere" in failures(report)
    assert "gradient" not in failures(report)


def test_nondeterminism():
    calls = itertools.count()

    def bwd(residuals, ct):
        wobble = np.float32(1 + 1e-6 * next(calls))
        return tuple(g * wobble for g in right_bwd(residuals, ct))

    report = compare(rule(plain, bwd), plain, *X_W)
    assert "determinism: called again" in failures(report)
    assert "gradient" not in failures(report)


def test_a_backward_that_vmap_breaks():
    """A callback that takes the first axis for the batch: under vmap it is another."""

    def affine(x, b):
        return x + jax.lax.broadcast_in_dim(b, x.shape, (1,))

    def bwd(_, ct):
        shape = jax.ShapeDtypeStruct(ct.shape[1:], ct.dtype)
        callback = partial(jax.pure_callback, lambda c: np.asarray(c).sum(0), shape)
        return ct, callback(ct, vmap_method="expand_dims")

    f = rule(affine, bwd)
    report = compare(f, affine, *arrays((4, 3), (3,)), modes=("structure", "gradient", "float64", "jit", "vmap"))
    assert failures(report) == {"vmap"}


def test_a_wrong_batching_rule_is_named_with_what_it_spoils():
    @jax.custom_batching.custom_vmap
    def total(ct):
        return ct.sum(0)

    @total.def_vmap
    def _(axis_size, in_batched, ct):
        return ct.sum(0), True  # of the mapped axis instead of the rows

    def affine(x, b):
        return x + jax.lax.broadcast_in_dim(b, x.shape, (1,))

    f = rule(affine, lambda _, ct: (ct, total(ct)))
    report = compare(f, affine, *arrays((3, 3), (3,)), modes=("structure", "gradient", "jit", "vmap"))
    assert failures(report) == {"vmap"}
    assert all("gradient of b" in row.note for row in report.failures)


def test_a_broken_second_order():
    def fwd(x, w):
        return plain(x, w), (x, w, jax.lax.stop_gradient(slope(x, w)))

    def bwd(residuals, ct):
        x, w, s = residuals
        return ct * w * s, ct * x * s

    for reference in (plain, None):
        report = compare(rule(plain, bwd, fwd), reference, *X_W)
        assert failures(report) == {"second order: grad of grad", "second order: jvp of grad"}


def test_a_gradient_of_an_integer_argument():
    """JAX drops it without a word."""

    def scaled(x, n):
        return x * n.astype(x.dtype)

    args = X_W[0], jnp.asarray(np.arange(12).reshape(4, 3), jnp.int32)
    right = rule(scaled, lambda residuals, ct: (ct * residuals[1].astype(ct.dtype), None))
    compare(right, scaled, *args).raise_if_failed()
    f = rule(scaled, lambda residuals, ct: (ct * residuals[1].astype(ct.dtype), ct * residuals[0]))
    for g in (f, jax.jit(f)):
        (row,) = compare(g, scaled, *args).failures
        assert (row.check, row.argument) == ("structure", "n")
        assert "float32" in row.note


def test_a_rule_that_jit_cannot_trace():
    def bwd(residuals, ct):
        return right_bwd(residuals, ct) if float(abs(ct).sum()) else (0 * ct, 0 * ct)

    report = compare(rule(plain, bwd), plain, *X_W, modes=("gradient", "jit", "scan"))
    assert {"jit", "scan"} <= failures(report)
    assert "gradient" not in failures(report)
    assert "ConcretizationTypeError" in next(row.note for row in report.failures if row.check == "jit")


def test_a_wrong_forward_mode():
    @jax.custom_jvp
    def f(x, w):
        return plain(x, w)

    f.defjvp(lambda p, t: (plain(*p), (t[0] * p[1] + 2 * t[1] * p[0]) * slope(*p)))
    assert {"jvp", "gradient"} <= failures(compare(f, plain, *X_W, modes=("gradient", "jvp")))
    report = compare(plain, plain, *X_W, modes=("gradient", "jvp"))
    assert [row.check for row in report.rows] == ["gradient", "gradient", "jvp", "jvp: transpose of the vjp"]
    assert report.passed


def test_rounding_is_measured_in_ulps():
    """The variance as E[x²] − E[x]²: the right formula, and a third of the digits."""
    x = 100 + X_W[0]
    naive = compare(lambda x: (x**2).mean(0) - x.mean(0) ** 2, lambda x: x.var(0), x, modes=("value", "float64"))
    assert "float64: value" in failures(naive)
    assert compare(lambda x: x.var(0), lambda x: x.var(0), x, modes="float64").passed


def test_float64_that_does_not_work_is_said():
    def stubborn(x):
        assert x.dtype == jnp.float32, "float32 only"
        return jnp.tanh(x)

    report = compare(stubborn, stubborn, X_W[0])
    report.raise_if_failed()
    (row,) = [row for row in report.rows if row.mode == "float64"]
    assert row.verdict == "n/a"
    assert "float32 only" in row.note
    alone = compare(stubborn, None, X_W[0], modes=("finite_differences",))
    alone.raise_if_failed()
    assert "float32 only" in alone.rows[0].note


@pytest.mark.few(0, 1)
@pytest.mark.parametrize("reference", [True, False], ids=["reference", "differences"])
@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)], ids=["key", "raw"])
def test_random_numbers_that_float64_would_draw_anew(key, reference):
    def drop(x, key):
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0)

    def bwd(res, ct, factor=1):
        return factor * drop(ct, res[1]), None

    with jax.enable_x64(False):
        x, plain_drop = normal(0, (5, 4)), drop if reference else None
        report = compare(rule(drop, bwd), plain_drop, x, key)
        assert report.passed, report
        assert any("other random numbers" in row.note for row in report.rows)
        wrong = compare(rule(drop, partial(bwd, factor=2)), plain_drop, x, key)
        assert {"gradient" if reference else "finite_differences"} <= {row.mode for row in wrong.failures}


# Kinks


def relu_with(at_zero):
    def relu(x):
        return jnp.maximum(x, 0)

    return rule(relu, lambda res, ct: (jnp.where(res[0] > 0, ct, jnp.where(res[0] == 0, at_zero * ct, 0)),))


KINKED = jnp.asarray([[-1.0, 0.0, 2.0], [0.0, 1.5, 0.0]], jnp.float32)


@pytest.mark.parametrize("reference", [lambda x: jnp.maximum(x, 0), None], ids=["reference", "differences"])
@pytest.mark.parametrize(("at_zero", "verdict"), [(0, "kink"), (0.25, "kink"), (1, "kink"), (2, "FAIL"), (-1, "FAIL")])
def test_relu_at_zero(at_zero, verdict, reference):
    report = compare(relu_with(at_zero), reference, KINKED, modes=("gradient", "finite_differences"))
    assert {row.verdict for row in report.rows if row.verdict != "n/a"} == {verdict}
    assert report.passed == (verdict == "kink")


def test_an_error_beside_a_kink_is_an_error():
    f = rule(lambda x: jnp.maximum(x, 0), lambda res, ct: (jnp.where(res[0] > 1.6, 2 * ct, 0 * ct),))
    report = compare(f, lambda x: jnp.maximum(x, 0), KINKED, modes=("gradient",))
    assert failures(report) == {"gradient"}


@pytest.mark.parametrize(("share", "verdict"), [((1, 0), "kink"), ((0, 1), "kink"), ((0, 0), "FAIL"), ((1, 1), "FAIL")])
def test_ties_of_a_maximum(share, verdict):
    """One of the two may have it all, or each a part; not both, nor neither."""

    def top(x):
        return x.max(-1)

    def bwd(res, ct):
        (x,) = res
        return (jnp.where(x == x.max(-1, keepdims=True), jnp.asarray([*share, 0], x.dtype)[None], 0) * ct[:, None],)

    x = jnp.asarray([[2.0, 2.0, 1.0], [3.0, 3.0, -1.0]], jnp.float32)
    assert compare(top, top, x).passed
    (row,) = compare(rule(top, bwd), top, x, modes="gradient").rows
    assert row.verdict == verdict


@pytest.mark.parametrize("key", range(4))
def test_kinks_that_have_nothing_to_do_with_one_another(key):
    """One edge rises where the other falls: moved together, they enter one slope and leave the other."""

    def clip(x):
        return jnp.clip(x, -1, 1)

    f = rule(clip, lambda res, ct: (jnp.where(jnp.abs(res[0]) <= 1, ct, 0),))
    x = jnp.asarray([-1.0, 1.0, 0.3], jnp.float32)
    (row,) = compare(f, clip, x, key=jax.random.key(key), modes="gradient").rows
    assert row.verdict == "kink"


@pytest.mark.parametrize(("share", "verdict"), [((1, 0), "kink"), ((1, 1), "FAIL"), ((0, 0), "FAIL")])
def test_a_tie_beside_other_kinks(share, verdict):
    def f(x):
        return jnp.maximum(x[0], x[1]) - jnp.clip(x[2], -1, 1) + 2 * jnp.clip(x[3], -1, 1)

    slopes = jnp.asarray([*share, 0, 0], jnp.float32)
    x = jnp.asarray([1.0, 1.0, 1.0, -1.0], jnp.float32)
    (row,) = compare(rule(f, lambda res, ct: (ct * slopes,)), f, x, modes="gradient").rows
    assert row.verdict == verdict


def test_a_kink_where_the_rule_says_what_differences_say():
    assert compare(lambda x: jnp.maximum(x, 0), None, jnp.asarray([-1.0, 0.0, 2.0])).passed  # JAX has the slope 1/2


@pytest.mark.parametrize("size", [1.0, 1e5, 1e10])
def test_a_gradient_that_is_small_beside_the_others(size):
    def affine(x, w, b):
        return bnderiv.reference.dense(x, w, b)

    def without_bias(res, ct):
        x, w, b = res
        return ct @ w.T, x.T @ ct, jnp.zeros_like(b)

    x, w, b = (normal(i, s) for i, s in enumerate(((6, 5), (5, 4), (4,))))
    args = jnp.float32(size) * x, w, b
    report = compare(rule(affine, without_bias), affine, *args, modes=("gradient", "float64"))
    assert {(row.check, row.argument) for row in report.rows if row.verdict == "FAIL"} == {
        ("gradient", "b"),
        ("float64: gradient", "b"),
    }
    assert compare(affine, affine, *args, modes=("gradient", "float64")).passed


def test_a_gradient_that_vanishes_beside_a_reference_that_stays_in_float32():
    def normalized(layers, x, w, b):
        ones, zeros = jnp.ones(4, jnp.float32), jnp.zeros(4, jnp.float32)
        return layers.batch_norm(layers.dense(x, w, b).astype(jnp.float32), ones, zeros)[0]

    args = tuple(normal(i, s) for i, s in enumerate(((6, 5), (5, 4), (4,))))
    ours, reference = (partial(normalized, layers) for layers in (bnderiv, bnderiv.reference))
    rows = compare(ours, reference, *args, modes="gradient").rows
    assert all("cannot be evaluated in float64" in row.note for row in rows)
    assert {row.verdict for row in rows} == {"ok"}


@pytest.mark.few(0, 1)
@pytest.mark.parametrize("size", [1.0, 1e8, 1e20])
def test_a_gradient_of_nothing_at_any_scale(size):
    def normalize(layers, x, gamma, beta):
        return layers.batch_norm(x, gamma, beta)[0]

    def all_but_x(res, ct):
        _, *grads = jax.vjp(partial(normalize, bnderiv), *res)[1](ct)
        return jnp.zeros_like(res[0]), *grads

    ours, reference = (partial(normalize, layers) for layers in (bnderiv, bnderiv.reference))
    args = jnp.float32(size) * normal(0, (16, 5)), normal(1, (5,)), normal(2, (5,))
    dx, *others = compare(rule(ours, all_but_x), reference, *args, modes="gradient").rows
    assert (dx.verdict, {row.verdict for row in others}) == ("FAIL", {"ok"})
    assert compare(ours, reference, *args, modes="gradient").passed


# Added to all that is centred, an argument changes nothing.
VANISHING = {
    "bias-before-batch-norm": (
        lambda layers: lambda x, w, b: layers.batch_norm(layers.dense(x, w, b), jnp.ones_like(b), jnp.ones_like(b))[0],
        ((16, 5), (5, 4), (4,)),
    ),
    "bias-alone": (
        lambda layers: (
            lambda b: layers.batch_norm(normal(0, (16, 4), b.dtype) + b[None], jnp.ones_like(b), jnp.ones_like(b))[0]
        ),
        ((4,),),
    ),
    "shifted-softmax": (lambda layers: lambda b: layers.softmax(normal(0, (16, 4), b.dtype) + b), ((),)),
}


@pytest.mark.few(0, 1)
@pytest.mark.parametrize(
    ("name", "dtype", "has_reference"),
    [
        ("bias-before-batch-norm", "float32", True),
        pytest.param("bias-before-batch-norm", "float32", False, marks=pytest.mark.exhaustive),
        ("bias-alone", "float64", True),
        ("shifted-softmax", "float32", False),
        pytest.param("shifted-softmax", "float64", True, marks=pytest.mark.exhaustive),
    ],
)
def test_a_gradient_that_vanishes_but_for_roundings(name, dtype, has_reference):
    layer, shapes = VANISHING[name]
    args = [normal(i + 1, s, dtype) for i, s in enumerate(shapes)]
    reference = layer(bnderiv.reference) if has_reference else None
    for report in (
        compare(layer(bnderiv), reference, *args),
        compare(layer(bnderiv.forward_mode), reference, *args, modes=("jvp", "linearity")),
    ):
        assert report.passed, report
        assert {row.verdict for row in report.rows} <= {"ok", "n/a"}, report

    # It is to vanish, though: of a rule that has lost what cancels it is said.
    def bwd(res, ct):
        *grads, last = jax.vjp(layer(bnderiv), *res)[1](ct)
        return *grads, last + 1e-3 * ct.sum(tuple(range(ct.ndim - last.ndim)))

    mode = "gradient" if has_reference else "finite_differences"
    *others, last = compare(rule(layer(bnderiv), bwd), reference, *args, modes=mode).rows
    assert (last.argument, last.verdict, {row.verdict for row in others} - {"ok"}) == ("b", "FAIL", set())


def test_one_that_vanishes_is_not_measured_by_the_size_of_the_function():
    def shifted(x, w, b):
        return 1e6 + bnderiv.reference.batch_norm(x @ w + b[None], jnp.ones_like(b), jnp.ones_like(b))[0]

    def bwd(res, ct):
        dx, dw, db = jax.vjp(shifted, *res)[1](ct)
        return dx, dw, db + 0.01 * ct.sum(0)

    args = normal(0, (16, 5)), normal(1, (5, 4)), normal(2, (4,))
    rows = compare(rule(shifted, bwd), shifted, *args, modes="gradient").rows
    assert [row.verdict for row in rows] == ["ok", "ok", "FAIL"]


@pytest.mark.parametrize("size", [1e7, 1e12])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_beside_a_far_larger_one_of_another_output(dtype, size):
    def two(a, b):
        return size * a, jnp.sin(b)

    f = rule(two, lambda res, ct: (size * ct[0], 0 * ct[1]))
    a, b = compare(f, two, normal(0, (5,), dtype), normal(1, (3,), dtype), modes="second_order").rows[:2]
    assert (a.verdict, b.verdict) == ("ok", "FAIL")


def test_a_wrong_forward_mode_beside_an_argument_without_effect():
    @jax.custom_jvp
    def shifted(x, unused):
        return 1e4 + jnp.sin(x)

    @shifted.defjvp
    def jvp(primals, tangents):
        def forward(x, t):
            return 1.5 * jnp.cos(x) * t

        def transposed(x, ct):
            return jnp.cos(x) * ct

        x, unused = primals
        return shifted(x, unused), jax.custom_derivatives.linear_call(forward, transposed, x, tangents[0])

    rows = compare(shifted, None, normal(0, (6,)), normal(1, (3,)), modes=("finite_differences", "jvp")).rows
    assert [row.verdict for row in rows] == ["ok", "ok", "FAIL"]


@pytest.mark.exhaustive
def test_a_gradient_that_all_but_vanishes():
    """A scale before batch norm counts by ε alone: its gradient is a thousandth of the terms that cancel in it."""

    def twice(layers, x, gamma, beta):
        return layers.batch_norm(layers.batch_norm(x, gamma, beta)[0], 1.3 + 0 * gamma, 0 * beta)[0]

    args = normal(1, (16, 4)), normal(2, (4,)), normal(3, (4,))
    report = compare(partial(twice, bnderiv), partial(twice, bnderiv.reference), *args)
    assert report.passed, report


@pytest.mark.few(0, 2)
@pytest.mark.parametrize("reference", [True, False], ids=["reference", "differences"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_small_gradient_alone_is_not_one_that_vanishes(dtype, reference):
    def shifted(b):
        return 1 + 1e-4 * jnp.sin(b)

    rows = compare(
        rule(shifted, lambda res, ct: (0 * ct,)), shifted if reference else None, normal(0, (3,), dtype)
    ).rows
    assert {row.mode for row in rows if row.verdict == "FAIL"} >= {"gradient" if reference else "finite_differences"}


@pytest.mark.parametrize(
    ("f", "args", "what"),
    [
        (lambda x: x + 1, (jnp.arange(3),), "argument"),
        (lambda: jnp.ones(3), (), "argument"),
        (lambda x: x.sum(), (np.ones((0, 3)),), "argument"),
        (lambda x: (x > 0).astype(jnp.int32), (np.ones(3),), "output"),
    ],
    ids=["integers", "none", "empty", "integer-output"],
)
def test_nothing_checked_is_not_a_pass(f, args, what):
    report = compare(f, f, *args)
    (row,) = report.failures
    assert f"no {what} is a floating array" in row.note


def test_an_integer_within_a_tree_is_given_no_gradient():
    def scaled(t):
        return t["x"] * t["n"].astype(t["x"].dtype)

    def bwd(res, ct, given=False):
        (t,) = res
        return ({"x": ct * t["n"].astype(ct.dtype), "n": ct * t["x"] if given else None},)

    tree = {"x": jnp.ones(3), "n": jnp.arange(3)}
    assert compare(rule(scaled, bwd), scaled, tree).passed
    report = compare(rule(scaled, partial(bwd, given=True)), scaled, tree, modes="structure")
    assert [row.argument for row in report.rows if row.verdict == "FAIL"] == ["t['n']"]


def test_second_derivatives_at_a_kink():
    def ramp(x):
        return jnp.maximum(x, 0) ** 2 + jnp.abs(x)

    f = rule(
        ramp, lambda res, ct: ((2 * jnp.maximum(res[0], 0) + jnp.where(res[0] > 0, 1.0, -1.0).astype(ct.dtype)) * ct,)
    )
    report = compare(f, ramp, KINKED, modes=("gradient", "second_order"))
    assert report.passed
    assert {row.verdict for row in report.rows} == {"kink"}


# Arguments of every kind


class Out(NamedTuple):
    y: Any
    count: Any


def network(params, x, labels, activation, depth, *, scale=1.0):
    for layer in params["layers"][:depth]:
        x = getattr(jnp, activation)(x @ layer["w"]) * scale
    picked = jnp.take_along_axis(x, labels[:, None], 1)[:, 0]
    return Out(x, labels * 2), [picked, None]


def test_pytrees_static_arguments_and_integer_outputs():
    w = arrays((3, 3), (3, 3))
    params = {"layers": [{"w": w[0]}, {"w": np.asarray(w[1])}], "nothing": None}
    x = X_W[0]
    labels = jnp.asarray([0, 2, 1, 0], jnp.int32)
    args = (params, x, labels, "tanh", 2)
    f = partial(network, scale=0.5)
    report = compare(f, f, *args)
    report.raise_if_failed()
    named = {row.argument for row in report.rows}
    assert {"params['layers'][0]['w']", "params['layers'][1]['w']", "x", "labels", "(all)"} <= named
    assert {"output[0].y", "output[0].count", "output[1][0]"} <= named
    compare(f, None, *args, modes=("structure", "finite_differences")).raise_if_failed()
    wrong = compare(f, partial(network, scale=0.25), *args, modes=("value", "gradient"))
    assert {"value", "gradient"} <= failures(wrong)


def test_a_given_cotangent():
    args = ({"layers": [{"w": X_W[0].T @ X_W[0]}]}, X_W[0], jnp.asarray([0, 2, 1, 0], jnp.int32), "tanh", 1)
    good = Out(jnp.ones((4, 3), jnp.float32), None), [jnp.ones(4, jnp.float32), None]
    assert compare(network, network, *args, cotangent=good, modes="gradient").passed
    with pytest.raises(ValueError, match="structure of the output"):
        compare(network, network, *args, cotangent=good[0])
    with pytest.raises(ValueError, match="shape of the output"):
        compare(plain, plain, *X_W, cotangent=jnp.ones(3))


def test_integer_outputs_are_compared():
    def f(x):
        return x * 2, x.argmax()

    report = compare(f, lambda x: (x * 2, x.argmin()), X_W[0], modes="value")
    assert [row.argument for row in report.failures] == ["output[1]"]


def test_a_reference_of_another_kind():
    (row,) = compare(lambda x: x, lambda x: (x, x), X_W[0], modes="value").failures
    assert "1 arrays, the reference returns 2" in row.note
    (row,) = compare(lambda x: x, lambda x: x.astype(jnp.float16), X_W[0], modes="value").failures
    assert "float16" in row.note
    (row,) = compare(lambda x: x, lambda x: x[None], X_W[0], modes="value").failures
    assert "shape (4, 3), the reference's is (1, 4, 3)" in row.note


def test_complex_arguments():
    z = jax.lax.complex(*X_W)

    def square(z):
        return z * z

    for reference in (square, None):
        compare(rule(square, lambda res, ct: (2 * res[0] * ct,)), reference, z).raise_if_failed()
        wrong = rule(square, lambda res, ct: (2 * res[0].conj() * ct,))
        assert not compare(wrong, reference, z, modes=("gradient", "finite_differences")).passed


def test_a_python_number_is_differentiated_unless_it_must_stay_one():
    def scaled(x, s):
        return x * s

    wrong = rule(scaled, lambda res, ct: (ct * res[1], ct.sum()))
    assert {row.argument for row in compare(wrong, scaled, X_W[0], 2.0, modes="gradient").failures} == {"s"}
    report = compare(wrong, scaled, X_W[0], 2.0, modes=("structure", "gradient"), argnums=0)
    report.raise_if_failed()
    assert any(row.argument == "s" and row.verdict == "n/a" for row in report.rows)
    static = jax.custom_vjp(scaled, nondiff_argnums=(1,))
    static.defvjp(lambda x, s: (x * s, None), lambda s, _, ct: (ct * s,))
    compare(static, scaled, X_W[0], 2.0, modes=("structure", "gradient")).raise_if_failed()
    with pytest.raises(ValueError, match="argnums must be positions of the 2 arguments"):
        compare(scaled, scaled, X_W[0], 2.0, argnums=2)


@pytest.mark.few(0, 1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes(dtype):
    args = tuple(a.astype(dtype) for a in X_W)
    modes = ("value", "structure", "gradient", "float64", "second_order", "scan", "linearity")
    compare(rule(plain, right_bwd), plain, *args, modes=modes).raise_if_failed()
    formula = ("gradient", "finite_differences")
    compare(rule(plain, right_bwd), None, *args, modes=formula).raise_if_failed()
    for reference in (plain, None):
        assert not compare(rule(plain, wrong_sign), reference, *args, modes=formula).passed


def test_without_x64():
    with jax.enable_x64(False):
        report = compare(rule(plain, right_bwd), plain, *X_W)
        report.raise_if_failed()
        assert any(row.unit == "ulp" for row in report.rows)
        formula = ("gradient", "finite_differences", "second_order")
        compare(rule(plain, right_bwd), None, *X_W, modes=formula).raise_if_failed()
        for reference in (plain, None):
            assert not compare(rule(plain, wrong_sign), reference, *X_W, modes=formula).passed


def test_many_elements_are_differenced_along_random_directions():
    args = arrays((40, 30), (40, 30))
    report = compare(rule(plain, right_bwd), None, *args, modes="finite_differences")
    report.raise_if_failed()
    assert failures(compare(rule(plain, wrong_sign), None, *args, modes="finite_differences"))


# The report


def test_a_check_that_raises_is_a_row():
    def raises(x):
        raise RuntimeError("out of order")

    report = compare(raises, plain, X_W[0])
    assert not report.passed
    assert "RuntimeError: out of order" in str(report)
    (row,) = compare(rule(lambda x: x, lambda res, ct: raises(ct)), lambda x: x, X_W[0]).rows
    assert row.check == "the backward raises"
    assert re.search(r"out of order \(at test_compare.py:\d+, raise RuntimeError", row.note)
    report = compare(lambda x: x * 2, raises, X_W[0])
    assert {"value", "gradient"} & failures(report)


def test_a_function_that_raises_whatever_its_numbers_are_is_a_row():
    """A Python number is tried as an array and as itself."""

    def raises(x, k):
        raise RuntimeError("out of order")

    (row,) = compare(raises, None, X_W[0], 2.0).failures
    assert row.check == "f raises"
    assert "RuntimeError: out of order" in row.note


def test_nothing_to_check_does_not_pass():
    assert not Report("nothing", ()).passed
    with pytest.raises(AssertionError):
        Report("nothing", ()).raise_if_failed()


def test_the_same_key_draws_the_same():
    f = rule(plain, wrong_sign)
    one, two, other = (compare(f, plain, *X_W, modes="gradient", key=jax.random.key(k)) for k in (1, 1, 2))
    assert one == two != other


def test_tolerances_and_modes():
    assert compare(rule(plain, tiny_error), plain, *X_W, modes="float64", tolerances={"float64": 400}).passed
    assert not compare(rule(plain, tiny_error), plain, *X_W, modes="gradient", tolerances={"gradient": 1e-6}).passed
    with pytest.raises(ValueError, match="modes must be among value, structure"):
        compare(plain, plain, *X_W, modes=("value", "speed"))
    with pytest.raises(ValueError, match="tolerances must be among"):
        compare(plain, plain, *X_W, tolerances={"atol": 1})
    with pytest.raises(TypeError, match="callable"):
        compare(plain, cast(Any, "plain"), *X_W)


def test_the_table():
    rows = (
        Row("gradient", "gradient", "x['<w>']", "FAIL", 0.25, 1e-4, (3,), "got 1, expected 2"),
        Row("float64", "float64: value", "output", "ok", 1.5, 32.0, (0, 1), unit="ulp"),
    )
    text = str(Report("f against g", rows))
    header, _, first, second, *legend, summary = text.splitlines()
    assert len(legend) == 2
    for column in ("verdict", "worst error", "tolerance", "at", "note"):
        assert column in header
    assert first.index("FAIL") == second.index("ok") == header.index("verdict")
    assert "(3)" in first
    assert "1.5 ulp" in second
    assert summary == "f against g: 2 checks, 1 failed — FAILED: gradient of x['<w>']"
    with pytest.raises(AssertionError, match="got 1, expected 2") as raised:
        Report("f against g", rows).raise_if_failed()
    assert "float64: value" not in str(raised.value)  # the failures alone
    html = Report("f against g", rows)._repr_html_()
    assert "x[&#x27;&lt;w&gt;&#x27;]" in html
    assert html.count("<tr>") == 3


def test_a_long_note_stays_in_its_column():
    row = Row("value", "value", "output", "FAIL", note="word " * 60)
    lines = str(Report("f", (row,))).splitlines()
    column = lines[0].index("note")
    assert all(line[:column].strip() == "" for line in lines[3:-3])
    assert max(map(len, lines[2:-3])) < column + 80


# The command line


def test_the_command_line(capsys):
    dense = ["bnderiv:dense", "--reference", "bnderiv.reference:dense"]
    assert main([*dense, "--shapes", "(4,3),(3,2),(2,)", "--modes", "value,gradient"]) == 0
    out = capsys.readouterr().out
    assert "kernel" in out
    assert "passed" in out
    assert main(["bnderiv:tanh", "--reference", "bnderiv:sigmoid", "--shapes", "(4,)", "--modes", "value"]) == 1
    assert "FAIL" in capsys.readouterr().out
    norm = ["bnderiv:batch_norm", "--reference", "bnderiv.reference:batch_norm", "--shapes", "(6,3),(3,),3"]
    assert main([*norm, "--dtype", "float64", "--kwargs", "{'eps': 1e-3}", "--modes", "gradient"]) == 0
    loss = "softmax_cross_entropy_with_integer_labels"
    loss = [f"bnderiv:{loss}", "--reference", f"bnderiv.reference:{loss}", "--modes", "gradient"]
    assert main([*loss, "--shapes", "(4,3),int32(4)", "--seed", "3"]) == 0
    assert main(["bnderiv:tanh", "--shapes", "(4,)", "--modes", "finite_differences"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bnderiv", "--shapes", "(3,)"], "the function must be module:function or file.py:function, got 'bnderiv'"),
        (["bnderiv:no_such", "--shapes", "(3,)"], "'bnderiv' has no 'no_such'"),
        (["no_such_module:f", "--shapes", "(3,)"], "cannot import 'no_such_module'"),
        (["bnderiv:__all__", "--shapes", "(3,)"], "must be callable"),
        (
            ["bnderiv:tanh", "--reference", "bnderiv.reference", "--shapes", "(3,)"],
            "--reference must be module:function or file.py:function",
        ),
        (["bnderiv:tanh", "--shapes", "(3,"], "--shapes must look like"),
        (["bnderiv:tanh", "--shapes", "(3.5,)"], "--shapes must look like"),
        (["bnderiv:tanh", "--shapes", "(-3,)"], "--shapes must look like"),
        (["bnderiv:tanh", "--shapes", "x"], "--shapes must look like"),
        (["bnderiv:tanh", "--shapes", ""], "--shapes must look like"),
        (["bnderiv:tanh", "--shapes", "(3,)", "--dtype", "float31"], "a dtype must be one such as float32"),
        (["bnderiv:tanh", "--shapes", "positive(3, around=1)"], "--shapes must look like"),
        (["no_such.py:f", "--shapes", "(3,)"], "there is no file 'no_such.py'"),
        (["bnderiv:tanh", "--shapes", "(3,)", "--argnums", "2"], "argnums must be positions"),
        (["bnderiv:tanh", "--shapes", "(3,)", "--kwargs", "eps=1"], "--kwargs must be a Python dict"),
        (["bnderiv:tanh", "--shapes", "(3,)", "--modes", "speed"], "modes must be among"),
        (["bnderiv:tanh"], "--shapes"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_as_a_program(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import jax\n"
        "def plain(x): return x ** 2\n"
        "f = jax.custom_vjp(plain)\n"
        "f.defvjp(lambda x: (x ** 2, x), lambda x, ct: (x * ct,))\n"
    )
    command = [sys.executable, "-m", "bnderiv.check", "mine:f", "--reference", "mine:plain", "--shapes", "(3,)"]
    root = str(bnderiv.__path__[0]).removesuffix("/bnderiv")
    flags = of_a_user().get("XLA_FLAGS", "")
    environment = {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu", "PATH": "", "XLA_FLAGS": flags}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "gradient" in done.stdout
    assert "FAIL" in done.stdout


def test_the_command_line_draws():
    single, double = _draw(_shapes("(3,),complex128(3)"), np.dtype("complex64"), 0)
    assert (single.dtype, double.dtype) == (jnp.complex64, jnp.complex128)
    assert (jnp.imag(single) != 0).all()
    assert (jnp.imag(double) != 0).all()
    text = "bf16(2,3),positive(50),uniform(50,low=2,high=3),int32(50,low=5,high=9),positive(3,dtype=f16)"
    half, positive, bounded, integers, both = _draw(_shapes(text), np.dtype("float32"), 0)
    assert (half.dtype, half.shape, both.dtype) == (jnp.bfloat16, (2, 3), jnp.float16)
    assert (positive > 0).all()
    assert ((bounded >= 2) & (bounded < 3)).all()
    assert ((integers >= 5) & (integers < 9)).all()


def test_the_command_line_takes_a_file(tmp_path, capsys):
    (tmp_path / "a_rule.py").write_text("import jax.numpy as jnp\ndef f(x): return jnp.log(x)\n")
    path = str(tmp_path / "a_rule.py")
    assert main([f"{path}:f", "--reference", f"{path}:f", "--shapes", "positive(3)", "--modes", "gradient"]) == 0
    assert main([f"{path}:f", "--shapes", "positive(3)", "--modes", "gradient"]) == 1
    assert "no reference: see finite differences" in capsys.readouterr().out
    assert main(["bnderiv:relu", "--shapes", "(3,)", "--modes", "linearity", "--expected", "clipped"]) == 1


def test_a_gradient_that_nothing_tells_does_not_pass():
    """Slopes of what is rounded to eight bits cannot be measured."""

    def forward(x):
        return jnp.tanh(x.astype(jnp.float8_e4m3fn).astype(x.dtype))

    f = rule(forward, lambda residuals, ct: (ct * (1 - jnp.tanh(residuals[0]) ** 2),))
    report = compare(f, None, X_W[0], modes=("structure", "finite_differences"))
    (row,) = report.failures
    assert row.note.startswith("nothing here tells whether it is right: no slope can be measured")
    assert compare(f, None, X_W[0], modes="structure").passed


def test_what_the_backend_cannot_run_is_no_failure():
    def bwd(residuals, ct):
        if isinstance(ct, Tracer):
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: this product")
        return (ct * jnp.cos(residuals[0]),)

    report = compare(rule(jnp.sin, bwd), None, X_W[0], modes=("vmap", "jit"))
    assert {row.verdict for row in report.rows} == {"n/a"}


def test_lines_have_their_own_precision():
    """Also in what is asked of them before anything is measured: the square of 1e30 is no float32."""
    x, cotangent = np.array([1e30]), np.ones(1)
    with jax.enable_x64(False):
        lines = Lines(lambda floats, _: (floats[0] ** 2,), (x,), (), (cotangent,), 2.0**-52, double=True)
        assert lines.weight == pytest.approx(1e60)


def test_a_reduction_by_a_function_of_its_own():
    """Without its casts f is measured by running its operations one by one; the function of a reduction is none."""

    def product(x):
        x = x.astype(jnp.bfloat16).astype(x.dtype)
        return jax.lax.reduce(x, np.ones((), x.dtype), lambda a, b: a * b * 1, (0,))

    f = rule(product, lambda residuals, ct: ((ct * residuals[0].prod(0))[None] / residuals[0],))
    report = compare(f, None, 1 + jnp.arange(6.0).reshape(2, 3), modes="finite_differences")
    report.raise_if_failed()
    assert "casts" in report.rows[0].note

    def total(x):
        return (jax.lax.reduce(x, np.zeros((), x.dtype), lambda a, b: a + b * 1, (0,)),)

    terms = jnp.array([1e8, 1.0, -1e8], jnp.float32)
    (found,) = roundings.measured(total, terms)
    assert 1 < found.spread < 1e2
