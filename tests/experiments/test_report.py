"""The page of a run: what becomes of its parts; the committed ones, each of which can be read, run and made again."""

import base64
import html.parser
import importlib.util
import os
import re
import resource
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from experiments import _command, _options, _report

FOLDER = Path(_report.__file__).parent
EXPERIMENTS = sorted(path.parent for path in FOLDER.glob("*/results"))
REPORTS = sorted(FOLDER.glob("*/results/**/*.html"))
PICTURES = sorted(FOLDER.glob("*/results/**/*.png"))


def page(*parts, **content):
    about = {"command": "python a.py", "configuration": {"seed": 0}, "date": "2001-02-03", "machine": "an abacus"}
    report = _report.Report("A < B", "Said.", parts, facts={"seconds": 7})
    return _report.page(report, about | {"versions": {"jax": "0"}} | content).decode()


def test_parts_become_html():
    text = page(
        _report.Text("One", "Before & **after**."),
        _report.Table("Two", ("", "`a`"), [("<b>", "**2×**"), ("", "")], "Caption."),
        _report.Picture("Three", "a.png", b"png", 'What to "see"'),
    )
    assert "<h1>A &lt; B</h1>" in text
    assert "<h2>One</h2>\n<p>Before &amp; <strong>after</strong>.</p>" in text
    assert '<h2>Two</h2>\n<p class="caption">Caption.</p>' in text
    for row in ("<td>&lt;b&gt;</td>", "<strong>2×</strong>", "<code>a</code>"):
        assert row in text
    assert 'alt="What to &quot;see&quot;"' in text


def test_the_same_parts_become_markdown():
    parts = [_report.Text("One", "Said."), _report.Table("Two", ("a", "b"), [("x", 1), ("y", "2 ms")], "Caption.")]
    assert _report.markdown(parts) == (
        "## One\n\nSaid.\n\n## Two\n\nCaption.\n\n| a | b |\n| --- | ---: |\n| x | 1 |\n| y | 2 ms |\n"
    )


def test_rows_by_name_become_a_table_in_which_cells_may_lack():
    made = _report.grid("Two", {"x": {"a": 1}, "y": {"b": 2, "a": 3}}, "Caption.", "name")
    assert made == _report.Table("Two", ("name", "a", "b"), [("x", 1, ""), ("y", 3, 2)], "Caption.")


def test_short_numbers_are_set_to_the_right():
    rows = [("a", 3, "1.5 (1–2)", "4, which is more than there is room for"), ("b", 10.5, "", "5")]
    text = page(_report.Table("Title", ("name", "errors", "ms", "what"), rows))
    assert '<tr><td>a</td><td class="number">3</td><td class="number">1.5 (1–2)</td><td class="long">4, which' in text


def test_two_parts_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two parts of one name: Loss"):
        page(_report.Text("Loss", ""), _report.Text("", ""), _report.Text("", ""), _report.Text("Loss", ""))


def test_the_page_repeats_what_the_numbers_say_of_the_run():
    text = page()
    for line in ("date</td><td>2001-02-03", "machine</td><td>an abacus", "versions</td><td>jax 0", "seconds</td><td>7"):
        assert f"<td>{line}</td>" in text
    assert "<pre>python a.py</pre>" in text
    assert "<td>seed</td><td>0</td>" in text


def test_numbers_are_kept_with_what_made_them(tmp_path):
    class Settings(_options.WithData):
        seed: int = 0

    content = {"losses": [[0.5, 0.25]] * 40, "name": "[ a ]"}
    _report.keep(tmp_path / "a.json", content, Settings(seed=3, data=tmp_path), "pytest")
    written = _report.numbers(tmp_path / "a.json")
    assert {name: written[name] for name in content} == content
    assert written["command"] == f"python -m {__name__} --data FOLDER --seed 3"
    assert written["configuration"] == {"data": "FOLDER", "seed": 3}
    assert (written["date"], written["machine"]) == (_report.today(), _report.machine())
    assert {"jax", "pytest"} < written["versions"].keys()
    assert str(tmp_path) not in (tmp_path / "a.json").read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        _report.keep(tmp_path / "a.json", {"loss": float("nan")}, Settings())


def test_json_has_no_nan():
    assert _report.rounded(np.array([[0.12345, np.nan], [np.inf, 1]])) == [[0.1235, None], [None, 1.0]]
    assert _report.rounded({"loss": [0.12345, float("nan")], "norms": {}}, 3) == {"loss": [0.123, None], "norms": {}}


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


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_a_file_is_written(tmp_path, monkeypatch):
    """It waits: there is the new file, and nothing else."""
    replace = Path.replace

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return replace(*arguments)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _report.write(tmp_path / "a.txt", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"new")]


def test_no_numbers_to_draw_again(tmp_path):
    (tmp_path / "a.json").write_text("{")
    for name, reason in (("a.json", "Expecting .*"), ("b.json", "No such file or directory")):
        with pytest.raises(_command.Refused, match=rf"{name}: no numbers of an earlier run there \({reason}\);.*--out"):
            _report.numbers(tmp_path / name)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.name)
def test_every_experiment_has_a_report(experiment):
    assert [path for path in REPORTS if experiment in path.parents]


class Reader(html.parser.HTMLParser):
    """What is checked of a page."""

    def __init__(self, text):
        super().__init__()
        self.opened, self.sources, self.alts, self.headings, self.tables = [], [], [], [], []
        self.command = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "table":
            self.tables.append(self.opened[-1])
        if tag not in ("meta", "img", "!doctype"):
            self.opened.append((tag, *(found.get("class") or "").split()))
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "img":
            self.alts.append(found["alt"])

    def handle_data(self, data):
        if self.opened and self.opened[-1] == ("h2",):
            self.headings.append(data)
        if self.opened and self.opened[-1] == ("pre",):
            self.command += data

    def handle_endtag(self, tag):
        assert self.opened.pop()[0] == tag


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_committed_report(path):
    """It needs nothing beside it; each picture, to the byte, is a file of its folder; it can be read on a telephone."""
    text = path.read_text()
    read = Reader(text)
    assert read.opened == []
    beside = {file.read_bytes() for file in path.parent.glob("*.png")}
    for source in read.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) in beside
    rest = re.sub('base64,[^"]*', "", text)
    assert not re.search(r"<script|http|/tmp|/home|/root|/work", rest)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "img { max-width: 100%; height: auto }" in text
    assert ".scroll { overflow-x: auto;" in text
    assert all(around[:2] == ("div", "scroll") for around in read.tables)
    assert len(set(read.headings)) == len(read.headings) >= 3
    assert all(len(alt) > 20 for alt in read.alts)
    assert len(set(read.alts)) == len(read.alts)


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_the_command_of_a_report_is_one(path, monkeypatch):
    """Every line is understood by the script that it names, which here goes no further."""

    class Understood(Exception):
        pass

    cli = tyro.cli

    def understand(*arguments, **options):
        cli(*arguments, **options)
        raise Understood

    monkeypatch.setattr(tyro, "cli", understand)
    monkeypatch.chdir(FOLDER.parent)
    lines = Reader(path.read_text()).command.splitlines()
    assert lines
    for line in lines:
        python, m, module, *words = shlex.split(line)
        assert (python, m) == ("python", "-m")
        if "--tpu" in words and not importlib.util.find_spec("libtpu"):
            pytest.skip("libtpu is not installed")
        try:
            main = importlib.import_module(module).main
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed")
        with pytest.raises(Understood):
            main(words)
        assert all(Path(word).exists() for word in words if "/" in word)


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_picture_can_be_read_at_half_a_page(path):
    """At 450 pixels a letter of 10 points is 8 high in a figure of no more than this width."""
    with Image.open(path) as image:
        assert image.width / image.info["dpi"][0] <= 1.01 * _report.WIDTH


@pytest.mark.few(4, 16)
@pytest.mark.parametrize("path", REPORTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_what_is_committed_is_what_its_numbers_give(path, tmp_path, monkeypatch):
    """Page, but for its pictures, and tables, to the letter."""
    read = Reader(path.read_text())
    module = shlex.split(read.command.splitlines()[0])[2]
    if module == "experiments.lenet.run":
        pytest.skip("its pictures need its parameters")
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    for file in path.parent.glob("*.json"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(_report, "png", lambda figure: _report.plt.close(figure) or b"")
    words = (
        ["--redraw"]
        + ["--fresh-memory"] * ("fresh-memory" in path.name)
        + ["of_these.toml"] * module.endswith("compare")
    )
    monkeypatch.setattr("experiments.benchmark.allocator.start_again", lambda keeping: None)
    monkeypatch.setattr(_report, "machine", lambda: "2 CPU cores (x86_64), Linux")
    main([*words, "--out", str(tmp_path)])
    without = re.compile('base64,[^"]*')
    assert without.sub("", (tmp_path / path.name).read_text()) == without.sub("", path.read_text())
    for table in tmp_path.glob("*.md"):
        assert table.read_text() == (path.parent / table.name).read_text()
