"""A killed run ends with the bits of one that is not; what is damaged or another's is refused and left alone."""

import dataclasses
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments._command import Refused
from experiments.lenet import checkpoints, training
from experiments.lenet.checkpoints import Checkpoints
from experiments.lenet.configuration import Configuration
from tests.compiling import of_a_user

ROOT = Path(__file__).parents[2]
UNFINISHED = "*.orbax-checkpoint-tmp*"
CHOSEN = Configuration(model="mlp", optimizer="adam", learning_rate=1e-3, batch_size=8, epochs=3, shift=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """44 random images in the IDX format: 6 steps an epoch, the last of 4 images."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 44), ("t10k", 10)):
        for what, array in (("images", rng.integers(0, 256, (count, 28, 28))), ("labels", rng.integers(0, 10, count))):
            header = b"".join(n.to_bytes(4, "big") for n in (0x0800 + array.ndim, *array.shape))
            (folder / f"{part}-{what}-idx{array.ndim}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return folder


def start(*words: object, **how: Any) -> subprocess.Popen:
    """The command as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.lenet.run", *map(str, words)],
        cwd=ROOT,
        env=of_a_user(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    out, error = process.communicate(timeout=300)
    assert process.returncode == code, error
    assert "Traceback" not in error
    return out + error


def kill_when(process: subprocess.Popen, reached) -> None:
    """Stops the process as soon as `reached()`, and kills it if that still holds while it stands."""
    try:
        for _ in range(200_000):
            assert process.poll() is None, process.communicate()
            if reached():
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.01)
                if reached():
                    return
                process.send_signal(signal.SIGCONT)
            time.sleep(0.001)
        raise AssertionError("never reached")
    finally:
        process.kill()
        process.communicate()


def parameters(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / "parameters.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run that nothing stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    finish(start("train", *CHOSEN.arguments(), "--data", folder, "--out", run))
    return run


@pytest.mark.slow
def test_killed_at_two_points_it_ends_with_the_same_bits(folder, whole, tmp_path):
    """In the middle of an epoch, while a checkpoint is written; and after the last one, before the results."""
    options = [*CHOSEN.arguments(), "--data", folder, "--checkpoint-every", 2]
    run = tmp_path / "killed"
    kept = run / "checkpoints"

    def in_the_first_epoch():
        return (kept / "2").exists() and not (kept / "6").exists() and list(kept.glob(UNFINISHED))

    kill_when(start("train", *options, "--out", run), in_the_first_epoch)
    assert list(kept.glob(UNFINISHED))
    assert Checkpoints(run).steps() in ([2], [2, 4])

    kill_when(start("resume", run), lambda: (kept / "18").exists())
    assert not (run / "parameters.npz").exists()
    assert not list(kept.glob(UNFINISHED))

    assert "goes on from step 18" in finish(start("resume", run))
    wanted, found = parameters(whole), parameters(run)
    assert wanted.keys() == found.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name, strict=True)
    histories = [json.loads((path / "metrics.json").read_text())["history"] for path in (whole, run)]
    for history in histories:
        assert history.pop("seconds")
    assert histories[0] == histories[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # the limit is set between fork and exec
def test_what_goes_wrong_with_a_checkpoint_is_one_line(folder, whole, tmp_path):
    """In a process of its own: Orbax, TensorStore and their threads have loggers and hooks that pytest would hide."""
    run = tmp_path / "full"

    def without_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    options = [*CHOSEN.arguments(), "--data", folder, "--out", run]
    full = finish(start("train", *options, preexec_fn=without_room), 1).splitlines()
    assert [line for line in full if not re.match(r"Perceptron: .*step/s|\w+ .*…$|run /", line)] == full[-1:]
    assert "the checkpoint of step 6 cannot be written (File too large); there is none before it. Make room" in full[-1]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["lock"]
    run = shutil.copytree(whole, tmp_path / "damaged")
    (run / "checkpoints" / "18" / "about" / "metadata").write_bytes(b"{")
    *words, line = finish(start("test", run), 1).splitlines()
    assert words == ["importing …", "reading the images …", "making the first state …"]
    assert "18: damaged, or not a checkpoint of this experiment; delete that folder to go on from step 12 (" in line


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_a_step_is_compiled(folder, tmp_path):
    """A line and the exit status, wherever in it: JAX's threads may still compile when the process ends."""
    process = start("train", "--data", folder, "--epochs", 1000, "--out", tmp_path / "run")
    assert process.stderr is not None
    assert any(line.startswith("compiling") for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGINT)
    assert finish(process, 130).splitlines()[-1].startswith("interrupted. ")


@pytest.fixture
def saved(tmp_path):
    """A small state, saved after steps 1 and 2."""
    state = training.State(
        {"dense1": {"kernel": jnp.arange(600, dtype=jnp.float32).reshape(20, 30)}},
        {},
        (jnp.int32(3), {"trace": jnp.ones(7)}),
        jax.random.key_data(jax.random.key(5)),
        {"dense1": jnp.float32(0.5)},
        jnp.int32(1),
        jnp.int32(0),
    )
    progress = training.Progress({"seconds": [1.5], "test_loss": [float("nan")]}, 0.25)
    kept = Checkpoints(tmp_path / "run")
    kept.save(state, progress, CHOSEN, "abc")
    state = state._replace(step=jnp.int32(2), params=jax.tree.map(jnp.sin, state.params))
    kept.save(state, progress, CHOSEN, "abc")
    return kept, state, progress


def zeros(state: training.State) -> training.State:
    return jax.tree.map(jnp.zeros_like, state)


def test_what_is_saved_comes_back(saved):
    kept, state, progress = saved
    found, again = kept.restore(zeros(state), CHOSEN, "abc")
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    np.testing.assert_equal(again, progress)
    later = state._replace(step=jnp.int32(5))
    kept.save(later, progress, dataclasses.replace(CHOSEN, data="moved"), "abc")
    assert kept.steps() == [2, 5]  # the last, and the one before
    assert int(kept.restore(zeros(state), CHOSEN, "abc")[0].step) == 5


def test_another_run_s(saved, tmp_path):
    kept, state, _ = saved
    with pytest.raises(Refused, match="of another configuration: epochs 3, not 4; seed 0, not 1"):
        kept.restore(state, dataclasses.replace(CHOSEN, epochs=4, seed=1), "abc")
    with pytest.raises(Refused, match="of other images"):
        kept.restore(state, CHOSEN, "other")
    kept.restore(state, CHOSEN, None)
    other = state._replace(params={"dense1": {"kernel": jnp.zeros((20, 31))}})
    with pytest.raises(Refused, match="2: damaged, or not a checkpoint of this experiment; delete that folder to"):
        kept.restore(other, CHOSEN, "abc")
    with pytest.raises(Refused, match="checkpoints: no checkpoint"):
        Checkpoints(tmp_path / "nothing").restore(state, CHOSEN, "abc")


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("damage", ["half", "empty", "gone", "a bit"])
def test_damage_is_refused_or_harmless(damage, saved, tmp_path):
    """Each file of the last checkpoint in turn: never a state that was not saved; then the one before is taken."""
    kept, state, _ = saved
    last = kept.folder / "2"
    refused = []
    for file in sorted(path for path in last.rglob("*") if path.is_file()):
        content = file.read_bytes()
        match damage:
            case "half":
                file.write_bytes(content[: len(content) // 2])
            case "empty":
                file.write_bytes(b"")
            case "gone":
                file.unlink()
            case _:
                middle = len(content) // 2
                file.write_bytes(content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :])
        try:
            found, _ = kept.restore(zeros(state), CHOSEN, "abc")
        except Refused as error:
            refused.append((file, str(error)))
        else:
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
                np.testing.assert_array_equal(a, b, strict=True)
        file.write_bytes(content)
    kept.restore(zeros(state), CHOSEN, "abc")
    files, messages = zip(*refused, strict=True)
    assert len(files) > 2
    assert last / "about" / "metadata" in files
    assert all("2: damaged, or not a checkpoint" in message for message in messages)
    assert all("delete that folder to go on from step 1 " in message for message in messages)
    shutil.rmtree(last)
    assert int(kept.restore(zeros(state), CHOSEN, "abc")[0].step) == 1


def test_a_wrong_array_is_seen_even_where_orbax_reads_it(saved, monkeypatch):
    kept, state, _ = saved
    monkeypatch.setattr(checkpoints, "_checksum", lambda tree: "another")
    with pytest.raises(Refused, match=r"2: damaged, .* its checksum is another"):
        kept.restore(zeros(state), CHOSEN, "abc")


def test_a_failed_save_removes_what_it_left(saved, monkeypatch):
    kept, state, progress = saved

    def fails(manager, step, **_):
        (kept.folder / f"{step}.orbax-checkpoint-tmp-1").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", fails)
    with pytest.raises(
        Refused, match=r"step 9 cannot be written \(No space left on device\); that of step 2 is complete"
    ):
        kept.save(state._replace(step=jnp.int32(9)), progress, CHOSEN, "abc")
    assert sorted(path.name for path in kept.folder.iterdir()) == ["1", "2"]


def test_a_full_disk_leaves_the_last_checkpoint(saved):
    """No file may grow beyond a few kilobytes, as on a disk with no more room; the array needs 400."""
    kept, state, progress = saved
    noise = jax.random.normal(jax.random.key(0), (100_000,), jnp.float32)
    large = state._replace(params={"dense1": {"kernel": noise}}, step=jnp.int32(9))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Refused, match=r"\(File too large\); that of step 2 is complete"):
            kept.save(large, progress, CHOSEN, "abc")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in kept.folder.iterdir()) == ["1", "2"]
    kept.restore(zeros(state), CHOSEN, "abc")
    kept.save(large, progress, CHOSEN, "abc")  # there is room again
    found, _ = kept.restore(zeros(large), CHOSEN, "abc")
    np.testing.assert_array_equal(found.params["dense1"]["kernel"], noise)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_a_checkpoint_is_written(saved, monkeypatch, capfd):
    """It waits; the checkpoint is whole."""
    kept, state, progress = saved
    save = checkpoints.ocp.CheckpointManager.save

    def interrupted(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGINT)
        return save(*arguments, **keywords)

    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept.save(state._replace(step=jnp.int32(9)), progress, CHOSEN, "abc")
    assert capfd.readouterr() == ("", "")
    assert kept.steps() == [2, 9]
    assert int(kept.restore(zeros(state), CHOSEN, "abc")[0].step) == 9


def test_a_folder_of_checkpoints_that_is_none(tmp_path, another_user):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(Refused, match=r"checkpoints cannot be read \(.*checkpoints is a file\)"):
        Checkpoints(tmp_path).steps()
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "checkpoints").mkdir()
    with another_user(tmp_path), pytest.raises(Refused, match=r"cannot be read \(Permission denied\)"):
        Checkpoints(tmp_path).steps()
    assert Checkpoints(tmp_path).steps() == []


def test_a_failed_task_that_is_collected_late_is_not_reported(monkeypatch, caplog):
    asyncio_says = logging.getLogger("asyncio")
    monkeypatch.setattr(asyncio_says, "disabled", False)
    with pytest.raises(OSError, match="full"), checkpoints._silent():
        raise OSError("full")
    asyncio_says.error("Task exception was never retrieved")
    assert not caplog.records
