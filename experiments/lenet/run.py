"""LeNet-5 with batch norm learns handwritten digits, every gradient derived by hand.

    python experiments/lenet/run.py              one training: curves, metrics, parameters
    python experiments/lenet/run.py --compare    with batch norm, without, and average pooling + tanh, over five seeds

The data are scikit-learn's 1,797 real digits of 8×8 pixels, part of its installation: nothing is downloaded.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import bnderiv
from bnderiv.models import lenet5

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
SPLIT_SEED = 0  # one split for every run: --seed draws the parameters and the order of the images
SEEDS = range(5)
DEFAULT = lenet5.Config(image_shape=(32, 32, 1))
SETTINGS = {
    "with batch norm": DEFAULT,
    "without batch norm": dataclasses.replace(DEFAULT, batch_norm=False),
    "average pooling, tanh, with batch norm": dataclasses.replace(DEFAULT, pool="avg", activation="tanh"),
}


class Recipe(NamedTuple):
    """How a network is trained: gradient descent with Nesterov's momentum, the rate falling along half a cosine."""

    epochs: int
    batch_size: int
    learning_rate: float
    shift: int  # training images are moved by up to so many pixels (one pixel of the digits is four)


class Data(NamedTuple):
    """Images (N, 32, 32, 1), standardized by the training images' mean and deviation, and labels (N,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class Result(NamedTuple):
    """A trained network. `curves` holds, after each epoch, loss and accuracy over all training and all test images."""

    params: Any
    state: Any
    curves: dict[str, list[float]]
    seconds: float


def load_data(validation: bool = False) -> Data:
    """A fifth of the digits is held out for the test, with the classes in the same proportions.

    With `validation` the test images stay unseen: a fifth of the training images takes their place.
    """
    pixels, digits = (np.asarray(a) for a in load_digits(return_X_y=True))
    rest = np.arange(len(digits))
    held_out = rest[:0]
    for _ in range(2 if validation else 1):
        rest, held_out = train_test_split(rest, test_size=0.2, stratify=digits[rest], random_state=SPLIT_SEED)
    mean, deviation = pixels[rest].mean(), pixels[rest].std()
    images = ((pixels - mean) / deviation).astype(np.float32).reshape(-1, 8, 8)
    images = np.kron(images, np.ones((1, 4, 4), np.float32))[..., None]
    labels = digits.astype(np.int32)
    return Data(images[rest], labels[rest], images[held_out], labels[held_out])


def loss_and_logits(params, state, images, labels, config, *, train):
    logits, state = lenet5.apply(params, state, images, config, train=train)
    return bnderiv.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (logits, state)


def update(params, state, optimizer_state, images, labels, config, optimizer):
    """One step of training on one batch."""
    gradient, (_, state) = jax.grad(loss_and_logits, has_aux=True)(params, state, images, labels, config, train=True)
    changes, optimizer_state = optimizer.update(gradient, optimizer_state, params)
    return optax.apply_updates(params, changes), state, optimizer_state


def evaluate(params, state, images, labels, config):
    """Loss and accuracy of the network as it is used: normalized by the running statistics."""
    loss, (logits, _) = loss_and_logits(params, state, images, labels, config, train=False)
    return loss, (logits.argmax(-1) == labels).mean()


compiled_update = jax.jit(update, static_argnames=("config", "optimizer"))
compiled_evaluate = jax.jit(evaluate, static_argnames="config")


def shifted(images: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by its own draw of up to `most` pixels either way; what comes in is background."""
    rows, columns = images.shape[1:3]
    wide = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), constant_values=images.min())
    down, right = rng.integers(0, 2 * most + 1, (2, len(images), 1, 1))
    picture = np.arange(len(images))[:, None, None]
    return wide[picture, down + np.arange(rows)[:, None], right + np.arange(columns)]


@functools.cache  # one object for a recipe, so that several runs share one compilation
def make_optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    return optax.sgd(optax.cosine_decay_schedule(recipe.learning_rate, steps), momentum=0.9, nesterov=True)


def train(config: lenet5.Config, recipe: Recipe, data: Data, seed: int, title: str) -> Result:
    """Trains one network, in an order drawn anew for every epoch (the last images that fill no batch sit it out)."""
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    count, size = len(data.train_labels), recipe.batch_size
    batches = count // size
    optimizer = make_optimizer(recipe, recipe.epochs * batches)
    params, state = lenet5.init(jax.random.key(seed), config)
    optimizer_state = optimizer.init(params)
    curves: dict[str, list[float]] = {
        "training_loss": [],
        "training_accuracy": [],
        "test_loss": [],
        "test_accuracy": [],
    }
    with tqdm(total=recipe.epochs * batches, desc=title, unit="step", dynamic_ncols=True) as bar:
        for _ in range(recipe.epochs):
            for rows in rng.permutation(count)[: batches * size].reshape(batches, size):
                images = shifted(data.train_images[rows], recipe.shift, rng)
                params, state, optimizer_state = compiled_update(
                    params, state, optimizer_state, images, data.train_labels[rows], config, optimizer
                )
                bar.update()
            for name, images, labels in (("training", *data[:2]), ("test", *data[2:])):
                loss, accuracy = compiled_evaluate(params, state, images, labels, config)
                curves[f"{name}_loss"].append(float(loss))
                curves[f"{name}_accuracy"].append(float(accuracy))
            last = {name: values[-1] for name, values in curves.items()}
            shown = "loss {training_loss:.4f}, accuracy {training_accuracy:.1%}, test {test_accuracy:.1%}"
            bar.set_postfix_str(shown.format(**last))
    return Result(params, state, curves, time.perf_counter() - start)


def draw_curves(result: Result) -> bytes:
    """Loss and accuracy against the epoch, training and test images."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    epochs = range(1, len(result.curves["training_loss"]) + 1)
    for name, style in (("training", "--"), ("test", "-")):
        left.plot(epochs, result.curves[f"{name}_loss"], style, label=f"{name} images")
        right.plot(epochs, [100 * a for a in result.curves[f"{name}_accuracy"]], style, label=f"{name} images")
    return finish(
        figure, left, right, f"LeNet-5 on held-out digits: {result.curves['test_accuracy'][-1]:.1%} recognized"
    )


def draw_comparison(results: dict[str, list[Result]]) -> bytes:
    """Test loss and accuracy against the epoch: every seed, and their mean."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for name, runs in results.items():
        for axes, curve, unit in ((left, "test_loss", 1), (right, "test_accuracy", 100)):
            values = unit * np.array([run.curves[curve] for run in runs])
            epochs = range(1, values.shape[1] + 1)
            (line,) = axes.plot(epochs, values.mean(0), lw=2.5, label=name)
            axes.plot(epochs, values.T, color=line.get_color(), lw=0.6, alpha=0.6)
    return finish(figure, left, right, "LeNet-5 on held-out digits: thin lines are single seeds, thick ones their mean")


def finish(figure, left, right, title: str) -> bytes:
    figure.suptitle(title)
    left.set(title="Loss", xlabel="epoch", ylabel="cross entropy", yscale="log")
    right.set(title="Accuracy", xlabel="epoch", ylabel="images recognized, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    plt.close(figure)
    return buffer.getvalue()


def parameters_file(result: Result) -> bytes:
    """Every array under its path, such as params/conv1/kernel or state/bn1/mean, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path({"params": result.params, "state": result.state})
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        **{jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(a) for path, a in leaves},
    )
    return buffer.getvalue()


def as_json(content: dict[str, Any]) -> bytes:
    packages = ("jax", "jaxlib", "numpy", "optax", "scikit-learn")
    content["versions"] = {"python": platform.python_version()} | {name: version(name) for name in packages}
    content["device"] = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def write(path: Path, content: bytes) -> None:
    """The whole file or none of it, however the run ends: written under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()


def rounded(curves: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """For JSON, which has no NaN: a loss that is no number any more becomes null."""
    return {name: [round(v, 6) if np.isfinite(v) else None for v in values] for name, values in curves.items()}


def run_once(config: lenet5.Config, recipe: Recipe, data: Data, seed: int, out: Path) -> None:
    """Trains, writes the three files, and says what came out."""
    result = train(config, recipe, data, seed, "LeNet-5")
    accuracy = result.curves["test_accuracy"][-1]
    images = len(data.test_labels)
    metrics = {
        "test_accuracy": accuracy,
        "test_images": images,
        "seconds": round(result.seconds, 1),
        "seed": seed,
        "recipe": recipe._asdict(),
        "config": dataclasses.asdict(config) | {"dtype": str(config.dtype)},
        "curves": rounded(result.curves),
    }
    write(out / "curves.png", draw_curves(result))
    write(out / "metrics.json", as_json(metrics))
    write(out / "parameters.npz", parameters_file(result))
    wrong = round((1 - accuracy) * images)
    print(f"test accuracy {accuracy:.2%} ({wrong} of {images} images wrong), trained in {result.seconds:.0f} s")
    for what, name in (("curves", "curves.png"), ("metrics", "metrics.json"), ("parameters", "parameters.npz")):
        print(f"{what:<13} {out / name}")


def compare(recipe: Recipe, data: Data, out: Path) -> None:
    """Trains each setting with each seed; writes a table and a picture."""
    results = {
        name: [train(config, recipe, data, seed, f"{name}, seed {seed}") for seed in SEEDS]
        for name, config in SETTINGS.items()
    }
    settings = {}
    print(f"\n{'test accuracy, %':<40} mean ± deviation     worst   seconds a run")
    for name, runs in results.items():
        accuracies = [run.curves["test_accuracy"][-1] for run in runs]
        mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
        seconds = [round(run.seconds, 1) for run in runs]
        print(
            f"{name:<40}    {100 * mean:5.2f} ± {100 * deviation:4.2f}"
            f"      {100 * min(accuracies):6.2f}   {np.median(seconds):7.1f}"
        )
        settings[name] = {
            "mean": round(mean, 6),
            "deviation": round(deviation, 6),
            "test_accuracy": [round(accuracy, 6) for accuracy in accuracies],
            "seconds": seconds,
            "curves": [rounded(run.curves) for run in runs],
        }
    write(out / "comparison.png", draw_comparison(results))
    write(out / "comparison.json", as_json({"recipe": recipe._asdict(), "seeds": list(SEEDS), "settings": settings}))
    print(f"\n{'picture':<13} {out / 'comparison.png'}\n{'numbers':<13} {out / 'comparison.json'}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--shift", type=int, default=3, help="most pixels a training image is moved by; 0 for not")
    parser.add_argument("--seed", type=int, default=0, help="draws the parameters and the order of the images")
    parser.add_argument("--no-batch-norm", dest="batch_norm", action="store_false")
    parser.add_argument("--pool", choices=("max", "avg"), default="max")
    parser.add_argument("--activation", choices=("relu", "tanh", "sigmoid"), default="relu")
    parser.add_argument("--compare", action="store_true", help="the three settings, five seeds each")
    parser.add_argument("--validation", action="store_true", help="test on a fifth of the training images instead")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    options = parser.parse_args(arguments)

    data = load_data(options.validation)
    if options.epochs < 1 or not 1 <= options.batch_size <= len(data.train_labels):
        parser.error(f"--epochs must be at least 1, --batch-size between 1 and {len(data.train_labels)}")
    if options.shift < 0:
        parser.error("--shift must be at least 0")
    recipe = Recipe(options.epochs, options.batch_size, options.learning_rate, options.shift)
    if options.compare:
        compare(recipe, data, options.out)
        return
    config = dataclasses.replace(
        DEFAULT, batch_norm=options.batch_norm, pool=options.pool, activation=options.activation
    )
    run_once(config, recipe, data, options.seed, options.out)


if __name__ == "__main__":
    main()
