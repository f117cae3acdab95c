"""The experiment on the other norms, on small shapes: its numbers, its files, and what they say."""

import json

import jax
import pytest

pytest.importorskip("flax", reason="compares with Flax")
pytest.importorskip("matplotlib", reason="draws")

from experiments.norms import run

pytestmark = pytest.mark.slow


def test_small_shapes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run.allocator, "start_again", lambda keeping: None)  # it would start the tests again
    monkeypatch.setattr(run, "OF_ERRORS", dict.fromkeys(run.SHAPES, (4, 6, 6, 64)))
    monkeypatch.setattr(run, "COMPILED", run.COMPILED[:1])
    monkeypatch.setattr(run, "SHAPES", {name: shapes[:1] for name, shapes in run.SHAPES.items()})
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Flax's batch norm needs both
        run.main(["--quick", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"norms.json", "norms.md", "norms.png", "report.html"}
    content = json.loads((tmp_path / "norms.json").read_text())
    for row in content["errors"]:
        assert max(row["errors"]["bnderiv"]) < 2e-7, row
    far = [row["errors"]["Flax"] for row in content["errors"] if row["input"] == "mean 10000"]
    assert sum(None in pair or max(pair) > 1e-2 for pair in far) == 3  # RMS norm has no mean to lose
    assert all(set(row["times"]) == {"bnderiv", "Flax", "plain autodiff"} for row in content["times"])
    assert all(min(row["seconds"]["bnderiv"]) > 0 for row in content["compiled"])
    assert {row["norm"] for row in content["compiled"]} == set(run.COMPILED)
    drawn = (tmp_path / "norms.md").read_bytes()
    run.main(["--redraw", "--out", str(tmp_path)])
    assert (tmp_path / "norms.md").read_bytes() == drawn
    assert str(tmp_path / "report.html") in capsys.readouterr().out
