"""LeNet-5 with batch norm learns handwritten digits by formulas alone: no automatic differentiation in the path.

    python -m experiments.by_hand.run

Two networks start from the same parameters and see the same batches. One takes its gradients from
`bnderiv.steps.lenet5`, the chain rule written out line by line, the other from `jax.grad` of the library's model. At
every step both gradients are also taken at the first network's parameters and compared, array by array.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.by_hand.run")

import dataclasses
import functools
import re
import time
from typing import Any, Literal, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

import bnderiv
from bnderiv import steps
from bnderiv.check.jaxprs import equations
from bnderiv.models import lenet5
from experiments import _options, _report
from experiments._data import load
from experiments._options import AtLeastOne, Seed

DEFAULT = lenet5.Config(image_shape=(32, 32, 1))
BATCH_SIZE = 32
LEARNING_RATE = 0.1
LOSSES = {"cross_entropy": "cross entropy", "squared_error": "half the squared error"}
ROUNDING = 2.0**-24  # relative, of one float32 operation
SUSPICIOUS = 1e-5  # a difference above it is taken again in float64, where rounding is no excuse


class Settings(_options.Measured):
    """Which network learns, and how long."""

    epochs: AtLeastOne = 3
    """The passes over the training images."""
    seed: Seed = 0
    """The seed of the parameters and of the order of the images."""
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    """The loss is the cross entropy of a softmax, or half the squared error of a tanh."""
    pool: Literal["avg", "max"] = "avg"
    """LeNet-5 pools by the average or by the maximum."""
    activation: Literal["tanh", "relu", "sigmoid"] = "tanh"
    """The activation of every hidden layer."""


class Step(NamedTuple):
    """What one step of gradient descent returns."""

    params: Any
    state: Any
    loss: jax.Array
    gradients: Any


@functools.partial(jax.jit, static_argnums=(4, 5))
def step_by_hand(params, state, images, labels, config: lenet5.Config, loss: str) -> Step:
    """p ← p − η ∂J/∂p, every ∂J/∂p from its formula."""
    s = steps.lenet5(params, state, images, labels, config, loss=loss)
    return Step(descend(params, s.gradients), s.state, s.loss, s.gradients)


@functools.partial(jax.jit, static_argnums=(4, 5))
def step_by_grad(params, state, images, labels, config: lenet5.Config, loss: str) -> Step:
    """The same, the gradients from `jax.grad`: it puts together the layers' own rules."""

    def mean_loss(params):
        logits, new = lenet5.apply(params, state, images, config, train=True)
        if loss == "cross_entropy":
            return bnderiv.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new
        targets = jax.nn.one_hot(labels, config.classes, dtype=logits.dtype)
        return bnderiv.squared_error(bnderiv.tanh(logits), targets).mean(), new

    (value, new), gradients = jax.value_and_grad(mean_loss, has_aux=True)(params)
    return Step(descend(params, gradients), new, value, gradients)


@functools.partial(jax.jit, static_argnums=4)
def accuracy(params, state, images, labels, config: lenet5.Config) -> jax.Array:
    """Of the network as it is used: normalized by the running statistics."""
    logits, _ = lenet5.apply(params, state, images, config, train=False)
    return (logits.argmax(-1) == labels).mean()


def descend(params, gradients):
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradients)


def traces_of_autodiff(jaxpr: Any) -> list[str]:
    """What differentiation leaves in a traced function: attached rules, and all that bears jvp or transpose of it.

    A plain matrix transpose does not count: its name has no parenthesis.
    """
    found = []
    for equation in equations(jaxpr):
        names = (equation.primitive.name, str(equation.source_info.name_stack), str(equation.params.get("name", "")))
        found += [name for name in names if re.search(r"custom_(vjp|jvp)|\b(jvp|transpose)\(", name)]
    return found


def check_paths(arguments: tuple[Any, ...]) -> str:
    """Looks through the very functions that train. That `jax.grad` is found in the other shows that it would be."""
    by_hand, by_grad = (step.trace(*arguments).jaxpr for step in (step_by_hand, step_by_grad))
    operations, found, control = list(equations(by_hand)), traces_of_autodiff(by_hand), traces_of_autodiff(by_grad)
    if found:
        raise AssertionError(f"automatic differentiation in the path by hand: {sorted(set(found))}")
    if not control:
        raise AssertionError("the search for automatic differentiation does not see jax.grad")
    return (
        f"no jax.grad, jax.vjp or custom_vjp among the {len(operations)} operations of the step by hand"
        f" (the other step shows {len(control)} traces of them)"
    )


def relative_differences(a: Any, b: Any) -> dict[str, float]:
    """‖a − b‖ / ‖b‖ of every array of two trees, by its path."""
    found = {}
    for (name, x), y in zip(_report.named(a).items(), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        found[name] = float(np.linalg.norm(x - y) / (np.linalg.norm(y) or 1))
    return found


def difference_in_float64(params, state, images, labels, config: lenet5.Config, loss: str) -> float:
    """The largest difference of the two gradients at the same place, taken with 16 digits in place of 7."""
    with jax.enable_x64(True):
        config = dataclasses.replace(config, dtype=np.float64)
        params, state, images = jax.tree.map(
            lambda a: np.asarray(a, np.float64 if np.issubdtype(a.dtype, np.floating) else a.dtype),
            (params, state, images),
        )
        taken = [step(params, state, images, labels, config, loss) for step in (step_by_hand, step_by_grad)]
        return max(relative_differences(*(step.gradients for step in taken)).values())


def measure(options: Settings) -> dict[str, Any]:
    """Trains both networks, in an order drawn anew for every epoch (the last images that fill no batch sit it out)."""
    config, loss = dataclasses.replace(DEFAULT, pool=options.pool, activation=options.activation), options.loss
    data = load()
    start = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    count = len(data.train_labels)
    batches = count // BATCH_SIZE
    hand = grad = lenet5.init(jax.random.key(options.seed), config)

    def batch_of(rows: Any) -> tuple[Any, ...]:
        return data.standardized(data.train_images[rows]), data.train_labels[rows], config, loss

    checked = check_paths((*hand, *batch_of(slice(BATCH_SIZE))))
    print(checked)
    _command.say("compiling both steps …")
    losses: dict[str, list[float]] = {"by_hand": [], "jax_grad": []}
    differences: list[dict[str, float]] = []
    in_float64: dict[str, float] = {}
    largest: list[float] = []
    with _command.bar(total=options.epochs * batches, desc="LeNet-5 by hand", unit="step") as bar:
        for _ in range(options.epochs):
            for rows in rng.permutation(count)[: batches * BATCH_SIZE].reshape(batches, BATCH_SIZE):
                batch = batch_of(rows)
                by_hand, by_grad = step_by_hand(*hand, *batch), step_by_grad(*grad, *batch)
                differences.append(relative_differences(by_hand.gradients, step_by_grad(*hand, *batch).gradients))
                largest.append(float(np.max(list(differences[-1].values()))))
                if not largest[-1] <= SUSPICIOUS:
                    in_float64[str(len(largest))] = difference_in_float64(*hand, *batch)
                hand, grad = (by_hand.params, by_hand.state), (by_grad.params, by_grad.state)
                losses["by_hand"].append(float(by_hand.loss))
                losses["jax_grad"].append(float(by_grad.loss))
                bar.set_postfix_str(f"loss {by_hand.loss:.4f}, largest difference {np.max(largest):.1e}", refresh=False)
                bar.update()
    accuracies = {
        name: float(accuracy(*network, data.standardized(data.test_images), data.test_labels, config))
        for name, network in (("by_hand", hand), ("jax_grad", grad))
    }
    settings = {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    return {
        "largest_difference": np.max(largest),
        "median_over_steps": np.median(largest),
        "largest_difference_of_the_losses": max(abs(a - b) for a, b in zip(*losses.values(), strict=True)),
        "suspicious_steps_in_float64": in_float64,
        "test_accuracy": accuracies,
        "path": checked,
        "seconds": round(time.perf_counter() - start, 1),
        "largest_difference_by_array": {name: max(each[name] for each in differences) for name in differences[0]},
        "largest_difference_by_step": [float(f"{value:.3g}") for value in largest],
        "losses": _report.rounded(losses, 7),
        "configuration": options.shown() | settings | dataclasses.asdict(config) | {"dtype": str(config.dtype)},
    }


def draw(content: dict[str, Any]) -> bytes:
    """The two losses on each other; below, how far the gradients of the same parameters are apart."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(_report.WIDTH, 7.4), sharex=True)
    losses, again = content["losses"], content["suspicious_steps_in_float64"]
    steps = np.arange(1, len(losses["by_hand"]) + 1)
    above.plot(steps, losses["jax_grad"], color="tab:orange", lw=6, alpha=0.5, label="gradients by jax.grad")
    above.plot(steps, losses["by_hand"], color="black", lw=1, label="gradients by hand")
    above.set(title="Loss of each batch: one curve lies on the other", yscale="log")
    above.set_ylabel(LOSSES[content["configuration"]["loss"]])
    arrays = len(content["largest_difference_by_array"])
    below.plot(steps, content["largest_difference_by_step"], color="tab:blue", label=f"the largest of {arrays} arrays")
    below.axhline(ROUNDING, color="gray", ls="--", label="rounding of one float32 operation")
    below.axhline(1, color="tab:red", ls="--", label="as large as the gradient: a wrong formula")
    if again:
        values = np.maximum(list(again.values()), 1e-17)
        below.plot([int(step) for step in again], values, "v", color="tab:green", label="taken again in float64")
    below.set(
        title="Difference of the two gradients at the same parameters",
        xlabel=f"step (batches of {BATCH_SIZE} images)",
        ylabel="‖by hand − jax.grad‖ / ‖jax.grad‖",
        yscale="log",
        ylim=(1e-17 if again else 1e-8, 10),
    )
    above.legend()
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return _report.png(figure)


def present(content: dict[str, Any]) -> _report.Report:
    """The page of a run."""
    by_hand, by_grad = (f"{value:.2%}" for value in content["test_accuracy"].values())
    by_array, by_step = content["largest_difference_by_array"], content["largest_difference_by_step"]
    again, largest = content["suspicious_steps_in_float64"], content["largest_difference"]
    above = f"steps above {SUSPICIOUS:.0e}"
    where = f"{max(by_array, key=by_array.__getitem__)}, step {1 + np.argmax(by_step)}"
    said = {
        "largest difference of any gradient": f"{largest:.2e} of its norm ({where})",
        "the largest of a step, median": f"{content['median_over_steps']:.2e}",
        above: f"{len(again)}; in float64 {max(again.values(), default=0):.2e} at most",
        "largest difference of the losses": f"{content['largest_difference_of_the_losses']:.2e}",
        "test accuracy": f"{by_hand} by hand, {by_grad} by jax.grad",
    }
    caption = (
        "Two networks from the same parameters: one learns by formulas, one by jax.grad. Above, their losses; "
        "below, how far the two gradients are apart at each step."
    )
    return _report.Report(
        "LeNet-5 by formulas alone",
        f"No gradient by hand differs from that of jax.grad by more than {largest:.1e} of its norm; {by_hand} of the "
        f"test images are recognized by hand, {by_grad} by jax.grad.",
        [
            _report.Picture("Losses and gradients", "by_hand.png", draw(content), caption),
            _report.Table(
                "Array by array",
                ("array", "largest difference of a step"),
                [(name, f"{value:.1e}") for name, value in by_array.items()],
                "‖by hand − jax.grad‖ / ‖jax.grad‖, both taken at the same parameters.",
            ),
            _report.Text("What is in the path", content["path"] + "."),
        ],
        facts={
            "seconds": content["seconds"],
            f"{above}, in float64": ", ".join(f"step {step}: {value:.0e}" for step, value in again.items()) or "none",
        },
        said="\n".join(f"{name:<35} {value}" for name, value in said.items()),
        wrong="the gradients differ in float64 too: a formula is wrong" * (not max(again.values(), default=0) < 1e-9),
    )


main = _report.experiment(Settings, "by_hand.json", measure, present)
