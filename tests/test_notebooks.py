"""The notebooks say what they said when they were committed: each is run in a kernel as a newcomer has it."""

import base64
import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebooks' tools are in the extra `notebooks`")
pytest.importorskip("nbclient", reason="the notebooks' tools are in the extra `notebooks`")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
ROUNDING = 1e-5  # of two smaller numbers it only matters that they are


def outputs(notebook, kind):
    """(id of the cell, output) of one kind: "text" or "picture"."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if kind == "picture" and "image/png" in data:
                found.append((cell.id, data["image/png"]))
            text = output.get("text", data.get("text/html", data.get("text/plain")))
            if kind == "text" and "image/png" not in data and text is not None:
                found.append((cell.id, text))
    return found


def said(text):
    """The words of an output, and its numbers; of a report's row that is ok, only what was checked."""
    if "<table>" in text:
        rows = re.sub(r"</(tr|p)>", "\n", text)
        text = html.unescape(re.sub(r"<[^>]*>", " ", rows))
    lines = [re.sub(r"^(.* (?:ok|kink)) .*$", r"\1", " ".join(line.split()) + " ") for line in text.splitlines()]
    text = " ".join(line for line in lines if not re.fullmatch(r"[- ]*", line))
    return " ".join(NUMBER.sub("#", text).split()), [float(n.replace("−", "-")) for n in NUMBER.findall(text)]


def differences(committed, fresh):
    """What the two notebooks do not say alike."""
    if [cell.source for cell in committed.cells] != [cell.source for cell in fresh.cells]:
        return ["another source"]
    found = []
    mine, theirs = outputs(committed, "text"), outputs(fresh, "text")
    if [cell for cell, _ in mine] != [cell for cell, _ in theirs]:
        return [f"text in other cells: {[cell for cell, _ in mine]}, {[cell for cell, _ in theirs]}"]
    for (cell, before), (_, now) in zip(mine, theirs, strict=True):
        (words, numbers), (new_words, new_numbers) = said(before), said(now)
        close = len(numbers) == len(new_numbers) and all(
            abs(a - b) <= 0.02 * abs(a) or max(abs(a), abs(b)) < ROUNDING
            for a, b in zip(numbers, new_numbers, strict=True)
        )
        if words != new_words or not close:
            found.append(f"cell {cell} said\n{before}\nand says\n{now}")
    if [cell for cell, _ in outputs(committed, "picture")] != [cell for cell, _ in outputs(fresh, "picture")]:
        found.append("pictures in other cells")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_says_what_it_said(name, tmp_path):
    command = [sys.executable, "-m", "experiments.notebooks.run", name, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    committed, fresh = (nbformat.read(folder / f"{name}.ipynb", as_version=4) for folder in (FOLDER, tmp_path))
    assert differences(committed, fresh) == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_light_and_holds_nothing_of_the_machine(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 250_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert cell.metadata == {}, cell.id
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    said_by_all = "\n".join(text for _, text in outputs(notebook, "text"))
    assert not re.search(r"/tmp|/home|/root|site-packages|Warning|Traceback|0x[0-9a-f]{6}", said_by_all)
    pictures = outputs(notebook, "picture")
    assert len(pictures) >= 2
    for _, picture in pictures:
        assert base64.b64decode(picture).startswith(b"\x89PNG")


def test_differences_are_seen():
    path = FOLDER / "naive_variance.ipynb"
    committed = nbformat.read(path, as_version=4)
    assert differences(committed, committed) == []
    for before, now in (("0.6667", "0.7667"), ("definition", "Definition"), ("True", "False")):
        other = nbformat.read(path, as_version=4)
        changed = [o for cell in other.cells for o in cell.get("outputs", ()) if before in o.get("text", "")]
        changed[0]["text"] = changed[0]["text"].replace(before, now)
        assert len(differences(committed, other)) == 1
    other = nbformat.read(path, as_version=4)
    next(cell for cell in other.cells if cell.get("outputs"))["outputs"] = []
    assert len(differences(committed, other)) == 1
    other.cells[0].source += "!"
    assert differences(committed, other) == ["another source"]


def test_of_a_report_the_verdicts_count_and_the_rounding_does_not():
    row = "gradient  x  {}  {}  1.0e-04  (3, 2)\n"
    assert said(row.format("ok", "5.8e-08")) == said(row.format("ok", "6.1e-08"))
    assert said(row.format("ok", "5.8e-08")) != said(row.format("FAIL", "5.8e-08"))
    assert said(row.format("FAIL", "2.8e-01")) != said(row.format("FAIL", "3.8e-01"))
    cells = "<table><tr><td>gradient</td><td>x</td><td>{}</td><td>{}</td></tr></table><p>39 checks</p>"
    assert (
        said(cells.format("ok", "5.8e-08")) == said(cells.format("ok", "6.1e-08")) == ("gradient x ok # checks", [39])
    )
    assert said(cells.format("ok", "5.8e-08")) != said(cells.format("FAIL", "5.8e-08"))
