"""Where results go that are given no folder, and how a command ends that is interrupted."""

from pathlib import Path

import pytest

from experiments import _command


def test_other_options_do_not_write_over_what_is_committed():
    assert _command.folder(Path("by_hand"), {}) == Path("by_hand/results")
    assert _command.folder(Path("by_hand"), {"pool": "max", "seed": 3}) == Path("by_hand/runs/pool-max_seed-3")


def test_ctrl_c(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        _command.run(main)
    assert ended.value.code == 130
    assert capsys.readouterr().err.split() == ["interrupted"]


def test_other_errors_are_not_hidden():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _command.run(main)


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path):
    _command.make(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file cannot be a folder of results"):
        _command.make(tmp_path / "file")
