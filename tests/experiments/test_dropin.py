"""A Flax model with its batch norm and with ours: the same function, the same step; what is written about it."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("flax", reason="the model is Flax's, of the extra `flax`")

import flax.linen as nn

from experiments import _report
from experiments.dropin import run
from tests.compiling import fast_jit


class Small(nn.Module):
    """Takes what the experiment's network takes, and is quick to compile."""

    width: int
    batch_norm: Any
    fused: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3), 4, "VALID", use_bias=False, dtype=self.dtype)(x)
        x = run.Layer(self.batch_norm, fused=self.fused, dtype=self.dtype)(x)
        return nn.Dense(10)(x.mean((1, 2)).astype(jnp.float32))


@pytest.fixture(autouse=True)
def promotion():
    """The script's own setting: Flax promotes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(jax, "jit", fast_jit)


def options(**changed: Any) -> run.Settings:
    few: dict[str, Any] = {"width": 4, "batch": 8, "steps": 3, "rounds": 3}
    return run.Settings(**few | changed)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_variants_are_one_function(quickly):
    """The network itself. A constant on the images is lost behind the stem's batch norm, but for rounding."""
    losses = run.measure_loss(options(width=2, steps=2), jnp.float32, (0.0, 1e4))
    plain, far = ({name: np.array(values) for name, values in losses[shift].items()} for shift in ("0", "10000"))
    assert list(plain) == list(run.VARIANTS)
    for name, values in plain.items():
        np.testing.assert_allclose(values, plain["Flax"], rtol=1e-4, err_msg=name)
    assert abs(plain["bnderiv"][1] - plain["bnderiv"][0]) > 1e-2  # it moves
    for name in ("bnderiv", 'bnderiv, activation="relu"'):
        np.testing.assert_allclose(far[name], plain[name], rtol=1e-2)
    assert abs(far["Flax"][0] - plain["Flax"][0]) > 5 * abs(far["bnderiv"][0] - plain["bnderiv"][0])


@pytest.mark.slow
def test_a_step_is_gradient_descent_with_momentum():
    """Against optax, in two steps."""
    model = Small(4, nn.BatchNorm)
    images, labels = run.batches(options(), 2)
    variables = jax.jit(model.init)(jax.random.key(0), images[0])
    state = variables["params"], variables["batch_stats"], jax.tree.map(jnp.zeros_like, variables["params"])
    step = jax.jit(run.make_step(model))
    optimizer = optax.sgd(0.02, momentum=0.9)
    kept = optimizer.init(variables["params"])

    @jax.jit
    def gradient(params, statistics, x, y):
        def loss(params):
            out, new = model.apply({"params": params, **statistics}, x, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    params, statistics = variables["params"], {"batch_stats": variables["batch_stats"]}
    for x, y in zip(images, labels, strict=True):
        state, value = step(state, x, y)
        (wanted, statistics), d = gradient(params, statistics, x, y)
        updates, kept = optimizer.update(d, kept)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state[:2]), jax.tree.leaves((params, statistics)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_batches_are_the_digits_in_an_order_of_their_own():
    images, labels = run.batches(options(batch=32), 40)
    assert images.shape == (40, 32, 32, 32, 1)
    data = run.load()
    first = {image.tobytes() for image in np.asarray(images[:20]).reshape(-1, 32 * 32)}
    assert len(first) > 620  # of 640; a few of the digits are the same picture
    place = {
        image.tobytes(): label
        for image, label in zip(data.standardized(data.train_images), data.train_labels, strict=True)
    }
    for image, label in zip(np.asarray(images[0]), np.asarray(labels[0]), strict=True):
        assert place[image.tobytes()] == label
    assert (labels[0] != labels[1]).any()


@pytest.fixture
def small(monkeypatch, quickly):
    monkeypatch.setattr(run, "ResNet18", Small)


@pytest.mark.slow
def test_the_command(small, tmp_path, capsys):
    """Two parts, and everything drawn again from their numbers."""
    arguments = ["--width", "4", "--batch", "8", "--steps", "11", "--rounds", "3", "--out"]
    run.main(["--parts", "time-float32", "loss-bfloat16", *arguments, str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"dropin.json", "dropin.png", "report.html"}
    numbers = json.loads((tmp_path / "dropin.json").read_text())
    times = numbers["time-float32"]
    assert list(times) == list(run.VARIANTS)
    assert all(len(result["seconds"]) == 3 and result["temporary_bytes"] > 0 for result in times.values())
    assert {"date", "machine", "versions", "configuration"} < numbers.keys()
    assert "flax" in numbers["versions"]
    assert {len(losses) for losses in numbers["loss-bfloat16"]["0"].values()} == {11}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    run.main(["--redraw", "--out", str(tmp_path)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    printed = capsys.readouterr().out
    assert table(run.time_table(numbers)) in printed
    assert table(run.loss_table(numbers)) in printed
    report = before["report.html"].decode()
    assert f"{times['bnderiv']['temporary_bytes'] / 2**20:.1f} MiB with bnderiv" in report
    assert str(tmp_path) not in report


def table(made):
    return _report.table(made.columns, made.rows)


def test_tables_by_hand():
    seconds = [0.010, 0.020, 0.030]
    result = {"temporary_bytes": 3 << 20, "seconds": seconds}
    numbers = {
        "time-float32": {name: result for name in run.VARIANTS},
        "loss-float32": {"1000": {name: [9.0] * 5 + [1.0] * 9 + [2.0] for name in run.VARIANTS}},
    }
    assert "| Flax | 20 (10–30) | 3.0 |  |  |" in table(run.time_table(numbers))
    assert '| `bnderiv, activation="relu"` |  | 1.100 |  |  |' in table(run.loss_table(numbers))


def test_the_readme_has_the_tables_of_the_numbers():
    folder = Path(run.__file__).parent
    numbers = json.loads((folder / "results" / "dropin.json").read_text())
    text = (folder / "README.md").read_text()
    assert table(run.time_table(numbers)) in text
    assert table(run.loss_table(numbers)) in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rounds 1", "rounds must be >= 2, got 1"),
        ("--width 0", "width must be >= 1, got 0"),
        ("--redraw", "dropin.json: no numbers of an earlier run there"),
        ("--parts time", "invalid choice 'time'"),
    ],
)
def test_refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main([*words.split(), "--out", str(tmp_path / "results")])
    assert message in " ".join(f"{ended.value} {capsys.readouterr().err}".split())
    assert list(tmp_path.iterdir()) == []
