"""How the experiments' commands start, speak and end; where their results go."""

import errno
import importlib
import importlib.util
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from experiments import _command

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").glob("*/*.py")
    if "_command.start(" in path.read_text()
)


def ended(function, *arguments):
    """What a command ends with, as `sys.exit` takes it."""
    with pytest.raises(SystemExit) as ending:
        _command.command(function)(*arguments)
    return ending.value.code


def raising(error):
    def main(arguments):
        raise error

    return main


def test_what_is_refused_is_a_line():
    assert ended(raising(_command.Refused("no such\nfolder"))) == "no such folder"


@pytest.mark.parametrize("error", [ZeroDivisionError(), ValueError("a bug"), OSError(5, "a bug")])
def test_other_errors_are_not_hidden(error):
    with pytest.raises(type(error)):
        _command.command(raising(error))()


def run_script(folder, name, text, *options, stdout: Any = subprocess.PIPE, **environment):
    """A script of an experiment's kind, beside those that are there, as `python -m` runs it."""
    (folder / "experiments").mkdir(exist_ok=True)
    (folder / "experiments" / "_command.py").write_text((ROOT / "experiments" / "_command.py").read_text())
    start = "from experiments import _command\nif __name__ == '__main__':\n    _command.start('experiments.{}')\n"
    (folder / "experiments" / f"{name}.py").write_text(start.format(name) + text)
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LC_ALL", "LC_CTYPE", "LANG")}
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *options],
        cwd=folder,
        env=kept | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_printed_onto_a_full_disk(tmp_path, unbuffered):
    text = "@_command.command\ndef main(arguments):\n    print('a result')"
    with open("/dev/full", "w") as full:
        process = run_script(tmp_path, "a", text, stdout=full, PYTHONUNBUFFERED=unbuffered)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.splitlines()[1:] == [
        "what is printed cannot be written (No space left on device); the files named so far are complete"
    ]


def test_what_is_not_installed_is_named_with_what_to_do(tmp_path):
    out, error = (process := run_script(tmp_path, "a", "import nowhere.at_all")).communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    words, line = error.splitlines()
    assert words == "importing …"
    assert line.startswith(
        f"nowhere is not installed for {sys.executable}: activate the environment that has it, or run:"
    )
    assert line.endswith(" -m pip install -e '.[experiments]'")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_a_module_is_imported(tmp_path):
    """It swallows exceptions, as extension modules do."""
    text = (
        "import time\nfor _ in range(600):\n    try:\n        time.sleep(0.1)\n    except BaseException:\n        pass"
    )
    process = run_script(tmp_path, "a", text)
    assert process.stderr is not None
    assert process.stderr.readline() == "importing …\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "\ninterrupted\n")
    assert process.returncode == 130


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("last_words", ["", "to go on: again"])
def test_ctrl_c_in_a_callback_ends_it_too(tmp_path, last_words):
    """Python drops what is raised while it collects garbage, and JAX has a callback there; here the main goes on."""
    text = (
        "import gc, time\n@_command.command\ndef main(arguments):\n"
        f"    _command.if_interrupted(lambda: {last_words!r})\n    print('a result')\n"
        "    gc.callbacks.append(lambda *_: (_command.say('collecting'), time.sleep(60)))\n    gc.collect()\n"
    )
    process = run_script(tmp_path, "a", text)
    assert process.stderr is not None
    assert [process.stderr.readline() for _ in range(2)] == ["importing …\n", "collecting\n"]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (
        "a result\n",
        "\ninterrupted" + bool(last_words) * f". {last_words}" + "\n",
    )
    assert process.returncode == 130


def test_a_locale_of_ascii_gets_ascii(tmp_path):
    text = "@_command.command\ndef main(arguments):\n    print('½ ‖γ − β‖² → ∂J/∂x̂ ╭─╮ é 字')"
    for locale, expected in (("C", "1/2 |gamma - beta|^2 -> dJ/dx? ??? e ?\n"), ("C.UTF-8", None)):
        out, error = run_script(tmp_path, "a", text, LC_ALL=locale).communicate(timeout=60)
        assert (out == expected and error.isascii()) if expected else "γ" in out, (out, error)


def test_lines_are_to_be_pasted(monkeypatch):
    monkeypatch.setattr(_command, "_started", {"experiments.lenet.run": ["my experiments/run.py"]})
    line = _command.again("experiments.lenet.run", "resume", Path("a folder/it's"))
    assert shlex.split(line)[-3:] == ["my experiments/run.py", "resume", "a folder/it's"]
    assert _command.again("experiments.lenet.compare", "a").endswith(" -m experiments.lenet.compare a")
    assert shlex.split(line)[0] in ("python", sys.executable)
    assert _command.line("experiments.a.run", "--data", "a b") == "python -m experiments.a.run --data 'a b'"


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_does_not_wait():
    program = (
        "import os, signal; from experiments import _command\n"
        "with _command.uninterrupted():\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('never', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "goes on\n", "\ninterrupted\n")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_waits_for_what_must_be_whole():
    done = []

    def whole():
        with _command.uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        whole()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_bar_without_a_terminal_is_lines(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with _command.bar(total=4, desc="LeNet-5", unit="step") as bar:
        for step in range(4):
            bar.update()
            bar.set_postfix_str(f"loss {step}")
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert [re.findall(r"\d/4", line) for line in lines] == [["0/4"], ["1/4"], ["2/4"], ["3/4"], ["4/4"], ["4/4"]]
    assert re.fullmatch(r"LeNet-5: 100%\|.*\| 4/4 \[.*, loss 3\]", lines[-1])


# Folders.


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_a_folder_results_go_where_git_ignores_them(name):
    """Whatever the options are; and each of these scripts has such a folder."""
    script = ROOT / (name.replace(".", "/") + ".py")
    for chosen in ({}, {"pool": "max", "data": "../a folder"}, {"rates": tuple(range(200))}):
        place = _command.folder(str(script), chosen)
        assert place.parent == script.parent / "runs"
        assert subprocess.run(["git", "check-ignore", "-q", place / "a.json"], cwd=ROOT).returncode == 0
    text = script.read_text()
    assert re.search(r"_report\.experiment\(|\.folder\(\)|RUNS", text)
    assert '/ "results"' not in text


def test_the_folder_is_named_by_the_options():
    assert _command.folder("by_hand/run.py") == Path("by_hand/runs/default")
    assert _command.folder("by_hand/run.py", {"pool": "max", "seed": 3}) == Path("by_hand/runs/pool-max_seed-3")
    assert _command.folder("distributed/scale.py") == Path("distributed/runs/scale")


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path):
    assert _command.make(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for place, reason in (
        ("file", "file is a file"),
        ("file/a", "file is a file"),
        ("link", "is a link to .*gone, which"),
    ):
        with pytest.raises(_command.Refused, match=rf"cannot be a folder of results \(.*{reason}.*; choose another"):
            _command.make(tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file", "link"]


def test_a_folder_that_is_not_ours_to_write(tmp_path, monkeypatch):
    """Root may write everywhere, so the system's answer is put in its mouth."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(_command.Refused, match=r"cannot be a folder of results \(Permission denied\)"):
        _command.make(tmp_path)


def test_one_process_a_folder(tmp_path):
    program = (
        "import sys, pathlib; from experiments import _command\n"
        "with _command.alone(pathlib.Path(sys.argv[1])):\n    print('holds it', flush=True); input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds it\n"
    refused = pytest.raises(_command.Refused, match=f"another process is training here, pid {process.pid}; ")
    with refused, _command.alone(tmp_path):
        pass
    process.kill()
    process.communicate()
    with _command.alone(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_folder_in_which_no_lock_can_be_made(tmp_path):
    (tmp_path / "lock").mkdir()  # as on a disk that has no room for another file
    with pytest.raises(_command.Refused, match=r"cannot be written \(Is a directory\)"), _command.alone(tmp_path):
        pass


def test_why_says_more_than_the_system(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    error = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert (
        _command.why(error, tmp_path / "link" / "a")
        == f"{tmp_path / 'link'} is a link to nowhere, which does not exist"
    )
    assert _command.why(error, tmp_path / "other") == "No such file or directory"
    assert _command.why(OSError()) == "OSError"


def test_rules_that_there_are_not():
    with pytest.raises(SystemExit, match=r"only: no rule has 'nowhere' in its name; there are sign, "):
        importlib.import_module("experiments.checking.run").main(["--only", "nowhere"])


@pytest.mark.parametrize("installed", [False, True])
def test_a_checker_that_is_not_installed_is_left_out(installed, monkeypatch):
    """Not held to have raised an error at every rule."""
    run = importlib.import_module("experiments.checking.run")
    monkeypatch.setattr(run, "_verdict", lambda checker, *_: "passed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    columns = run.tables([run.row(*rule) for rule in run.RULES[:2]])[0].columns
    assert columns == ("", "compare", "compare alone", "check_grads", *["gradcheck"] * installed)


def test_every_script_has_a_main_that_ends_in_a_line():
    """And names extras that there are: what `dropin` and the notebooks need beyond the others' is in them."""
    assert len(SCRIPTS) == 14
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    advice = {}
    for name in SCRIPTS:
        text = (ROOT / (name.replace(".", "/") + ".py")).read_text()
        called = re.search(rf'_command\.start\("{re.escape(name)}"(?:, extras="(.*)")?\)', text)
        assert called, name
        advice[name] = (called[1] or "experiments").split(",")
        assert set(advice[name]) <= extras.keys()
        assert re.search(r"^@_command\.command\ndef main\(arguments: list|^main = _report\.experiment\(", text, re.M)
        assert "sys.path" not in text
    assert "flax" in advice["experiments.dropin.run"]
    assert advice["experiments.notebooks.run"] == ["notebooks"]
    assert importlib.import_module("experiments.lenet.run").main.__wrapped__
