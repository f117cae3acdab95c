"""Training by hand: the gradients are those of `jax.grad`, no differentiation is in the path, a wrong one is seen."""

import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from experiments.by_hand import run
from tests.compiling import fast_jit, of_a_user

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_the_command(tmp_path):
    """One epoch as a user starts it."""
    out = tmp_path / "results"
    command = [sys.executable, "-m", "experiments.by_hand.run", "--epochs", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=of_a_user(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {"by_hand.json", "by_hand.png", "report.html"}
    assert (out / "by_hand.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((out / "by_hand.json").read_text())
    assert 0 < content["largest_difference"] < 1e-5  # float32 rounding; average pooling and tanh have no kink
    assert content["largest_difference_of_the_losses"] < 1e-5
    assert len(content["largest_difference_by_array"]) == 14
    by_hand, by_grad = content["losses"].values()
    assert len(by_hand) == len(by_grad) == len(content["largest_difference_by_step"]) == 44
    assert by_hand[-1] < by_hand[0] / 4  # it learns
    assert f"{content['largest_difference']:.2e} of its norm" in done.stdout
    assert "no jax.grad, jax.vjp or custom_vjp among the" in content["path"]
    assert content["path"] in done.stdout
    report = (out / "report.html").read_text()
    assert "python -m experiments.by_hand.run --epochs 1</pre>" in report
    assert str(tmp_path) not in report
    assert "loss 0." in done.stderr  # the progress bar


def test_the_other_network_and_the_other_loss(monkeypatch):
    """Maxima, relu and the squared error agree as well, where no rounding can choose the other side of a kink."""
    for name in ("step_by_hand", "step_by_grad"):
        step = getattr(run, name).__wrapped__
        monkeypatch.setattr(run, name, fast_jit(step, static_argnums=(4, 5)))
    config = dataclasses.replace(run.DEFAULT, pool="max", activation="relu")
    rng = np.random.default_rng(0)
    network = jax.eval_shape(lambda: run.lenet5.init(jax.random.key(0), config))
    params, state = jax.tree.map(lambda a: (0.1 * rng.standard_normal(a.shape)).astype(a.dtype), network)
    images = rng.standard_normal((3, 32, 32, 1)).astype(np.float32)
    labels = np.array([3, 0, 9], np.int32)
    with jax.numpy_dtype_promotion("standard"):  # the script's own setting
        difference = run.difference_in_float64(params, state, images, labels, config, "squared_error")
    assert 0 < difference < 1e-10


@pytest.mark.parametrize("right_in_float64", [True, False])
def test_a_difference_is_taken_again_in_float64(right_in_float64, tmp_path, monkeypatch, capsys):
    """Two arrays stand for the network. One gradient by hand is wrong: always, or as a rounded kink is, in float32."""

    def step(params, state, images, labels, config, loss, wrong=False):
        assert (config.pool, config.activation, loss) == ("max", "relu", "squared_error")
        gradients = {name: np.ones_like(images, shape=3) for name in params}
        if wrong and not (right_in_float64 and images.dtype == np.float64):
            gradients["gamma"] = -gradients["gamma"]
        return run.Step(params, state, jnp.float32(0.5), gradients)

    monkeypatch.setattr(run, "step_by_grad", step)
    monkeypatch.setattr(run, "step_by_hand", functools.partial(step, wrong=True))
    monkeypatch.setattr(run, "check_paths", lambda *_: "checked")
    monkeypatch.setattr(run, "accuracy", lambda *_: 0.25)
    monkeypatch.setattr(run.lenet5, "init", lambda *_: (dict.fromkeys(("beta", "gamma"), np.zeros(3)), {}))
    refused = contextlib.nullcontext() if right_in_float64 else pytest.raises(SystemExit, match="a formula is wrong")
    options = ["--epochs", "1", "--pool", "max", "--activation", "relu", "--loss", "squared_error"]
    with refused:
        run.main([*options, "--out", str(tmp_path)])
    content = json.loads((tmp_path / "by_hand.json").read_text())
    assert content["largest_difference_by_array"] == {"beta": 0.0, "gamma": pytest.approx(2)}
    again = content["suspicious_steps_in_float64"]
    assert again == {str(i): 0.0 if right_in_float64 else pytest.approx(2) for i in range(1, 45)}
    assert "2.00e+00 of its norm (gamma, step 1)" in capsys.readouterr().out
    assert (tmp_path / "by_hand.png").exists()


def test_differentiation_is_found_wherever_it_hides():
    x = jnp.arange(1.0, 4.0)

    def f(x):
        return jnp.sin(x @ jnp.outer(x, x).T).sum()

    for hidden in (
        jax.grad(f),
        jax.jit(jax.grad(f)),
        jax.grad(jax.jit(f)),
        lambda x: jax.vjp(f, x)[1](jnp.float64(1)),
        lambda x: jax.jvp(f, (x,), (x,)),
        jax.checkpoint(jax.grad(f)),
        lambda x: jax.lax.cond(x[0] > 0, jax.grad(f), jnp.cos, x),
        jax.vmap(jax.grad(jnp.sin)),
        bnderiv.relu,
        jax.jit(bnderiv.tanh),
        jax.nn.relu,
    ):
        assert run.traces_of_autodiff(jax.make_jaxpr(hidden)(x)), hidden
    assert not run.traces_of_autodiff(jax.make_jaxpr(jax.jit(f))(x))


def test_the_step_by_hand_is_refused_with_a_rule_in_it(monkeypatch):
    def step(rule, x):
        return jnp.sin(rule(x)).sum()

    monkeypatch.setattr(run, "step_by_grad", jax.jit(jax.grad(functools.partial(step, jnp.cos))))
    monkeypatch.setattr(run, "step_by_hand", jax.jit(functools.partial(step, jnp.cos)))
    assert "among the 3 operations" in run.check_paths((jnp.ones(3),))
    monkeypatch.setattr(run, "step_by_hand", jax.jit(functools.partial(step, bnderiv.tanh)))
    with pytest.raises(AssertionError, match=r"in the path by hand: .*custom_vjp_call"):
        run.check_paths((jnp.ones(3),))
    monkeypatch.setattr(run, "step_by_grad", jax.jit(jnp.cos))
    monkeypatch.setattr(run, "step_by_hand", jax.jit(jnp.cos))
    with pytest.raises(AssertionError, match=r"does not see jax\.grad"):
        run.check_paths((jnp.ones(3),))


def test_relative_differences():
    a = {"w": np.array([3.0, 4.5], np.float32), "b": {"c": np.zeros(2), "d": np.ones(2)}}
    b = {"w": np.array([3.0, 4.0], np.float32), "b": {"c": np.zeros(2), "d": np.zeros(2)}}
    found = run.relative_differences(a, b)
    assert list(found) == ["b/c", "b/d", "w"]
    assert list(found.values()) == pytest.approx([0, 2**0.5, 0.1])


@pytest.mark.parametrize("arguments", ["--epochs 0", "--seed -1", "--loss mse", "--pool min", "--activation step"])
def test_refused_options(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(arguments.split())
    assert arguments.split()[0].removeprefix("--") in f"{ended.value} {capsys.readouterr().err}"


@pytest.mark.parametrize("folder", ["", "squared_error", "max_relu"])
def test_the_page_has_the_numbers_of_the_results(folder):
    page = (ROOT / "experiments/by_hand/README.md").read_text()
    numbers = json.loads((ROOT / "experiments/by_hand/results" / folder / "by_hand.json").read_text())
    keys = ("largest_difference", "median_over_steps", "largest_difference_of_the_losses")
    shown = [f"{numbers[key]:.1e}".replace("e-0", "e-") for key in keys]
    accuracies = " / ".join(f"{100 * numbers['test_accuracy'][way]:.2f} %" for way in ("by_hand", "jax_grad"))
    rows = [[cell.partition(" at one step")[0].strip() for cell in row.split("|")[2:6]] for row in page.splitlines()]
    assert [*shown, accuracies] in rows
