"""What a report says: where, how far off, who is right, and what a rule returns on purpose."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv.check import compare
from tests.check.rules import rule

pytestmark = pytest.mark.slow

X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
FORMULA = ("gradient", "finite_differences")


def failed(report):
    return {row.check for row in report.failures}


@pytest.mark.few(0, 2)
@pytest.mark.parametrize("reference", [jnp.sin, None], ids=["reference", "alone"])
@pytest.mark.parametrize("size", [5, 1000])
def test_the_place_of_a_single_wrong_element(reference, size):
    x = jnp.linspace(0.1, 1.0, size)
    for wrong in (jnp.nan, 7.0):
        f = rule(jnp.sin, lambda res, ct, wrong=wrong: ((ct * jnp.cos(res[0])).at[2].set(wrong),))
        (row,) = compare(f, reference, x, modes="gradient" if reference else "finite_differences").failures
        assert row.index == (2,)
        assert f"got {'nan' if np.isnan(wrong) else 7}" in row.note


def test_as_many_digits_as_tell_two_numbers_apart():
    f = rule(jnp.sin, lambda res, ct: (ct * jnp.cos(res[0]) * (1 + 1e-8),))
    (row,) = compare(f, jnp.sin, X, modes="gradient").failures
    got, expected = row.note.split(";")[0].removeprefix("got ").split(", expected ")
    assert got != expected
    assert float(got) == pytest.approx(float(expected), rel=1e-7)


def test_failures_come_first_and_the_summary_names_one():
    f = rule(jnp.sin, lambda res, ct: (ct * 2,))
    report = compare(f, jnp.sin, X, modes=("value", "structure", "gradient"))
    assert "FAIL" in str(report).splitlines()[2]
    assert report.summary().endswith("FAILED: gradient of x")
    assert "primal: f(x); fwd:" in str(report)


def test_who_is_right():
    def forward(x):
        return jnp.where(x == 0, 0.0, x * jnp.log(jnp.where(x == 0, 1.0, x)) + x)

    right = rule(forward, lambda res, ct: (ct * (jnp.log(res[0]) + 2),))
    wrong = rule(forward, lambda res, ct: (ct * (jnp.log(res[0]) + 1),))
    x = jnp.array([0.5, 2.0])
    assert compare(right, forward, x, modes="gradient").passed
    (row,) = compare(wrong, forward, x, modes="gradient").failures
    assert "differences of f agree with the reference" in row.note
    # The slope of x·log(y) by x at x = 0, which autodiff loses in the branch that `where` takes.
    xlogy = jax.jit(lambda x, y: jnp.where(x == 0, 0.0, x * jnp.log(y)))
    good = rule(xlogy, lambda res, ct: (ct * jnp.log(res[1]), ct * res[0] / res[1]))
    row = compare(good, xlogy, jnp.zeros(1), jnp.full(1, 2.0), modes="gradient").rows[0]
    assert (row.verdict, row.argument) == ("ok", "x")
    assert "autodiff of the reference is wrong here" in row.note


@pytest.mark.few(0, 1)
@pytest.mark.parametrize(
    ("forward", "bwd", "kind", "words"),
    [
        (jnp.sin, lambda res, ct: (-ct * jnp.cos(res[0]),), "scaled", "reversed"),
        (jnp.sin, lambda res, ct: (8 * ct * jnp.cos(res[0]),), "scaled", "8 times the gradient"),
        (lambda x: jnp.round(x), lambda res, ct: (ct,), "straight-through", "passes its cotangent on"),
        (jnp.sin, lambda res, ct: (jnp.clip(ct * jnp.cos(res[0]), -0.1, 0.1),), "clipped", "clipped"),
    ],
    ids=["reversed", "scaled", "straight-through", "clipped"],
)
@pytest.mark.parametrize("alone", [False, True])
def test_what_is_no_gradient_on_purpose(forward, bwd, kind, words, alone):
    f, reference = rule(forward, bwd), None if alone else forward
    modes = (*FORMULA, "linearity") if alone else ("gradient", "linearity")
    report = compare(f, reference, X, modes=modes)
    row = report.failures[0]
    assert words in row.note
    assert row.note.endswith(f'expected="{kind}"')
    assert compare(f, reference, X, modes=modes, expected=kind).passed
    other = "clipped" if kind == "scaled" else "scaled"
    assert "expected" in failed(compare(f, reference, X, modes=modes, expected=other))
    with pytest.raises(ValueError, match="expected must be one of scaled"):
        compare(f, reference, X, expected="right")


def test_what_was_expected_and_is_not_there_fails():
    assert failed(compare(jnp.sin, jnp.sin, X, modes="gradient", expected="clipped")) == {"expected"}


def test_an_error_in_one_mode_is_one_row():
    def bwd(res, ct):
        return (ct * jnp.cos(res[0]) if float(ct.sum()) else ct,)

    report = compare(rule(jnp.sin, bwd), jnp.sin, X, modes=("gradient", "jit", "vmap"))
    assert [row.mode for row in report.failures] == ["jit", "vmap"]
    assert all("test_messages.py" in row.note for row in report.failures)


def test_the_checker_alone():
    """Without the layers: a package of the same name that has nothing but its place."""
    code = (
        "import sys, types; p = types.ModuleType('bnderiv'); p.__path__ = [sys.argv[1]]; sys.modules['bnderiv'] = p; "
        "import bnderiv.check, jax.numpy as jnp; "
        "assert bnderiv.check.compare(jnp.sin, jnp.sin, jnp.ones(2), modes='gradient').passed; "
        "print([m for m in sys.modules if m.startswith('bnderiv.') and not m.startswith('bnderiv.check')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bnderiv.__path__[0]], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr
