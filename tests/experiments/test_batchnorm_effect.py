"""The batch norm paper's network: its formulas, its training against plain loops, and the files of the command."""

import dataclasses
import inspect
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _command, _data
from experiments.batchnorm_effect import network, run
from tests.compiling import fast_jit

FEATURES, IMAGES = 12, 130


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES + 40, FEATURES)).astype(np.uint8)
    levels = ((np.arange(256) - 127.5) / 74).astype(np.float32)
    labels = rng.integers(0, network.CLASSES, IMAGES + 40).astype(np.int32)
    train, test = slice(None, IMAGES), slice(IMAGES, None)
    parts = (images[train], labels[train], images[test], labels[test], levels)
    return jax.tree.map(jnp.asarray, _data.Data(*parts))


@pytest.fixture(autouse=True)
def few_probes(monkeypatch):
    monkeypatch.setattr(network, "PROBES", 20)


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(jax, "jit", fast_jit)


def forward_by_hand(params, batch_norm, x, statistics):
    """The network in NumPy and float64. `statistics`: of each hidden layer, or None for those of x."""
    found = []
    for i, layer in enumerate(params[:-1]):
        z = x @ layer["kernel"]
        if batch_norm:
            mean, var = (z.mean(0), z.var(0)) if statistics is None else statistics[i]
            found.append((mean, var * len(x) / (len(x) - 1)))
            z = layer["gamma"] * (z - mean) / np.sqrt(var + 1e-5) + layer["beta"]
        else:
            z = z + layer["bias"]
        x = 1 / (1 + np.exp(-z))
    return x @ params[-1]["kernel"] + params[-1]["bias"], z, found


def losses_by_hand(logits, labels):
    return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[:, None], -1)[:, 0]


def trained_by_loops(key, rate, task, batch_norm, deviation, steps, every):
    """`network.train` step by step, its gradients by central differences along one random direction per step.

    Differences cannot give every gradient, so each step is checked along its direction and then taken with the
    library's gradient: what is compared in full are the measurements.
    """
    init_key, order_key = jax.random.split(key)
    params, state = network.init(init_key, FEATURES, deviation, batch_norm)
    curves, taken, epoch = [], 0, 0
    rng = np.random.default_rng(1)
    running = [(np.zeros(100), np.ones(100))] * 3
    to64 = partial(jax.tree.map, lambda a: np.asarray(a, np.float64))

    def note():
        p = to64(params)
        logits, _, _ = forward_by_hand(p, batch_norm, np.float64(task.levels[task.test_images]), running)
        _, z, _ = forward_by_hand(p, batch_norm, np.float64(task.levels[task.test_images[: network.PROBES]]), running)
        labels = np.asarray(task.test_labels)
        curves.append(
            (
                (logits.argmax(-1) == labels).mean(),
                losses_by_hand(logits, labels).mean(),
                np.percentile(z, network.PERCENTILES, axis=0),
            )
        )

    while taken < steps:
        order = np.asarray(_data.epoch_order(order_key, epoch, IMAGES))
        for rows in order[: IMAGES // network.BATCH * network.BATCH].reshape(-1, network.BATCH):
            if taken == steps:
                break
            if taken % every == 0:
                note()
            x, y = np.float64(task.levels[task.train_images[rows]]), np.asarray(task.train_labels)[rows]

            def loss(p, x=task.levels[task.train_images[rows]], y=task.train_labels[rows]):
                logits, _, _ = network.apply(p, state, x, train=True)
                shifted = jax.nn.log_softmax(logits)
                return -jnp.take_along_axis(shifted, y[:, None], -1).mean()

            gradient = to64(jax.grad(loss)(params))
            p = to64(params)
            direction = jax.tree.map(lambda a: rng.standard_normal(a.shape), p)
            ahead, behind = (
                losses_by_hand(
                    forward_by_hand(
                        jax.tree.map(lambda a, d, step=step: a + step * d, p, direction), batch_norm, x, None
                    )[0],
                    y,
                ).mean()
                for step in (1e-5, -1e-5)
            )
            along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
            assert along == pytest.approx((ahead - behind) / 2e-5, rel=1e-3, abs=1e-4)
            _, _, found = forward_by_hand(p, batch_norm, x, None)
            running = (
                [
                    tuple(0.9 * a + 0.1 * b for a, b in zip(*pair, strict=True))
                    for pair in zip(running, found, strict=True)
                ]
                if batch_norm
                else running
            )
            params = jax.tree.map(lambda a, g: (a - rate * g).astype(np.float32), p, gradient)
            taken += 1
        epoch += 1
    note()
    return [np.array(a) for a in zip(*curves, strict=True)]


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [True, False], ids=["with", "without"])
def test_training_against_loops(batch_norm, task, quickly):
    """Six steps over three epochs: the order, the update, the running statistics and all that is noted."""
    options = {"batch_norm": batch_norm, "deviation": 0.3, "steps": 6, "every": 2}
    key, rate = jax.random.key(3), 0.5
    curves = jax.jit(partial(network.train, **options))(key, jnp.float32(rate), task)
    accuracy, loss, percentiles = trained_by_loops(key, rate, task, **options)
    np.testing.assert_allclose(curves.loss, loss, rtol=2e-5)
    np.testing.assert_allclose(curves.accuracy, accuracy, atol=1e-6)
    np.testing.assert_allclose(curves.percentiles, percentiles, rtol=1e-4, atol=1e-4)
    assert curves.percentiles.shape == (4, 3, 100)
    assert abs(loss[-1] - loss[0]) > 1e-3


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_sweep_is_every_run_by_itself(task, quickly):
    """Seeds and rates stay apart: one program of all gives what each training alone gives."""
    options = {"deviation": 0.3, "steps": 4, "every": 2}
    keys, rates = jax.random.split(jax.random.key(0), 2), jnp.array([0.1, 3.0], jnp.float32)
    together = jax.jit(partial(inspect.unwrap(network.sweep), **options))(keys, rates, task)
    assert set(together) == {"with batch norm", "without batch norm"}
    for name, curves in together.items():
        alone = jax.jit(partial(network.train, data=task, batch_norm=name.startswith("with "), **options))
        assert curves.loss.shape == (2, 2, 3)
        for i, key in enumerate(keys):
            for j, rate in enumerate(rates):
                for one, all_of_them in zip(alone(key, rate), curves, strict=True):
                    np.testing.assert_allclose(all_of_them[i, j], one, rtol=2e-4, atol=2e-5)
        last = np.asarray(curves.loss[..., -1])
        assert len(np.unique(last)) == 4  # no two the same


@pytest.mark.slow
def test_the_kernels_are_gaussian_and_small():
    params, state = network.init(jax.random.key(0), 784, 0.1, True)
    assert [layer["kernel"].shape for layer in params] == [(784, 100), (100, 100), (100, 100), (100, 10)]
    assert float(params[0]["kernel"].std()) == pytest.approx(0.1, rel=0.02)
    assert [set(layer) for layer in params] == [{"kernel", "gamma", "beta"}] * 3 + [{"kernel", "bias"}]
    assert [s is not None for s in state] == [True] * 3 + [False]
    params, state = network.init(jax.random.key(0), 784, 0.1, False)
    assert [set(layer) for layer in params] == [{"kernel", "bias"}] * 4
    assert state == [None] * 4


def test_the_unit_that_is_drawn_is_the_middle_one():
    """Five units whose medians range over 0, 1, 2, 3, 4 once training has begun; before, all over more."""
    steps = np.linspace(0, 1, 6)[:, None]
    middle = np.concatenate([[[9, -9, 9, -9, 9]], steps * np.array([3, 0, 4, 2, 1])])
    percentiles = np.stack([middle - 1, middle, middle + 2 + 0 * middle], 1)
    assert run.typical_unit(percentiles) == 3
    assert run.median_unit(percentiles[None]) == {"median_range": 2.0, "spread_first": 3.0, "spread_last": 3.0}


def test_where_a_curve_first_is_so_high():
    accuracy = np.array([[0.1, 0.5, 0.9, 0.8], [0.1, 0.7, 0.9, 0.8]])
    assert run.first_reached(np.array([0, 5, 10, 15]), accuracy, 0.6) == 5
    assert run.first_reached(np.array([0, 5, 10, 15]), accuracy, 0.95) is None


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """On the digits, few steps: batch norm is ahead, and the files are there and say so."""
    options = "--steps 200 --sweep-steps 100 --every 100 --seeds 2 --sweep-seeds 1 --sweep-rates 0.1 100"
    with jax.numpy_dtype_promotion("standard"):  # the script's own setting
        run.main([*options.split(), "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"figure1.png", "rates.png", "results.json", "report.html"}
    content = json.loads((tmp_path / "results.json").read_text())
    accuracy = {name: np.array(a) for name, a in content["first_figure"]["test_accuracy"].items()}
    assert accuracy["with batch norm"].shape == (2, 3)
    assert (accuracy["with batch norm"][:, -1] > 0.9).all()
    assert (accuracy["without batch norm"][:, -1] < 0.6).all()
    assert content["first_figure"]["steps"] == [0, 100, 200]
    assert np.array(content["rates_figure"]["test_accuracy"]["with batch norm"]).shape == (1, 2)
    assert content["configuration"]["data"] is None
    assert str(tmp_path) not in (tmp_path / "results.json").read_text() + (tmp_path / "report.html").read_text()
    for name in ("figure1.png", "rates.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "without." in capsys.readouterr().out
    pictures = {name: (tmp_path / name).read_bytes() for name in ("figure1.png", "rates.png")}
    (tmp_path / "rates.png").unlink()
    run.main(["--redraw", "--out", str(tmp_path)])
    assert pictures == {name: (tmp_path / name).read_bytes() for name in pictures}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"sweep_steps": 700}, "sweep_steps must be a multiple of every = 500, got 700"),
        ({"sweep_rates": (0.1, -1.0)}, "sweep_rates must be > 0, got -1.0"),
        ({"deviation": 0.0}, "deviation must be > 0, got 0.0"),
    ],
)
def test_settings_that_make_no_sense(changed, message):
    with pytest.raises(_command.Refused, match=message):
        dataclasses.replace(run.Settings(), **changed)


def test_an_option_that_is_refused_is_a_line():
    """Not tyro's frame of six."""
    with pytest.raises(SystemExit) as ended:
        run.main(["--steps", "501"])
    assert ended.value.code == "steps must be a multiple of every = 500, got 501"


def test_bad_data_end_the_command_with_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="no file of test images"):
        run.main(["--data", str(tmp_path)])
