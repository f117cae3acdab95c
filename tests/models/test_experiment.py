"""The LeNet-5 experiment: its data, its order of training, and the files it leaves."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from bnderiv.models import lenet5
from experiments.lenet import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two epochs of the command as a user starts it: its output, and its folder of results."""
    out = tmp_path_factory.mktemp("results")
    command = [sys.executable, "experiments/lenet/run.py", "--epochs", "2", "--out", str(out)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done, out


def test_the_command_learns_and_says_where_its_files_are(trained):
    done, out = trained
    assert {path.name for path in out.iterdir()} == {"curves.png", "metrics.json", "parameters.npz"}
    accuracy, *files = done.stdout.splitlines()
    assert [line.split()[-1] for line in files] == [
        str(out / name) for name in ("curves.png", "metrics.json", "parameters.npz")
    ]
    metrics = json.loads((out / "metrics.json").read_text())
    assert accuracy.startswith(f"test accuracy {metrics['test_accuracy']:.2%}")
    assert metrics["test_accuracy"] > 0.85
    assert "loss 0." in done.stderr  # the progress bar
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {name: len(values) for name, values in metrics["curves"].items()} == dict.fromkeys(
        ["training_loss", "training_accuracy", "test_loss", "test_accuracy"], 2
    )
    assert metrics["versions"]["jax"] == jax.__version__


def test_the_files_are_enough_to_use_the_network(trained):
    """The README's lines: the configuration and the parameters, read back, give the accuracy that was reported."""
    _, out = trained
    metrics = json.loads((out / "metrics.json").read_text())
    config = lenet5.Config(**metrics["config"])
    assert config == lenet5.Config(image_shape=(32, 32, 1))
    shapes = jax.eval_shape(lambda: lenet5.init(jax.random.key(0), config))
    with np.load(out / "parameters.npz") as file:
        params, state = jax.tree.unflatten(jax.tree.structure(shapes), file.values())
        np.testing.assert_array_equal(file["params/dense3/kernel"], params["dense3"]["kernel"])
        np.testing.assert_array_equal(file["state/bn4/var"], state["bn4"].var)
    assert state["bn1"].count == 2 * (1437 // 64)
    chex.assert_trees_all_equal_shapes(params, shapes[0])
    data = run.load_data()
    with jax.numpy_dtype_promotion("standard"):  # the script's own setting
        _, accuracy = run.compiled_evaluate(params, state, *data[2:], config)
    assert float(accuracy) == pytest.approx(metrics["test_accuracy"], abs=1e-6)


def test_the_data():
    data = run.load_data()
    assert data.train_images.shape == (1437, 32, 32, 1)
    assert data.test_images.shape == (360, 32, 32, 1)
    assert data.train_images.dtype == np.float32
    assert abs(data.train_images.mean()) < 1e-4
    assert abs(data.train_images.std() - 1) < 1e-4
    blocks = data.test_images.reshape(360, 8, 4, 8, 4)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))  # 4×4 enlarged
    assert np.bincount(data.test_labels).min() >= 34  # every class in its share
    np.testing.assert_array_equal(data.test_labels, run.load_data().test_labels)  # the same split every time


def test_validation_never_sees_a_test_image():
    def pictures(images):
        """Each picture by the order of its gray levels, which standardizing by other constants keeps."""
        small = images[:, ::4, ::4, 0].reshape(len(images), -1)
        return [tuple(np.unique(np.round(row, 3), return_inverse=True)[1]) for row in small]

    data, validation = run.load_data(), run.load_data(validation=True)
    test, train = set(pictures(data.test_images)), set(pictures(data.train_images))
    seen = pictures(validation.train_images) + pictures(validation.test_images)
    assert len(seen) == 1437
    assert not test & set(seen)
    assert set(seen) <= train


def test_every_epoch_has_an_order_of_its_own(monkeypatch):
    """Each image at most once in an epoch, another order in the next, the same again with the same seed."""
    data = run.load_data()
    data = run.Data(np.zeros((50, 32, 32, 1), np.float32), np.arange(50), data.test_images, data.test_labels)
    seen = []

    def update(params, state, optimizer_state, images, labels, *_):
        seen.append(labels)
        return params, state, optimizer_state

    monkeypatch.setattr(run, "compiled_update", update)
    monkeypatch.setattr(run, "compiled_evaluate", lambda *_: (0.0, 0.0))
    monkeypatch.setattr(run.lenet5, "init", lambda *_: ({}, {}))
    recipe = run.Recipe(epochs=3, batch_size=16, learning_rate=0.1, shift=1)
    for seed in (0, 0, 1):
        run.train(run.DEFAULT, recipe, data, seed, "")
    first, again, other = (np.array(seen[i : i + 9]).reshape(3, 48) for i in (0, 9, 18))
    np.testing.assert_array_equal(first, again)
    assert all(len(set(epoch)) == 48 for epoch in first)
    assert (first[0] != first[1]).any()
    assert (first[1] != first[2]).any()
    assert (first != other).any()


def test_shifted_images_are_the_images_moved():
    images = np.random.default_rng(0).standard_normal((40, 6, 5, 2)).astype(np.float32)
    moved = run.shifted(images, 2, np.random.default_rng(1))
    assert moved.dtype == np.float32
    offsets = set()
    for image, result in zip(images, moved, strict=True):
        wide = np.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=images.min())
        places = [(i, j) for i in range(5) for j in range(5) if (wide[i : i + 6, j : j + 5] == result).all()]
        assert len(places) == 1
        offsets.update(places)
    assert {i for i, _ in offsets} == {j for _, j in offsets} == set(range(5))
    np.testing.assert_array_equal(run.shifted(images, 0, np.random.default_rng(1)), images)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    run.write(tmp_path / "new" / "metrics.json", b"old")

    def half(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        run.write(tmp_path / "new" / "metrics.json", b"new content")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.json"]
    assert (tmp_path / "new" / "metrics.json").read_text() == "old"


def test_the_comparison(tmp_path, monkeypatch, capsys):
    """Three settings, five seeds; mean and sample deviation as printed and as written."""
    calls = []

    def train(config, recipe, data, seed, title):
        calls.append((config.pool, config.activation, config.batch_norm, seed))
        curve = [0.5, 0.9 + 0.01 * seed]
        names = ("training_loss", "training_accuracy", "test_loss", "test_accuracy")
        return run.Result({}, {}, dict.fromkeys(names, curve), 1.0)

    monkeypatch.setattr(run, "train", train)
    run.main(["--compare", "--epochs", "2", "--out", str(tmp_path)])
    settings = [("max", "relu", True), ("max", "relu", False), ("avg", "tanh", True)]
    assert calls == [(*setting, seed) for setting in settings for seed in range(5)]
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.json", "comparison.png"}
    written = json.loads((tmp_path / "comparison.json").read_text())["settings"]
    assert all(row["mean"] == 0.92 for row in written.values())
    assert all(row["deviation"] == pytest.approx(0.01 * 2.5**0.5, abs=1e-6) for row in written.values())
    assert "92.00 ± 1.58" in capsys.readouterr().out


def test_options_reach_the_network(tmp_path, monkeypatch):
    def train(config, recipe, data, seed, title):
        raise RuntimeError(config, recipe, seed, len(data.test_labels))

    monkeypatch.setattr(run, "train", train)
    arguments = "--no-batch-norm --pool avg --activation tanh --epochs 3 --batch-size 5 --learning-rate 0.5 --shift 1"
    with pytest.raises(RuntimeError) as stopped:
        run.main([*arguments.split(), "--seed", "7", "--validation", "--out", str(tmp_path)])
    config = dataclasses.replace(run.DEFAULT, batch_norm=False, pool="avg", activation="tanh")
    assert stopped.value.args == (config, run.Recipe(3, 5, 0.5, 1), 7, 288)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ["--epochs 0", "--batch-size 0", "--batch-size 1438", "--shift -1", "--pool min"])
def test_refused_options(arguments, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments.split())
    assert arguments.split()[0] in capsys.readouterr().err
