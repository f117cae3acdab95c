"""The page of a run: what becomes of its parts, whose date it bears; the committed ones hold all that they show."""

import base64
import html.parser
import re
import resource
from pathlib import Path

import pytest

from experiments import _command, _report

FOLDER = Path(_report.__file__).parent
EXPERIMENTS = sorted(path.parent for path in FOLDER.glob("*/results"))
REPORTS = sorted(FOLDER.glob("*/results/**/*.html"))


def page(*parts, **facts):
    text = _report.page("A < B", "Said.", parts, command="python a.py", configuration={"seed": 0}, facts=facts)
    return text.decode()


def test_markdown_becomes_html():
    text = page(_report.Markdown("Before & after.\n\n## One\n\n|  | `a` |\n|---|---|\n| <b> | **2×** |\n|  |  |\n"))
    assert "<h1>A &lt; B</h1>" in text
    assert "<p>Before &amp; after.</p>\n<h2>One</h2>" in text
    rows = "<tr><th></th><th><code>a</code></th></tr>", "<tr><td>&lt;b&gt;</td><td><strong>2×</strong></td></tr>"
    assert "\n".join([*rows, "<tr><td></td><td></td></tr>"]) in text


def test_numbers_are_set_to_the_right():
    text = page(_report.Table("Title", ("name", "errors"), [("a", 3), ("b", 10.5)], "Caption."))
    assert '<tr><td>a</td><td class="number">3</td></tr>' in text
    assert '<p class="caption">Caption.</p>' in text


def test_numbers_drawn_again_keep_their_date():
    now = page()
    assert f"<td>date</td><td>{_report.today()}</td>" in now
    assert f"<td>machine</td><td>{_report.machine()}</td>" in now
    earlier = page(date="2001-02-03", machine="an abacus", versions={"jax": "0"}, seconds=7)
    for line in ("date</td><td>2001-02-03", "machine</td><td>an abacus", "versions</td><td>jax 0", "seconds</td><td>7"):
        assert f"<td>{line}</td>" in earlier


def test_a_file_is_whole_or_as_it_was(tmp_path):
    """No file may grow beyond 100 bytes, as on a disk with no more room."""
    file = tmp_path / "new" / "a.txt"
    _report.write(file, b"first")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(
            _command.Refused, match=r"a\.txt cannot be written \(File too large\); what was there is unch"
        ):
            _report.write(file, bytes(200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]
    assert file.read_bytes() == b"first"


def test_no_numbers_to_draw_again(tmp_path):
    (tmp_path / "a.json").write_text("{")
    for name in ("a.json", "b.json"):
        with pytest.raises(_command.Refused, match=rf"{name}: no numbers of an earlier run there .*--out"):
            _report.numbers(tmp_path / name)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.name)
def test_every_experiment_has_a_report(experiment):
    assert [path for path in REPORTS if experiment in path.parents]


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_report_needs_nothing_beside_it_and_shows_the_pictures_there(path):
    """Well-formed; nothing but data in it; each of its pictures, to the byte, is one of the files of its folder."""
    text = path.read_text()
    sources, opened = [], []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img", "!doctype"):
                opened.append(tag)
            sources.extend(value for name, value in attributes if name in ("src", "href"))

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Reader().feed(text)
    assert opened == []
    assert sources
    beside = {file.read_bytes() for file in path.parent.glob("*.png")}
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) in beside
    rest = re.sub('base64,[^"]*', "", text)
    assert not re.search(r"<script|http|/tmp|/home|/root|/work", rest)
