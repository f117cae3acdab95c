"""docs/from_the_tutorials.md: every function it names is in the file it names, every step has the label it gives."""

import inspect
import re
import typing
from pathlib import Path

import pytest

from bnderiv import steps

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "from_the_tutorials.md"
ROW = re.compile(
    r"^\|[^|]*\|[^|]*\| (?P<labels>\([A-Z]\d.*?) \| (?P<function>[^|]*) \| (?P<step>[^|]*)\|$", re.MULTILINE
)
ROWS = [m.groupdict() for m in ROW.finditer(PAGE.read_text())]
NORMALIZE = "../bnderiv/normalization/normalize.py"
pytestmark = pytest.mark.fast


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["labels"])
def test_a_row_leads_to_the_code(row):
    file = re.search(r"\]\(([^)]*)\)", row["function"])
    name = re.findall(r"`(\w+)`", row["function"])[-1]
    if not file and name in dir(steps):
        return
    source = (PAGE.parent / (file[1] if file else NORMALIZE)).read_text()
    assert re.search(rf"^def {name}\(", source, re.MULTILINE)


@pytest.mark.parametrize("row", [row for row in ROWS if row["step"].strip()], ids=lambda row: row["labels"])
def test_a_step_has_the_label_of_its_row(row):
    function, _, field = row["step"].strip(" `").partition(".")
    compute = getattr(steps, function)
    if not field:
        assert any(label in compute.__doc__ + inspect.getsource(compute) for label in labels(row))
        return
    kind = inspect.signature(compute, eval_str=True).return_annotation
    about = typing.get_type_hints(kind, include_extras=True)[field].__metadata__
    assert set(labels(row)) & set(re.findall(r"[A-Z]\d+", " ".join(about)))


def labels(row):
    return re.findall(r"[A-Z]\d+", row["labels"])


def test_it_has_every_document():
    assert len(ROWS) > 40
    assert {label[0] for row in ROWS for label in labels(row)} == set("NLSAPC")
