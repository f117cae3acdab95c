"""The site as it is built: every formula is mathematics, every link leads to a place, nothing is loaded from elsewhere.

Also: what GitHub shows of a page, the site shows, though another Markdown reads it there.
"""

import collections
import inspect
import json
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import bnderiv

for tool in ("mkdocs", "material", "mkdocstrings", "mathjax"):
    pytest.importorskip(tool, reason="the site's tools are in the extra `docs`")
markdown_it = pytest.importorskip("markdown_it", reason="the parser of the pages is in the extra `test`")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
NO_TEXT = {"script", "style", "code", "pre", "svg", "title"}
COUNTED = ("h2", "h3", "h4", "table", "tr", "li", "blockquote", "img", "strong", "em")
TEX = re.compile(r"\\[A-Za-z(\[]|\$[^\s\d]")
ADAPTERS = ("linen", "nnx", "equinox", "haiku")


class Built(HTMLParser):
    """What a test asks of one page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.formulas: list[str] = []
        self.raw_tex: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()  # within the article
        self.open: list[tuple[str, str]] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.ids += [given["id"]] if given.get("id") else []
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("img", "script", "iframe", "source") and given.get("src"):
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "edit"):
            self.loaded.append(given["href"])
        if any(name == "article" for name, _ in self.open):
            self.counts[tag] += 1
        if any(cls == "arithmatex" for _, cls in self.open):
            self.raw_tex.append(f"<{tag}> in a formula")
        if tag not in VOID:
            self.open.append((tag, given.get("class", "")))
            if "arithmatex" in given.get("class", "").split():
                self.formulas.append("")

    def handle_endtag(self, tag):
        if any(name == tag for name, _ in self.open):
            while self.open.pop()[0] != tag:
                pass

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_data(self, data):
        if self.open and self.open[-1][1] == "arithmatex":
            self.formulas[-1] += data
        elif TEX.search(data) and not any(name in NO_TEXT or "arithmatex" in cls for name, cls in self.open):
            self.raw_tex.append(data.strip())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """By path: the pages that mkdocs wrote; not the experiments' reports, which are whole as they are."""
    found = {path.relative_to(site).as_posix(): Built(path.read_text()) for path in site.rglob("index.html")}
    assert len(found) > 40
    return found


def test_formulas_are_mathematics_and_nothing_else_is_tex(pages):
    assert {name: page.raw_tex for name, page in pages.items() if page.raw_tex} == {}
    formulas = [formula.strip() for page in pages.values() for formula in page.formulas]
    assert len(formulas) > 2000
    whole = re.compile(r"\\\((?!.*\\\().*\\\)|\\\[.*\\\]", re.DOTALL)
    assert [formula for formula in formulas if not whole.fullmatch(formula)] == []


def test_links_lead_to_a_place(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
            target = name if not parts.path else f"{target}/index.html" if (site / target).is_dir() else target
            target = posixpath.normpath(target)
            anchors = pages[target].ids if target in pages else None
            lost = parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors
            if lost or not (site / target).is_file():
                broken.append(f"{name}: {link}")
    assert broken == []


def test_a_link_to_the_repository_leads_to_a_file(pages):
    address = re.compile(r"https://github\.com/bnderiv/bnderiv/(?:blob|tree|edit)/main/([^#?]*)")
    paths = {m[1] for page in pages.values() for link in page.links if (m := address.match(link))}
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_links_of_a_notebook_stay_on_the_site(pages):
    """They are addresses of the repository, for Colab; a page that the site has is shown here."""
    for path in (path for path in ROOT.glob("experiments/**/*.ipynb") if "runs" not in path.parts):
        name = path.relative_to(ROOT).as_posix()
        page = pages[f"{name.removesuffix('.ipynb')}/index.html"]
        blob = [link.partition("/blob/main/")[2] for link in page.links if "github.com/bnderiv/bnderiv/blob/" in link]
        assert [link for link in blob if not link.endswith(".py")] == [name]


def test_nothing_is_loaded_from_elsewhere(site, pages):
    assert {url for page in pages.values() for url in page.loaded if urlsplit(url).scheme not in ("", "data")} == set()
    for script in ("mathjax.js", "mathjax/tex-chtml-full.js"):
        assert all(any(url.endswith(script) for url in page.loaded) for page in pages.values())
        assert (site / script).is_file()


def test_every_label_is_the_id_of_its_equation(pages):
    for path in ROOT.glob("bnderiv/*/derivation.md"):
        labels = re.findall(r"\\tag\{([A-Z]\d+)\}", path.read_text())
        ids = pages[f"{path.relative_to(ROOT).with_suffix('')}/index.html"].ids
        assert [name for name in ids if re.fullmatch(r"[A-Z]\d+", name)] == labels


def test_every_public_name_is_in_the_api(pages):
    ids = {name for path, page in pages.items() if path.startswith("docs/api/") for name in page.ids}
    names = [name for name in bnderiv.__all__ if name not in ("reference", "forward_mode", "steps", "check", "models")]
    names += [f"steps.{name}" for name in bnderiv.steps.__all__]
    names += [f"models.{model}.{name}" for model in ("lenet5", "mlp") for name in ("Config", "init", "apply")]
    names += ["check.compare.compare", "check.Report", "check.Row", "forward_mode.enabled"]
    for adapter in ADAPTERS:
        source = (ROOT / "bnderiv" / f"{adapter}.py").read_text()
        listed = re.search(r"__all__ = \[(.*?)\]", source, re.DOTALL)
        assert listed
        names += [f"{adapter}.{name}" for name in re.findall(r'"(\w+)"', listed[1]) if name not in ("min_pool", "pool")]
    assert [name for name in names if f"bnderiv.{name}" not in ids] == []


def test_every_step_is_in_the_api(site):
    page = (site / "docs/api/steps/index.html").read_text()
    tables = [
        set(re.findall(r"<tr>\s*<td><code>(\w+)</code></td>", table))
        for table in re.findall(r"<table>.*?</table>", page, re.S)
    ]
    for name in bnderiv.steps.__all__:
        returned = inspect.signature(getattr(bnderiv.steps, name), eval_str=True).return_annotation
        if hasattr(returned, "_fields"):
            assert set(returned._fields) in tables, name


def test_search_finds_text_and_shows_no_tex(site):
    entries = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    texts = " ".join(re.sub(r"<(pre|code)\b.*?</\1>", "", entry["text"], flags=re.DOTALL) for entry in entries)
    assert TEX.findall(texts) == []
    for words, place in (
        ("channel over the whole batch", "bnderiv/normalization/derivation/"),
        ("batch_norm", "docs/api/norms/"),
        ("Why is my gradient zero", "docs/faq/"),
        ("d_gamma", "docs/api/steps/"),
        ("first_difference", "experiments/notebooks/batch_norm_gradient/"),
    ):
        assert any(entry["location"].startswith(place) and words in entry["title"] + entry["text"] for entry in entries)


def as_commonmark(source: str) -> collections.Counter[str]:
    """How many of each element GitHub shows; mathematics has none."""
    markdown = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    html = markdown.render(re.sub(r"\$`[^`]+`\$", "$x$", source))
    return collections.Counter(re.findall(r"<(\w+)", html))


def test_the_site_shows_what_github_shows(pages):
    sources = [ROOT / "README.md", *ROOT.glob("bnderiv/*/derivation.md"), *ROOT.glob("docs/*.md")]
    sources += [path for path in ROOT.glob("experiments/**/*.md") if "runs" not in path.parts]
    different = {}
    for path in sources:
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        page = pages["index.html" if name == "README" else f"{name.removesuffix('README')}".rstrip("/") + "/index.html"]
        github = as_commonmark(path.read_text())
        other = {tag: (github[tag], page.counts[tag]) for tag in COUNTED if github[tag] != page.counts[tag]}
        if other:
            different[name] = other
    assert different == {}, different
