"""mkdocs hooks: the repository's own pages as a site.

Pages stay where they are and read on GitHub. A page, a notebook or a picture of the repository is in the site under the
same path, so that the links between them hold; a link to anything else leads to the repository on GitHub. A notebook
becomes markdown, outputs included. Mathematics, as GitHub writes it, becomes what MathJax reads, and a label such as
(N12) leads to its equation.
"""

import html
import importlib.util
import inspect
import json
import posixpath
import re
import xml.etree.ElementTree as etree
from pathlib import Path

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from bnderiv import steps
from bnderiv.steps import table

ROOT = Path(__file__).parents[2]
TREE = (
    "*.md",
    "bnderiv/**/*.md",
    "docs/**/*.md",
    "docs/pictures/*.svg",
    *(f"experiments/**/*.{ending}" for ending in ("md", "ipynb", "png", "html")),
)
NOT = re.compile(r"(^|/)(runs|\.[^/]+)/")  # what experiments leave, and hidden folders
MATHJAX = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2/*", "a11y/*", "sre/**/*")

ARITHMATEX = 'class="arithmatex"'
TAGGED = re.compile(r'<div class="arithmatex">(?=[^<]*\\tag\{([A-Z]\d+)\})')
# Two spaces continue a list's item in CommonMark; Python-Markdown wants four. Fences stay.
CONTINUED = re.compile(r"^(`{3,}).*?^\1$|(?<=\n\n)(?:  \S[^\n]*\n)+", re.DOTALL | re.MULTILINE)
STEPS = re.compile(r"^::: bnderiv\.steps\.(\w+)\n(?:    .*\n)*", re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
# A label in a text or a docstring; before it, what is left as it is.
LABEL = re.compile(
    r"<(a|code|pre|h[1-6]|script|svg)\b.*?</\1>|<(div|span) class=\"arithmatex\".*?</\2>|<[^>]+>"
    r"|\((?P<label>[A-Z]\d{1,2})\)|(?P<docstring>derivation\.md(?:, [A-Z]\d{1,2})+)",
    re.DOTALL,
)


class Notebook(File):
    """A notebook is a page."""

    def is_documentation_page(self) -> bool:
        return True


class InlineMath(InlineProcessor):
    """$`…`$, before a code span is found in it."""

    def handleMatch(self, m, data):
        span = etree.Element("span", {"class": "arithmatex"})
        span.text = self.md.htmlStash.store(rf"\({html.escape(m[1], quote=False)}\)")
        return span, m.start(0), m.end(0)


class GitHubMath(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(InlineMath(r"\$`([^`]+)`\$", md), "github_math", 195)


def on_config(config: MkDocsConfig) -> None:
    config.markdown_extensions.append(GitHubMath())  # type: ignore[arg-type]


def on_files(files: Files, config: MkDocsConfig) -> None:
    def add(path: Path, folder: Path, kind=File, under="") -> None:
        name = path.relative_to(folder).as_posix()
        destination = f"{under}{name}" if under else None
        files.append(kind(name, str(folder), config.site_dir, config.use_directory_urls, dest_uri=destination))

    for pattern in TREE:
        for path in sorted(ROOT.glob(pattern)):
            if not NOT.search(path.relative_to(ROOT).as_posix()):
                add(path, ROOT, Notebook if path.suffix == ".ipynb" else File)
    scripts = mathjax()
    for pattern in MATHJAX:
        for path in sorted(scripts.glob(pattern)):
            if path.is_file():
                add(path, scripts, under="mathjax/")


def mathjax() -> Path:
    """The folder of MathJax's scripts: the package django-static-mathjax ships them, and needs no Django."""
    found = importlib.util.find_spec("mathjax")
    if found is None or not found.submodule_search_locations:
        raise ImportError('MathJax is missing: pip install -e ".[docs]"')
    return Path(found.submodule_search_locations[0]) / "static" / "mathjax" / "es5"


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    if isinstance(page.file, Notebook):
        return as_markdown(json.loads(page.file.content_string), page.file.src_uri, config.repo_url)
    return None


def as_markdown(notebook: dict, path: str, repository: str) -> str:
    """Cells and outputs, in order; the first line under the title says where the notebook is.

    In Colab a notebook is one file alone, so its links are addresses of the repository. Here they lead to this site.
    """
    blob, raw = f"{repository}/blob/main/", f"{repository}/main/".replace("github.com", "raw.githubusercontent.com")
    up = posixpath.relpath(".", posixpath.dirname(path))
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for address in (blob, raw):
                source = source.replace(f"]({address}", f"]({up}/")
            parts.append(source)
            continue
        if source.strip():
            parts.append(fenced(source, "python"))
        for output in cell["outputs"]:
            data = output.get("data", {})
            text = "".join(output.get("text") or data.get("text/plain") or "")
            if "image/png" in data:
                parts.append(f"![Output of the cell above](data:image/png;base64,{''.join(data['image/png']).strip()})")
            elif "text/html" in data:
                parts.append("".join(data["text/html"]))
            elif text:
                parts.append(fenced(text, "text"))
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join([title, f"[This page as a notebook]({blob}{path})", rest, *parts[1:]])


def fenced(text: str, language: str) -> str:
    ticks = "```" if "```" not in text else "````"
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = posixpath.dirname(page.file.src_uri)

    def resolved(m: re.Match) -> str:
        path, mark, anchor = m[2].partition("#")
        target = posixpath.normpath(posixpath.join(here, path))
        if not path or ":" in path or files.get_file_from_path(target) or not (ROOT / target).exists():
            return m[0]
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{m[1]}{config.repo_url}/{kind}/main/{target}{mark}{anchor}{m[3]}"

    if page.file.src_uri == "docs/api/steps.md":
        markdown = STEPS.sub(lambda m: m[0] + fields_of(m[1]), markdown)
    markdown = CONTINUED.sub(lambda m: m[0] if m[1] else re.sub("^(?=.)", "  ", m[0], flags=re.M) + "\n", markdown)
    return LINK.sub(resolved, markdown)


def fields_of(name: str) -> str:
    """The steps that a function of `bnderiv.steps` returns, as a table; nothing for what returns none."""
    returned = inspect.signature(getattr(steps, name), eval_str=True).return_annotation
    if not hasattr(returned, "_fields"):
        return ""
    rows = []
    for step, field in table.fields(returned).items():
        symbol = f"`{field.symbol}`" if field.symbol else ""
        rows.append(f"| `{step}` | {symbol} | {field.shape} | {field.label} | {field.meaning} |")
    return "\n".join(["", "| step | symbol | shape | label | |", "|---|---|---|---|---|", *rows, ""])


def on_env(env, config: MkDocsConfig, files: Files):
    """All pages are rendered: each equation gets its label as id, and each label leads to its equation."""
    pages = [file.page for file in files.documentation_pages() if file.page and file.page.content]
    homes = {}
    for page in pages:
        if page.file.src_uri.endswith("derivation.md"):
            homes |= dict.fromkeys(TAGGED.findall(page.content), page.url)
            page.content = TAGGED.sub(r'<div class="arithmatex" id="\1">', page.content)
    for page in pages:
        # The search shows pieces of text, in which TeX would be raw.
        page.content = linked(page.content, page.url, homes).replace(ARITHMATEX, f"{ARITHMATEX} data-search-exclude")


def linked(content: str, here: str, homes: dict[str, str]) -> str:
    def link(label: str, shown: str) -> str:
        return f'<a href="{get_relative_url(homes[label], here)}#{label}">{shown}</a>' if label in homes else shown

    def replaced(m: re.Match) -> str:
        if m["label"]:
            return link(m["label"], m[0])
        return re.sub(r"[A-Z]\d+", lambda label: link(label[0], label[0]), m[0]) if m["docstring"] else m[0]

    return LABEL.sub(replaced, content)
