"""The pictures of the derivations show the numbers of the code as it is, and each is in a page."""

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
