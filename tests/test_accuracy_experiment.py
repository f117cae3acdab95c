"""The accuracy experiment: its truth, its judgment, and what the command leaves. The peers need not be installed."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from bnderiv import reference
from experiments import _report
from experiments.accuracy import cases, judgment, libraries, pages, run
from tests.compiling import of_a_user

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CASES = {case.name: case for case in cases.all_cases(quick=True)}

# y and dx of ours: at most this far from the truth.
BOUNDS = {
    "mean 1e6": 1e-6,
    "outlier row 1e5": 2e-6,
    "mean 1, deviation 1e-3": 2e-6,
    "scale 1e18": 1e-6,
    "scale 1e20": 1e-6,
    "scale 1e30": 1e-6,
    "float16, 1e3 ± 100": 4e-4,
    "bfloat16, 1e3 ± 100": 3e-3,
    "float64, mean 1e4": 1e-13,
}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick command as a user starts it: its output, and its folder of results."""
    out = tmp_path_factory.mktemp("accuracy") / "results"
    command = [sys.executable, "-m", "experiments.accuracy.run", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=of_a_user(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done, out


def test_the_command_leaves_every_case_in_numbers_and_tables(quick):
    done, out = quick
    assert {path.name for path in out.iterdir()} == {"accuracy.json", "accuracy.md", "accuracy.png", "report.html"}
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((out / "accuracy.json").read_text())
    assert [row["case"] for row in content["rows"]] == list(CASES)
    assert content["seeds"] == [0]
    assert content["versions"]["jax"] == jax.__version__
    assert {"bnderiv", "plain jnp"} <= set(content["libraries"])
    assert sorted(content["libraries"] + content["absent"]) == sorted(libraries.MAKERS)
    for row in content["rows"]:
        assert list(row["outcomes"]) == content["libraries"]
        for outcomes in row["outcomes"].values():
            assert {name: len(values) for name, values in outcomes.items()} == dict.fromkeys(
                [*judgment.QUANTITIES, "running"], 1
            )
    tables = (out / "accuracy.md").read_text()
    assert tables == _report.markdown(pages.tables(content))
    for name in CASES:
        assert f"| {name} | " in tables  # the summary
        size = "×".join(map(str, CASES[name].shape))
        assert tables.count(f"| {name}, {size} |") == 4 + (CASES[name].group == "degenerate")  # y, dx, dγ, dβ, running
    for name in content["absent"]:
        assert f"{name} is not installed" in done.stdout
        assert name in tables.splitlines()[0]
    assert "mean 1e4" in done.stdout


def test_ours_is_within_its_bounds(quick):
    _, out = quick
    rows = {row["case"]: row["outcomes"]["bnderiv"] for row in json.loads((out / "accuracy.json").read_text())["rows"]}
    wrong = {}
    for name, ours in rows.items():
        running = {"mask all False": "unchanged", "NaN in one channel": "NaN in 1 of 84"}.get(name, "updated")
        errors = [ours["y"][0], ours["dx"][0]]
        right = all(isinstance(error, float) and error <= BOUNDS.get(name, 2e-7) for error in errors)
        if not right or ours["running"] != [running]:
            wrong[name] = ours
    assert rows.keys() == CASES.keys()
    assert wrong == {}


def test_exact_where_nothing_is_left_to_round(quick):
    _, out = quick
    rows = {row["case"]: row["outcomes"]["bnderiv"] for row in json.loads((out / "accuracy.json").read_text())["rows"]}
    assert rows["constant 1234.567"]["y"] == [0.0]
    assert rows["one element per channel"]["y"] == rows["one element per channel"]["dx"] == [0.0]


def test_redraw_makes_the_same_table_from_the_numbers(quick, tmp_path):
    _, out = quick
    (tmp_path / "accuracy.json").write_bytes((out / "accuracy.json").read_bytes())
    run.main(["--redraw", "--out", str(tmp_path)])
    for file in out.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file


def test_the_full_run_has_every_shape():
    drawn = {(case.name, case.shape) for case in cases.all_cases()}
    for shape in ((32, 28, 28, 6), (64, 84), (256, 32, 32, 8)):
        names = [f"mean {mean}" for mean in ("0", "1", "1e2", "1e3", "1e4", "1e6")]
        names += ["outlier row 1e5", "mean 1, deviation 1e-3", "scale 1e18", "scale 1e20", "scale 1e30"]
        assert {(name, shape) for name in names} <= drawn
    assert ("1e7 rows, mean 1", (10**7, 1)) in drawn
    assert len(run.SEEDS) == 5


@pytest.mark.parametrize("mask", ["", "some", "all False"])
def test_the_truth_is_what_autodiff_makes_of_the_definition(mask):
    case = cases.Case("", "", (9, 5, 4, 3), lambda rng, shape: 2 + rng.standard_normal(shape), "float64", mask)
    arrays = cases.inputs(case, 0)
    if mask:
        arrays["dy"] = np.random.default_rng(1).standard_normal(case.shape)  # also at False places
        assert arrays["mask"].any() == (mask == "some")
        assert not arrays["mask"].all()
    y, pull_back = jax.vjp(
        lambda *a: reference.batch_norm(*a, eps=cases.EPS, where=arrays.get("mask"))[0],
        *(arrays[name] for name in ("x", "gamma", "beta")),
    )
    right = cases.truth(arrays)
    for name, value in zip(("y", "dx", "dgamma", "dbeta"), (y, *pull_back(arrays["dy"])), strict=True):
        assert right[name].dtype == np.longdouble
        np.testing.assert_allclose(right[name].astype(float), value, rtol=1e-10, atol=1e-12)


def test_the_truth_beyond_float64_autodiff():
    """A constant channel gives β, and NaN that no loss looks at reaches no gradient, to the last bit."""
    arrays = cases.inputs(CASES["constant 1234.567"], 0)
    np.testing.assert_array_equal(cases.truth(arrays)["y"], np.broadcast_to(arrays["beta"], arrays["x"].shape))
    arrays = cases.inputs(CASES["NaN under a mask"], 0)
    right = cases.truth(arrays)
    assert np.isnan(arrays["x"]).any()
    assert all(np.isfinite(right[name]).all() for name in ("dx", "dgamma", "dbeta"))
    arrays["x"] = np.where(arrays["mask"], arrays["x"], np.float32(0))
    for name, value in cases.truth(arrays).items():
        where = np.broadcast_to(arrays["mask"], value.shape) if name == "y" else np.ones(value.shape, bool)
        np.testing.assert_array_equal(right[name][where], value[where])


def test_outcomes():
    def single(values):
        return np.array(values, np.float32)

    right = np.array([3.0, 4.0], np.longdouble)
    assert judgment.outcome(single([3, 4]), right) == 0.0
    assert judgment.outcome(np.array([3, 4.5]), right) == pytest.approx(0.1)
    assert judgment.outcome(single([3e30, 5e30]), right * np.longdouble(1e30)) == pytest.approx(0.2)
    assert judgment.outcome(single([np.nan, 4]), right) == "NaN"
    assert judgment.outcome(single([np.inf, 4]), right) == "inf"
    assert judgment.outcome(single([0, 0]), right) == "all zeros"
    assert judgment.outcome(single([0, 0]), 0 * right) == 0.0
    assert judgment.outcome(single([0, -0.5]), 0 * right) == "5.0e-1 for 0"
    assert judgment.outcome(single([1, 2]), right, single([1, 2])) == "β (x̂ lost)"
    assert judgment.outcome(single([3, 4]), right, single([3, 4])) == 0.0
    unknown = np.array([3.0, np.nan], np.longdouble)
    assert judgment.outcome(single([3, np.nan]), unknown) == 0.0
    assert judgment.outcome(single([3, 0]), unknown) == "a number for NaN"


def test_a_library_that_refuses_or_fails_is_named():
    arrays = cases.inputs(CASES["one element per channel"], 0)
    right = cases.truth(arrays)

    def no_mask(arrays):
        raise libraries.Cannot("no mask")

    def fails(arrays):
        raise ValueError("Expected more than 1 value: per channel")

    assert set(judgment.judged(arrays, right, no_mask).values()) == {"no mask"}
    assert {judgment.shown(value) for value in judgment.judged(arrays, right, fails).values()} == {"ValueError"}


def test_an_absent_library_is_left_out(monkeypatch):
    def absent():
        raise ModuleNotFoundError

    monkeypatch.setattr(libraries, "MAKERS", {"plain jnp": libraries.MAKERS["plain jnp"], "Flax": absent})
    installed, missing = libraries.installed_libraries()
    assert list(installed) == ["plain jnp"]
    assert missing == ["Flax"]


def test_what_is_no_number_ranks_as_worst():
    assert judgment.summary([3e-7, 1e-7, 2e-7]) == (2e-7, 3e-7)
    assert judgment.summary(["NaN", 1e-7, 2e-7]) == (2e-7, "NaN")
    assert judgment.summary(["NaN", 1e-7, "NaN"]) == ("NaN", "NaN")
    assert judgment.summary(["1.5e1 for 0", "8.4e0 for 0", 0.0]) == ("8.4e0 for 0", "1.5e1 for 0")
    assert pages.median_and_worst([3e-7, 1e-7, 2e-7]) == "2.0e-7 (3.0e-7)"
    assert pages.median_and_worst(["NaN"] * 3) == "NaN"
    assert pages.worst_pair({"y": [0.0, 0.0], "dx": [0.0, 0.0]}) == "exact"
    assert pages.worst_pair({"y": ["β (x̂ lost)"], "dx": ["all zeros"]}) == "β (x̂ lost) / all zeros"


def test_standing_counts_losses():
    def row(ours, other):
        return {"case": "c", "shape": [2, 3], "outcomes": {"bnderiv": {"y": [ours]}, "Flax": {"y": [other]}}}

    rows = [row(0.0, 0.0), row(1e-7, 2e-7), row(1e-7, "NaN"), row(3e-7, 1e-7), row(1.4e-7, 1e-7)]
    assert pages.standing(rows, "y") == ["3 of 5", "4 of 5", "4 of 5", "3.0e-7, Flax 1.0e-7: c, 2×3"]
    assert pages.standing(rows[:3], "y") == ["3 of 3", "3 of 3", "3 of 3", "none"]
    assert pages.standing([*rows, row("NaN", 1e-2)], "y")[3] == "NaN, Flax 1.0e-2: c, 2×3"


def test_inputs_are_rounded_once_and_drawn_anew_for_each_seed():
    for case in CASES.values():
        arrays = cases.inputs(case, 0)
        assert arrays["x"].shape == case.shape
        assert {a.dtype.name for name, a in arrays.items() if name != "mask"} == {case.dtype}
    case = CASES["mean 1e4"]
    assert (cases.inputs(case, 0)["x"] != cases.inputs(case, 1)["x"]).any()
    np.testing.assert_array_equal(cases.inputs(case, 1)["x"], cases.inputs(case, 1)["x"])
    assert abs(cases.inputs(case, 0)["x"].astype(float).mean() - 1e4) < 4 / math.sqrt(64 * 84)
