"""The formulas of the pages reach the reader: what CommonMark makes of a page leaves its mathematics as it was written.

GitHub reads a page as CommonMark first and typesets afterwards. Between bare dollars an underscore becomes emphasis and
`\\\\` one backslash, so a page writes ```` ```math ```` and `` $`…`$ ``. Notebooks know dollars only, and some viewers
read them as CommonMark too: there the formula itself must survive.
"""

import json
import re
from pathlib import Path

import jax
import pytest

from bnderiv.normalization.steps import BatchNormGraph
from bnderiv.steps.table import fields

markdown_it = pytest.importorskip("markdown_it", reason="the parser of the pages is in the extra `test`")
pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.parent for path in ROOT.glob("bnderiv/*/derivation.md"))
PAGES = sorted(
    path
    for folder in ("bnderiv", "docs", "experiments", ".")
    for path in (ROOT.glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md"))
)
NOTEBOOKS = sorted((ROOT / "experiments").rglob("*.ipynb"))
MARKDOWN = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])

(REPOSITORY,) = re.findall(r'Homepage = "https://github.com/(.+)"', (ROOT / "pyproject.toml").read_text())
BLOB, RAW = f"https://github.com/{REPOSITORY}/blob/main/", f"https://raw.githubusercontent.com/{REPOSITORY}/main/"

FENCE = re.compile(r"^ *```math\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$`([^`]+)`\$")
DOLLARS = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.DOTALL)
CODE = re.compile(r"^ *```.*?^ *```$|(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WITH_CODE = ("derivation.md", "faq.md", "from_the_tutorials.md", "accelerators.md")
ON_PAPER = re.compile(r"On paper only:([^.]*)\.")
LABEL = re.compile(r"\\tag\{([A-Z]\d+)\}")


def name(path):
    return str(path.relative_to(ROOT))


def written(source):
    """(displayed formulas, inline formulas, the rest of the page without code)."""
    fenced = FENCE.findall(source)
    rest = FENCE.sub("", source)
    inline = INLINE.findall(rest)
    return fenced, inline, CODE.sub("", INLINE.sub("", rest))


def as_read(source):
    """The page as CommonMark reads it, in which anything but text, code and paragraphs is a mark ⟦…⟧."""
    pieces = []
    for token in MARKDOWN.parse(source):
        if token.type == "fence":
            closed = source.split("\n")[token.map[1] - 1].strip().startswith("```") and token.map[1] - token.map[0] > 1
            pieces.append(f"```{token.info}\n{token.content}```\n" if closed else "⟦a fence that is never closed⟧")
        elif token.type == "inline":
            for child in token.children or ():
                match child.type:
                    case "text" | "text_special":
                        pieces.append(child.content)
                    case "code_inline":
                        pieces.append(f"`{child.content}`")
                    case "softbreak":
                        pieces.append("\n")
                    case _:
                        pieces.append(f"⟦{child.type}⟧")
            pieces.append("\n\n")
        elif not token.type.startswith("paragraph"):
            pieces.append(f"⟦{token.type}⟧\n")
    return "".join(pieces)


def words(formulas):
    return [" ".join(formula.split()) for formula in formulas]


def faults_of_a_page(source):
    """What of the page's mathematics does not arrive, and mathematics in a form that may not."""
    fenced, inline, rest = written(source)
    read = as_read(source)
    got_fenced, got_inline, got_rest = written(read)
    found = [f"lost or changed: {f}" for f in words(fenced + inline) if f not in words(got_fenced + got_inline)]
    found += ["a fence that is never closed"] if "never closed" in read else []
    found += [f"a bare dollar: {line.strip()}" for line in rest.split("\n") if "$" in line]
    found += [f"TeX outside of mathematics: {m}" for m in re.findall(r"\\[A-Za-z]+", got_rest)]
    return found + [fault for formula in fenced + inline for fault in faults_of_tex(formula)]


def dollars(text):
    return words(a or b for a, b in DOLLARS.findall(CODE.sub("", text)))


def faults_of_a_cell(source):
    """What CommonMark takes from the mathematics of a notebook's cell."""
    before, after = dollars(source), dollars(as_read(source))
    found = [f"lost or changed: {formula}" for formula in before if formula not in after]
    found += ["an odd number of dollars"] if CODE.sub("", source).count("$") % 2 else []
    return found + [fault for formula in before for fault in faults_of_tex(formula)]


def faults_of_tex(formula):
    """Braces and environments that do not close, matrices whose rows are lost or of unequal length."""
    found = []
    plain = re.sub(r"\\[{}\\]", "  ", formula)
    if plain.count("{") != plain.count("}"):
        found.append(f"braces: {formula}")
    if sorted(re.findall(r"\\begin\{(\w+)\}", formula)) != sorted(re.findall(r"\\end\{(\w+)\}", formula)):
        found.append(f"environments: {formula}")
    left, right = (len(re.findall(rf"\\{side}(?![A-Za-z])", formula)) for side in ("left", "right"))
    if left != right:
        found.append(f"left without right: {formula}")
    for body in re.findall(r"\\begin\{p?matrix\}(.*?)\\end\{p?matrix\}", formula, re.DOTALL):
        rows = re.split(r"\\\\|\\cr\b", body)
        if len({row.count("&") for row in rows if row.strip()}) > 1 or re.search(r"\\(?=\s)", " ".join(rows)):
            found.append(f"rows of a matrix: {body}")
    return found


def cells(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            yield "".join(cell["source"])


@pytest.mark.few(10)
@pytest.mark.parametrize("path", PAGES, ids=name)
def test_a_page_shows_its_formulas(path):
    assert faults_of_a_page(path.read_text()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_notebook_shows_its_formulas(path):
    assert [fault for cell in cells(path) for fault in faults_of_a_cell(cell)] == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (r"$$" "\n" r"\sum _{x}\sum _{y} w_{x}" "\n$$", "a bare dollar"),
        ("```math\na_b\n", "never closed"),
        ("```math\n\\begin{pmatrix} 1 & 2 \\ 3 & 4 & 5 \\\\ 6 \\end{pmatrix}\n```", "rows of a matrix"),
        ("the `x`, and \\frac12", "TeX outside"),
        ("$`a\n- b`$", "lost or changed"),
        ("$`a \\left( b`$", "without"),
        ("$`a_{b`$", "braces"),
        ("$`\\begin{matrix} 1`$", "environments"),
    ],
)
def test_a_fault_of_a_page_is_seen(source, fault):
    assert any(fault in found for found in faults_of_a_page(source)), faults_of_a_page(source)


@pytest.mark.parametrize(
    "source",
    [
        r"$$\sum _{x} w_{x}$$",  # emphasis
        "$$\n\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}\n$$",  # a backslash
        r"$a\,b$",  # another
        "$$\na\n- b\n$$",  # a list
        "$[a](b)$",  # a link
        "$a$ costs $1 more",
    ],
)
def test_a_fault_of_a_cell_is_seen(source):
    assert faults_of_a_cell(source) != []


@pytest.mark.parametrize("path", PAGES + NOTEBOOKS, ids=name)
def test_links_lead_somewhere(path):
    source = path.read_text() if path.suffix == ".md" else "\n\n".join(cells(path))
    source = CODE.sub("", INLINE.sub("", FENCE.sub("", source)))
    for target in re.findall(r"\]\(([^)\s]+)\)", source):
        address, base = target, path.parent
        if path.suffix == ".ipynb":  # Colab opens one file alone, so its links name the repository
            assert re.match(r"https:", target), target
            start = RAW if target.endswith(".svg") else BLOB
            address, base = target.removeprefix(start), ROOT
        if re.match(r"[a-z]+:", address):
            assert path.suffix == ".md" or not re.match(rf"https://(github|raw\.)\S*{REPOSITORY}/", address), target
            continue
        file, _, anchor = address.partition("#")
        found = (base / file).resolve() if file else path
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found.read_text()), target


def anchors(source):
    """The ids GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.*)$", CODE.sub(lambda m: m[0].strip("`") if "\n" not in m[0] else "", source), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_label_is_defined_once():
    labels = [label for room in ROOMS for label in LABEL.findall((room / "derivation.md").read_text())]
    assert len(labels) > 75
    assert sorted(labels) == sorted(set(labels))


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_a_label_stands_beside_its_line_or_the_page_says_that_it_does_not(room):
    page = (room / "derivation.md").read_text()
    lines = "\n".join([*(path.read_text() for path in room.rglob("*.py")), *PYTHON.findall(page)])
    listed = {label for sentence in ON_PAPER.findall(page) for label in re.findall(r"[A-Z]\d+", sentence)}
    assert {label for label in LABEL.findall(page) if not re.search(rf"(?<![–\w]){label}(?![–\d])", lines)} == listed


@pytest.mark.parametrize("path", [path for path in PAGES if path.name in WITH_CODE], ids=name)
def test_the_code_of_a_page_runs(path):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as JAX comes
        for code in PYTHON.findall(path.read_text()):
            exec(compile(code, name(path), "exec"), {})


def test_the_summaries_have_the_same_formulas_under_labels_of_the_derivations():
    korean, chinese = (
        FENCE.findall((ROOT / "docs" / f"summary.{language}.md").read_text()) for language in ("ko", "zh")
    )
    assert korean == chinese
    labels = [label for formula in korean for label in LABEL.findall(formula)]
    assert len(labels) == len(korean) == len(set(labels))
    assert set(labels) <= {label for room in ROOMS for label in LABEL.findall((room / "derivation.md").read_text())}


def test_a_label_in_the_code_is_one_of_a_page():
    labels = {label for room in ROOMS for label in LABEL.findall((room / "derivation.md").read_text())}
    sources = [*(ROOT / "bnderiv").rglob("*.py"), *NOTEBOOKS, *PAGES]
    for path in sources:
        source = path.read_text()
        named = re.findall(r"\(([NLCPAS]\d{1,2})\)", source) + re.findall(r"derivation\.md, ([NLCPAS]\d+)", source)
        assert set(named) <= labels, name(path)


def test_the_nodes_of_the_graph_have_the_same_numbers_everywhere():
    """In the printed steps, the page's table, the picture's script and the exercises."""
    printed = {name: field.label for name, field in fields(BatchNormGraph).items() if name[:2] not in ("d_", "dx")}
    right = {name: int(label[5:]) for name, label in printed.items() if label.startswith("node")}
    assert sorted(right.values()) == list(range(1, 10))

    tex = {
        r"\mu": "mu",
        "c_k": "c",
        "q_k": "q",
        r"\sigma^2": "var",
        r"\rho": "std",
        "r": "inv_std",
        r"\hat x_k": "x_hat",
    }
    page = (ROOT / "bnderiv" / "normalization" / "derivation.md").read_text()
    rows = re.findall(r"^\| (\d) \| \$`(\S+(?: x_k)?) = ", page, re.MULTILINE)
    assert {tex[symbol]: int(number) for number, symbol in rows} == {name: right[name] for name in tex.values()}
    assert "| 8, 9 | $`y_k = \\gamma \\hat x_k + \\beta`$: product, then sum |" in page
    assert (right["scaled"], right["y"]) == (8, 9)

    exercise = "".join((ROOT / "experiments/notebooks/exercises/batch_norm.ipynb").read_text())
    lines = dict(re.findall(r'"(\w+) = .*# node (\d)', exercise))
    lines["c"] = lines.pop("centered")
    assert {name: int(number) for name, number in lines.items()} == right

    drawn = (ROOT / "docs" / "pictures" / "draw.py").read_text()
    edges = re.findall(r'\("(\d)", "\w", rf"[^"]*tuple_of\(s\.(\w+)\)', drawn)
    edges += [("8", "scaled")] if '("8", "9", tuple_of(s.scaled)' in drawn else []
    assert {name: int(number) for number, name in edges} == right
