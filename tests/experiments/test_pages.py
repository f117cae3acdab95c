"""The commands that the pages print: each is there, and none changes a committed file."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.compiling import of_a_user

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "experiments").rglob("*.md"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(r"python -m (experiments\.[\w.]+\w)((?:\\\n|[^\n&#`'])*)")
# The quickest form of each, added to what the page says.
QUICK = {
    "experiments.accuracy.run": "--quick",
    "experiments.batchnorm_effect.run": "--steps 2 --sweep-steps 2 --every 2 --seeds 1 --sweep-seeds 1 --sweep-rates 1",
    "experiments.benchmark.run": "--quick --only memory",
    "experiments.by_hand.run": "--epochs 1",
    "experiments.checking.run": "--only embedding",
    "experiments.distributed.run": "--epochs 1",
    "experiments.distributed.scale": "--devices 2",
    "experiments.dropin.run": "--parts time-float32 --width 1 --batch 2 --rounds 2",
    "experiments.lenet.compare": "--seeds 2",
    "experiments.lenet.run": "--epochs 1 --model mlp",
    "experiments.norms.run": "--quick",
    "experiments.notebooks.run": "naive_variance",
}
NEED_FLAX = {"experiments.dropin.run", "experiments.norms.run"}
# Several processes, and compilers that need not be installed; of the comparisons those of the digits are enough.
LEFT_OUT = re.compile(r"ahead_of_time|--cluster|--tpu|--process-id|mnist_|digits_rate")


def printed():
    """(module, words) of each command in a fenced block."""
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.M | re.S):
            for module, words in COMMAND.findall(block):
                yield module, words.replace("\\\n", " ").strip()


def test_what_is_printed_is_there():
    found = {module for page in PAGES for module, _ in COMMAND.findall(page.read_text())} - {
        "experiments.dropin.patched"
    }
    assert len(found) > 8
    for module in found:
        assert "_command.start(" in (ROOT / (module.replace(".", "/") + ".py")).read_text(), module
    for module, words in printed():
        assert "/results" not in words, (module, words)
        assert module in QUICK or LEFT_OUT.search(module + words), module


@pytest.mark.slow
@pytest.mark.exhaustive
def test_they_leave_the_repository_clean(tmp_path):
    """In a clone, in the order of the pages."""
    clone, images = tmp_path / "clone", tmp_path / "images"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    images.mkdir()
    for part, count in (("train", 100), ("t10k", 10)):
        for what, array in (("images", np.arange(count * 784) % 251), ("labels", np.arange(count) % 10)):
            shape = (count, 28, 28) if what == "images" else (count,)
            header = b"".join(n.to_bytes(4, "big") for n in (0x0800 + len(shape), *shape))
            (images / f"{part}-{what}-idx{len(shape)}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    done = set()
    for module, words in printed():
        if LEFT_OUT.search(module + words):
            continue
        words = re.sub(r"\b(MNIST_)?FOLDER\b|\bmnist$", str(images), words)
        if (module, words) in done or (module in NEED_FLAX and not importlib.util.find_spec("flax")):
            continue
        done.add((module, words))
        command = [sys.executable, "-m", module, *shlex.split(words), *shlex.split(QUICK[module])]
        ended = subprocess.run(
            command, cwd=clone, env=of_a_user("PYTHONPATH"), capture_output=True, text=True, timeout=600
        )
        assert ended.returncode == 0, (command, ended.stderr[-3000:])
        status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
        assert status.stdout == "", command
        for runs in (clone / "experiments").glob("*/runs"):
            shutil.rmtree(runs)
    assert {module for module, _ in done} >= QUICK.keys() - NEED_FLAX
