"""The LeNet experiment's commands as a user gives them: what they print, the files they leave, what they refuse."""

import html.parser
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnderiv.models import lenet5
from experiments import _command, _data
from experiments.lenet import compare, configuration, results, run
from experiments.lenet.configuration import Configuration
from tests.compiling import of_a_user

ROOT = Path(__file__).parents[2]
PICTURES = ("curves", "kernels", "confusion", "mistakes", "gradients")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two epochs of the README's command: its output, and its folder."""
    out = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "experiments.lenet.run", "--epochs", "2", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=of_a_user(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done, out


@pytest.mark.slow
def test_the_command_learns_and_says_where_its_files_are(trained):
    done, out = trained
    names = {f"{name}.png" for name in PICTURES} | {"metrics.json", "parameters.npz", "report.html"}
    assert {path.name for path in out.iterdir()} == names | {"configuration.json", "checkpoints"}
    accuracy, *files = done.stdout.splitlines()
    assert {line.split()[-1] for line in files} == {str(out / name) for name in names}
    metrics = json.loads((out / "metrics.json").read_text())
    assert accuracy.startswith(f"test accuracy {metrics['test_accuracy']:.2%} ({metrics['wrong']} of 360 images wrong)")
    assert metrics["test_accuracy"] > 0.85
    assert "loss 0." in done.stderr  # the progress bar
    assert f"-m experiments.lenet.run resume {out}" in done.stderr
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in PICTURES)
    norms = metrics["history"].pop("gradient_norms")
    assert norms.keys() == {"conv1", "conv2", "dense3", "dense4", "output"}
    assert {len(values) for values in (*norms.values(), *metrics["history"].values())} == {2}
    assert metrics["versions"]["jax"] == jax.__version__
    assert metrics["parameters"] == 61_932  # 5·5·1·6 + 5·5·6·16 + 400·120 + 120·84 + 84·10 + 10 + 2 (6 + 16 + 120 + 84)


@pytest.mark.slow
def test_the_report_needs_nothing_beside_it(trained):
    """Well-formed, every picture within, no other address, and no name or path of the machine."""
    _, out = trained
    text = (out / "report.html").read_text()
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
    assert len(sources) == len(PICTURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    visible = text.split("base64,")
    rest = " ".join([visible[0], *(part.split('"', 1)[1] for part in visible[1:])])
    assert "python -m experiments.lenet.run train --epochs 2" in rest
    for absent in ("http", "<script", str(out), str(ROOT)):
        assert absent not in rest
    for name, value in json.loads((out / "configuration.json").read_text()).items():
        assert f"<td>{name}</td><td>{value}</td>" in rest


@pytest.mark.slow
def test_the_files_are_enough_to_use_the_network(trained):
    """The README's lines: the configuration and the parameters, read back, give the accuracy that was reported."""
    _, out = trained
    metrics = json.loads((out / "metrics.json").read_text())
    config = lenet5.Config(**metrics["network"])
    assert config == lenet5.Config(image_shape=(32, 32, 1))
    shapes = jax.eval_shape(lambda: lenet5.init(jax.random.key(0), config))
    with np.load(out / "parameters.npz") as file:
        params, state = jax.tree.unflatten(jax.tree.structure(shapes), file.values())
        np.testing.assert_array_equal(file["params/dense3/kernel"], params["dense3"]["kernel"])
        np.testing.assert_array_equal(file["state/bn4/var"], state["bn4"].var)
    assert state["bn1"].count == 2 * 23  # 1437 images in batches of 64, the last one short
    chex.assert_trees_all_equal_shapes(params, shapes[0])
    data = _data.load()
    logits, _ = lenet5.apply(params, state, jnp.asarray(data.standardized(data.test_images)), config, train=False)
    assert (np.asarray(logits).argmax(-1) == data.test_labels).mean() == pytest.approx(metrics["test_accuracy"])


@pytest.mark.slow
def test_test_plot_and_what_a_finished_run_refuses(trained, capsys):
    done, out = trained
    before = {path: path.read_bytes() for path in out.glob("*.png")}
    run.main(["test", str(out)])
    accuracy = done.stdout.splitlines()[0].partition(",")[0]
    assert capsys.readouterr().out.splitlines()[0] == f"step 46: {accuracy}"
    (out / "curves.png").unlink()
    run.main(["plot", str(out)])
    assert {path: path.read_bytes() for path in out.glob("*.png")} == before
    capsys.readouterr()
    with pytest.raises(SystemExit, match="of another configuration: epochs 2, not 3"):
        run.main(["train", "--epochs", "3", "--out", str(out)])
    assert configuration.read(out / "configuration.json").epochs == 2
    (out / "configuration.json").write_bytes(configuration.as_json(Configuration(epochs=2, seed=1)))
    with pytest.raises(SystemExit, match="of another configuration: seed 0, not 1"):
        run.main(["resume", str(out)])
    (out / "configuration.json").write_bytes(configuration.as_json(Configuration(epochs=2)))


@pytest.mark.slow
def test_folders_that_are_no_run(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("do not overwrite")
    with pytest.raises(SystemExit, match=r"mine exists and is no run's folder \(configuration.json is not in it\)"):
        run.main(["--out", str(mine)])
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    with pytest.raises(SystemExit, match=r"thesis.tex exists and is no run's folder"):
        run.main(["--out", str(mine / "thesis.tex")])
    for command in ("resume", "test", "plot"):
        with pytest.raises(SystemExit, match=r"mine: no run's folder \(configuration.json is not in it\)"):
            run.main([command, str(mine)])
    (mine / "configuration.json").write_bytes(configuration.as_json(Configuration(model="mlp")))
    with pytest.raises(SystemExit, match=r"mine: no checkpoint to go on from; train again: .* train --model mlp --out"):
        run.main(["resume", str(mine)])
    with pytest.raises(SystemExit, match="checkpoints: no checkpoint"):
        run.main(["test", str(mine)])
    with pytest.raises(SystemExit, match="nowhere/mnist: no such folder"):
        run.main(["test", str(mine), "--data", str(tmp_path / "nowhere" / "mnist")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data /nowhere/mnist", "/nowhere/mnist: no such folder"),
        ("--devices 64", "devices is 64, but JAX sees 8 of kind cpu"),
        ("--loss mse", "has no derivation here"),
        ("--data small", "small: image_shape must be at least 28×28, got 4×4; --model mlp takes any"),
        ("--checkpoint-every -1", "checkpoint_every must be at least 0, got -1"),
    ],
)
def test_refused_before_anything_is_written(words, message, tmp_path, monkeypatch):
    if "small" in words:
        small = np.zeros((2, 4, 4, 1), np.uint8)
        labels = np.zeros(2, np.int32)
        monkeypatch.setattr(_data, "load", lambda *_, **__: _data.Data(small, labels, small, labels, np.zeros(256)))
    with pytest.raises(SystemExit, match=message):
        run.main([*words.split(), "--out", str(tmp_path / "run")])
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_used(tmp_path, another_user):
    """`checkpoints` is a file; the folder is another user's; a link leads nowhere. Nothing is written."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("mine")
    (tmp_path / "link").symlink_to("gone")
    for place, message in (("run", "checkpoints is a file"), ("link", "link is a link to gone, which does not exist")):
        with pytest.raises(SystemExit, match=message):
            run.main(["--out", str(tmp_path / place)])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]
    assert not (tmp_path / "gone").exists()
    for words in (["--out", str(tmp_path)], ["resume", str(tmp_path)], ["test", str(tmp_path)]):
        with another_user(tmp_path), pytest.raises(SystemExit, match=r"cannot be read \(Permission denied\)"):
            run.main(words)


def test_a_second_run_in_one_folder_is_refused(tmp_path):
    with (
        _command.alone(tmp_path / "run" / "checkpoints"),
        pytest.raises(SystemExit, match=f"training here, pid {os.getpid()};"),
    ):
        run.main(["--model", "mlp", "--out", str(tmp_path / "run")])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("kept", [0, 3])
def test_ctrl_c_says_how_to_go_on(kept, tmp_path):
    """From the moment that training begins."""
    out = tmp_path / "my runs"
    program = (
        "import os, signal, sys; from experiments import _command; from experiments.lenet import run\n"
        "def interrupted(*_, **__):\n"
        "    if kept: os.mkdir(sys.argv[1] + '/checkpoints/3')\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        f"kept, run.training.train = {kept}, interrupted\n"
        "sys.modules['experiments.interrupted'] = run\n"
        "run.main = lambda main=run.main: main(['--model', 'mlp', '--out', sys.argv[1]])\n"
        "_command.start('experiments.interrupted')\n"
    )
    command = [sys.executable, "-c", program, str(out)]
    done = subprocess.run(command, cwd=ROOT, env=of_a_user(), capture_output=True, text=True)
    assert done.returncode == 130
    last = done.stderr.splitlines()[-1]
    assert last.startswith("interrupted. ")
    assert (
        last.endswith(f" resume '{out}'") if kept else last == "interrupted. There is no checkpoint yet to go on from"
    )


def test_a_run_without_a_folder_gets_a_new_one(monkeypatch, tmp_path):
    """Never the results that are committed; one run's folder after the other."""
    folders = []
    monkeypatch.setattr(run, "train", lambda chosen, out, **_: folders.append(out))
    run.main([])
    assert folders[0].parent == ROOT / "experiments" / "lenet" / "runs"
    assert not folders[0].exists()


def test_a_disk_that_is_full_at_the_end(monkeypatch, tmp_path):
    def fails(*_):
        raise _command.Refused("curves.png cannot be written (No space left on device)")

    monkeypatch.setattr(run.results, "save", fails)
    with pytest.raises(
        _command.Refused, match=r"No space left on device\)\. The checkpoints are complete: make room, then"
    ):
        run._finish(tmp_path, None, None, None, None)  # type: ignore[arg-type]


def fake_history(loss, accuracy):
    names = {"training_loss": loss, "training_accuracy": accuracy, "test_loss": loss, "test_accuracy": accuracy}
    return {name: [2 * value, value] for name, value in names.items()} | {"seconds": [1.0, 1.0]}


def test_the_comparison(tmp_path, monkeypatch, capsys):
    """Two settings, five seeds; mean and sample deviation as printed and as written; others' figures beside."""
    calls = []

    def train(chosen, out, **_):
        calls.append((chosen.batch_norm, chosen.epochs, chosen.data, chosen.seed, out.name))
        return fake_history(0.5, 0.4 + 0.01 * chosen.seed)

    monkeypatch.setattr(run, "train", train)
    (tmp_path / "mine.toml").write_text(
        '[common]\nepochs = 2\n["with"]\n["without"]\nbatch_norm = false\nbeside = "5 %"\n'
    )
    compare.main([str(tmp_path / "mine.toml"), "--data", "images", "--out", str(tmp_path)])
    settings = [(True, "with"), (False, "without")]
    assert calls == [(bn, 2, "images", seed, f"{name}-{seed}") for bn, name in settings for seed in range(5)]
    written = json.loads((tmp_path / "comparison.json").read_text())["settings"]
    assert written["with"]["mean_test_error_percent"] == 58
    assert written["with"]["deviation"] == pytest.approx(2.5**0.5, abs=1e-4)
    table = [line for line in (tmp_path / "comparison.md").read_text().splitlines() if line.startswith("|")]
    assert table[0] == "| setting | test error, % | best | worst | seconds an epoch | SimpleNN |"
    assert table[2:] == [
        "| with | 58.00 ± 1.58 | 56.00 | 60.00 | 1.00 |  |",
        "| without | 58.00 ± 1.58 | 56.00 | 60.00 | 1.00 | 5 % |",
    ]
    assert "\n".join(table) in capsys.readouterr().out
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "58.00 ± 1.58" in (tmp_path / "report.html").read_text()


def test_a_comparison_of_a_loss_that_is_no_number(tmp_path, monkeypatch):
    """JSON has null for it: that setting has no curve, and the others are shown."""
    histories = iter([fake_history(float("nan"), 0.1), fake_history(0.5, 0.9)] * 2)
    monkeypatch.setattr(run, "train", lambda *_, **__: next(histories))
    (tmp_path / "mine.toml").write_text("[one]\n")
    compare.main([str(tmp_path / "mine.toml"), "--seeds", "2", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "comparison.json").read_text())["settings"]["one"]
    assert [history["test_loss"] for history in written["histories"]] == [[None, None], [1.0, 0.5]]
    assert "| one | 50.00 ± 56.57 | 10.00 | 90.00 | 1.00 |" in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[a]\ncolor = 1", "a: no option 'color'"),
        ("a = 1", "mine.toml: every entry must be a table of options"),
        ("[a", "mine.toml: "),
        ("[common]\nepochs = 2", "mine.toml: no setting"),
    ],
)
def test_settings_that_are_none(content, message, tmp_path):
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(SystemExit, match=message):
        compare.main([str(tmp_path / "mine.toml")])
    with pytest.raises(SystemExit, match="cannot be read"):
        compare.main([str(tmp_path / "other.toml")])


@pytest.mark.parametrize("file", sorted((ROOT / "experiments" / "lenet" / "settings").iterdir()), ids=lambda p: p.name)
def test_the_settings_in_the_folder(file):
    settings, beside = compare.read(file, None)
    assert settings.keys() == beside.keys()
    assert len(set(settings.values())) == len(settings)


@pytest.mark.slow
def test_pictures_of_no_mistake_and_of_a_loss_that_is_no_number():
    labels = np.arange(10)
    for outputs in (np.eye(10), np.roll(np.eye(10), 1, axis=1)):
        for picture in (
            results.confusion(labels, outputs.argmax(-1), 10),
            results.mistakes(np.zeros((10, 8, 8, 1)), labels, outputs, "softmax"),
        ):
            assert picture.png.startswith(b"\x89PNG")
    assert results.curves(fake_history(float("nan"), 0.1), "mse", "title").png.startswith(b"\x89PNG")
