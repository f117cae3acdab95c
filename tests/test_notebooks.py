"""The notebooks say what they said when they were committed: each is run in a kernel as a newcomer has it.

But that it compiles quickly.
"""

import base64
import html
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebooks' tools are in the extra `notebooks`")
pytest.importorskip("nbclient", reason="the notebooks' tools are in the extra `notebooks`")

from experiments.notebooks import run
from tests.compiling import of_a_user

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"([-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)( ulp)?")
ULP = 2.0**-24
ROUNDING = 1e-6  # below it two numbers differ by the platform's roundings


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
    """The words of an output, and its numbers; of a row that passed not where its largest rounding is."""
    if "<table>" in text:
        rows = re.sub(r"</(tr|p)>", "\n", text)
        text = html.unescape(re.sub(r"<[^>]*>", " ", rows))
    lines = [re.sub(r"^(.* (?:ok|kink) .*?)\([\d, ]+\)$", r"\1", " ".join(line.split())) for line in text.splitlines()]
    text = " ".join(line for line in lines if not re.fullmatch(r"[- ]*", line))
    numbers = [float(n.replace("−", "-")) * (ULP if ulp else 1) for n, ulp in NUMBER.findall(text)]
    return " ".join(NUMBER.sub("#", text).split()), numbers


def alike(before, now):
    """Whether two outputs say the same, to 2 % of each number."""
    (words, numbers), (new_words, new_numbers) = said(before), said(now)
    return words == new_words and all(
        abs(a - b) <= 0.02 * abs(a) or max(abs(a), abs(b)) < ROUNDING for a, b in zip(numbers, new_numbers, strict=True)
    )


def differences(committed, fresh):
    """What the two notebooks do not say alike."""
    if [cell.source for cell in committed.cells] != [cell.source for cell in fresh.cells]:
        return ["another source"]
    found = []
    mine, theirs = outputs(committed, "text"), outputs(fresh, "text")
    if [cell for cell, _ in mine] != [cell for cell, _ in theirs]:
        return [f"text in other cells: {[cell for cell, _ in mine]}, {[cell for cell, _ in theirs]}"]
    for (cell, before), (_, now) in zip(mine, theirs, strict=True):
        if not alike(before, now):
            found.append(f"cell {cell} said\n{before}\nand says\n{now}")
    if [cell for cell, _ in outputs(committed, "picture")] != [cell for cell, _ in outputs(fresh, "picture")]:
        found.append("pictures in other cells")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "naive_variance" else pytest.mark.exhaustive) for n in NOTEBOOKS]
)
def test_it_says_what_it_said(name, tmp_path, monkeypatch):
    kernel = run.kernel_environment()
    monkeypatch.setattr(run, "kernel_environment", lambda: kernel | {"XLA_FLAGS": of_a_user().get("XLA_FLAGS", "")})
    run.main([name, "--out", str(tmp_path)])
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


ROW = "gradient  x  {}  {}  {}  {}\n"
CELLS = (
    "<table><tr><td>gradient</td><td>x</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr></table><p>39 checks</p>"
)


@pytest.mark.parametrize("form", [ROW, CELLS], ids=["text", "table"])
def test_the_numbers_of_a_report_count_and_its_roundings_do_not(form):
    passed, failed = ("ok", "5.8e-08", "1.0e-04", "(3, 2)"), ("FAIL", "2.8e-01", "1.0e-04", "(3, 2)")
    assert alike(form.format(*passed), form.format("ok", "2.1e-07", "1.0e-04", "(0)"))
    assert alike(form.format("ok", "0.8 ulp", "32 ulp", "(1)"), form.format("ok", "1.9 ulp", "32 ulp", "(0)"))
    assert alike(form.format(*failed), form.format("FAIL", "2.81e-01", "1.0e-04", "(3, 2)"))
    for other in (
        ("FAIL", "5.8e-08", "1.0e-04", "(3, 2)"),  # another verdict
        ("ok", "5.8e-06", "1.0e-04", "(3, 2)"),  # a hundred roundings
        ("ok", "5.8e-08", "1.0e-03", "(3, 2)"),  # another tolerance
    ):
        assert not alike(form.format(*passed), form.format(*other))
    for other in (("FAIL", "3.8e-01", "1.0e-04", "(3, 2)"), ("FAIL", "2.8e-01", "1.0e-04", "(3, 1)")):
        assert not alike(form.format(*failed), form.format(*other))
    assert not alike(form.format("ok", "0.8 ulp", "32 ulp", ""), form.format("ok", "28 ulp", "32 ulp", ""))


def test_a_number_that_is_gone_is_seen():
    assert not alike("error 1.0 of 2.0", "error 1.0 of")
