"""The pictures of the derivations show the numbers of the code as it is, and each is in a page."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="drawing is in the extra `experiments`")

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"


def said(path):
    """The texts of a picture: matplotlib writes each as a comment beside its outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_they_are_drawn_again_with_the_same_numbers(tmp_path):
    command = [sys.executable, "docs/pictures/draw.py", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}, check=True, timeout=300)
    fresh, committed = (sorted(path.name for path in folder.glob("*.svg")) for folder in (tmp_path, PICTURES))
    assert fresh == committed
    for name in fresh:
        assert said(tmp_path / name) == said(PICTURES / name)


def test_each_is_in_a_page_and_says_something():
    pages = "".join(path.read_text() for path in ROOT.glob("bnderiv/*/derivation.md"))
    for path in PICTURES.glob("*.svg"):
        assert f"docs/pictures/{path.name})" in pages
        assert len(said(path)) > 10


@pytest.mark.slow
def test_no_label_of_the_graph_runs_into_an_arrow():
    from matplotlib.path import Path

    spec = importlib.util.spec_from_file_location("draw", PICTURES / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    figure = draw.graph()
    figure.canvas.draw()
    (axes,) = figure.axes
    ends = [patch._posA_posB for patch in axes.patches if hasattr(patch, "_posA_posB")]
    arrows = [Path(points).transformed(axes.transData) for points in ends]
    labels = [text for text in axes.texts if len(text.get_text()) > 1]
    assert len(arrows) == 14
    assert len(labels) > 30
    for text in labels:
        box = text.get_window_extent()
        assert not any(arrow.intersects_bbox(box, filled=False) for arrow in arrows), text.get_text()
