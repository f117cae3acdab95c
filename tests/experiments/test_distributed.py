"""Training over devices and processes: the losses of one device, and those of groups where statistics are a group's."""

import dataclasses
import functools
import json
import pathlib
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv.models import lenet5
from experiments import _command, _data
from experiments.distributed import run, training
from tests.compiling import fast_jit, of_a_user

ROOT = Path(__file__).parents[2]
STEPS, BATCH, RATE = 3, 16, 0.05
CONFIG = lenet5.Config(dtype="float64", pool="avg", activation="tanh")  # no kinks for rounding to fall either side of


@functools.cache
def make_batches():
    rng = np.random.default_rng(0)
    return rng.standard_normal((STEPS, BATCH, 28, 28, 1)), rng.integers(0, 10, (STEPS, BATCH)).astype(np.int32)


@pytest.fixture
def batches():
    return make_batches()


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(jax, "jit", fast_jit)


def trained(batches, mesh):
    network = training.init(jax.random.key(0), CONFIG, mesh)
    step = training.make_step(CONFIG, mesh, RATE)
    losses = []
    for images, labels in zip(*batches, strict=True):
        network, loss = step(network, training.spread(images, mesh), training.spread(labels, mesh))
        losses.append(float(loss))
    return losses, jax.device_get(network)


@functools.cache
def trained_alone(groups):
    """Without sharding: the groups one after the other, loss and running statistics their mean."""
    params, state = lenet5.init(jax.random.key(0), CONFIG)
    velocity = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def gradient(params, state, images, labels):
        def loss(params):
            logits, new = zip(*(lenet5.apply(params, state, x, CONFIG, train=True) for x in images), strict=True)
            parts = [
                bnderiv.reference.softmax_cross_entropy_with_integer_labels(*pair)
                for pair in zip(logits, labels, strict=True)
            ]
            return jnp.concatenate(parts).mean(), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    losses = []
    for images, labels in zip(*make_batches(), strict=True):
        parts = (a.reshape(groups, -1, *a.shape[1:]) for a in (images, labels))
        (loss, new), d = gradient(params, state, *parts)
        state = jax.tree.map(lambda *of_groups: sum(of_groups) / groups, *new)
        state = {name: running._replace(count=jnp.int32(running.count)) for name, running in state.items()}
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, d)
        params = jax.tree.map(lambda p, v: p - RATE * v, params, velocity)
        losses.append(float(loss))
    return losses, (params, state, velocity)


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "group", "groups"),
    [(1, 0, 1), (8, 0, 1), (2, 1, 2), (8, 4, 2)],
    ids=["one device", "synchronized", "ghost batches", "groups of four"],
)
def test_devices_train_to_the_numbers_of_one(devices, group, groups, batches, quickly):
    """By loops over the groups on one device: losses, parameters, running statistics and momenta."""
    losses, network = trained(batches, training.mesh_of(jax.devices()[:devices], group))
    expected, numbers = trained_alone(groups)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    for a, b in zip(jax.tree.leaves(network), jax.tree.leaves(numbers), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)
    assert network[1]["bn1"].count == STEPS
    if groups > 1:  # the test can tell groups from none
        params, state = lenet5.init(jax.random.key(0), CONFIG)
        apply = jax.jit(partial(lenet5.apply, config=CONFIG, train=True))
        logits, _ = apply(params, state, batches[0][0])
        together = bnderiv.reference.softmax_cross_entropy_with_integer_labels(logits, batches[1][0]).mean()
        assert abs(losses[0] - together) > 1e-4


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_have_the_loss_curve_of_one_device(tmp_path):
    """The commands of the README, in float64: two processes of two devices each, and one process of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments.distributed.run", "--epochs", "1", "--dtype", "float64"]

    def start(*options, devices):
        return subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            env=of_a_user() | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(*workers):
        try:
            printed = [worker.communicate(timeout=500)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        assert all(worker.returncode == 0 for worker in workers), "\n".join(printed)
        return printed

    one, two = tmp_path / "one", tmp_path / "two"
    finish(start("--out", str(one), devices=1))
    together = ("--coordinator-address", f"127.0.0.1:{port}", "--num-processes", "2")
    together += ("--compare", str(one / "run.json"), "--out", str(two))
    printed = finish(*(start(*together, "--process-id", str(i), devices=2) for i in range(2)))
    alone, both = (json.loads((folder / "run.json").read_text()) for folder in (one, two))
    assert (alone["processes"], alone["devices"], both["processes"], both["devices"]) == (1, 1, 2, 4)
    assert len(both["losses"]) == 1437 // 64
    np.testing.assert_allclose(both["losses"], alone["losses"], rtol=1e-11)
    assert both["losses"][-1] < both["losses"][0] / 2
    assert both["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=1e-12)
    assert both["comparison"]["with"] == "1 process, 1 device"
    assert both["comparison"]["largest"] < 1e-11
    assert {path.name for path in two.iterdir()} == {"run.json", "losses.png", "report.html"}
    assert "recognized" in printed[0]
    assert "recognized" not in printed[1]  # the first process speaks and writes
    assert str(tmp_path) not in (two / "run.json").read_text() + (two / "report.html").read_text()


def nine_images():
    images, labels = np.zeros((9, 28, 28, 1), np.uint8), np.zeros(9, np.int32)
    return _data.Data(images, labels, images, labels, np.arange(256, dtype=np.float32))


@pytest.mark.slow
def test_accuracy_by_the_running_statistics(quickly, monkeypatch):
    """Of more images than are evaluated at once; by a network whose running statistics are none of these images'."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 28, 28, 1)).astype(np.uint8)
    levels = ((np.arange(256) - 127.5) / 74).astype(np.float32)
    config = lenet5.Config()
    monkeypatch.setattr(training, "CHUNK", 10)
    params, state = lenet5.init(jax.random.key(0), config)
    state = {name: running._replace(mean=running.mean + 0.3, var=2 * running.var) for name, running in state.items()}
    logits, _ = jax.jit(partial(lenet5.apply, config=config, train=False))(params, state, levels[images])
    labels = np.asarray(logits).argmax(-1)
    labels[[3, 13, 23]] += 1
    assert (
        training.evaluate((params, state, params), config, _data.Data(images, labels, images, labels, levels))
        == 21 / 24
    )


def test_groups_share_out_the_devices():
    assert training.mesh_of(jax.devices()[:8]).devices.shape == (1, 8)
    assert training.mesh_of(jax.devices()[:8], 2).devices.shape == (4, 2)
    assert [d.id for d in training.mesh_of(jax.devices()[:4], 2).devices[0]] == [0, 1]  # neighbors
    with pytest.raises(_command.Refused, match="group must divide the number of devices, 8, got 3"):
        training.mesh_of(jax.devices()[:8], 3)


def test_what_a_run_is_called():
    assert run.name_of(1, 1, 0) == "1 process, 1 device"
    assert run.name_of(2, 8, 0) == "2 processes, 4 devices each"
    assert run.name_of(1, 8, 1) == "1 process, 8 devices, statistics of 1"
    assert run.name_of(1, 8, 8) == "1 process, 8 devices"


def test_how_far_two_curves_are_apart():
    assert run.differences([1.0, 3.0], [1.0, 2.0]).tolist() == [0, 0.5]
    with pytest.raises(_command.Refused, match="that run has 1 steps, this one 2"):
        run.differences([1.0, 3.0], [1.0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"group": -1}, "group must be >= 0, got -1"),
        ({"num_processes": 2}, "come together"),
        ({"rate": -1.0}, "rate must be > 0, got -1.0"),
        ({"compare": pathlib.Path("nowhere")}, "compare must be the run.json of another run, got nowhere"),
        ({"cluster": True, "coordinator_address": "a:1", "num_processes": 2, "process_id": 0}, "by itself"),
    ],
)
def test_settings_that_make_no_sense(changed, message):
    with pytest.raises(_command.Refused, match=message):
        dataclasses.replace(run.Settings(), **changed)


def test_batches_that_cannot_be_shared_out():
    data = nine_images()
    with pytest.raises(_command.Refused, match="batch_size must be a multiple of the number of devices, 8, got 12"):
        run.train(run.Settings(batch_size=12), data, jax.devices()[:8])
    with pytest.raises(_command.Refused, match="batch_size must be at most the number of images, 9, got 16"):
        run.train(run.Settings(batch_size=16), data, jax.devices()[:8])
    small = data._replace(train_images=data.train_images[:, :4, :4])
    with pytest.raises(_command.Refused, match="images: image_shape must be at least 28×28, got 4×4"):
        run.train(run.Settings(batch_size=8, data=pathlib.Path("images")), small, jax.devices()[:8])


def test_a_run_of_another_length_is_refused_before_training(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "another", "losses": [1.0, 2.0]}')
    data = nine_images()
    with pytest.raises(_command.Refused, match="that run has 2 steps, this one 3"):
        run.train(run.Settings(batch_size=8, compare=tmp_path / "run.json"), data, jax.devices()[:8])
