"""What a finished run leaves in its folder: numbers, parameters, pictures and the report."""

import dataclasses
import io
from pathlib import Path

import jax
import numpy as np

from experiments import _command, _report
from experiments._data import Data
from experiments.lenet import plots
from experiments.lenet import training as trainings
from experiments.lenet.configuration import Configuration
from experiments.lenet.training import Progress, State

MODELS = {"lenet5": "LeNet-5", "mlp": "Perceptron"}


def save(folder: Path, state: State, progress: Progress, data: Data, configuration: Configuration) -> None:
    """Writes all files, and prints what came out and where they are."""
    history, labels = progress.history, data.test_labels
    answers = trainings.answers(state, data.test_images, labels, data.levels, configuration)
    wrong, images = int((answers.classes() != labels).sum()), len(labels)
    model = configuration.network(data.image_shape)
    metrics = {
        "command": _command.line("experiments.lenet.run", "train", *configuration.anonymous().arguments()),
        "test_accuracy": answers.accuracy(labels),
        "test_images": images,
        "wrong": wrong,
        "parameters": sum(a.size for a in jax.tree.leaves(state.params)),
        "seconds_per_epoch": float(np.median(history["seconds"])),
        "network": dataclasses.asdict(model) | {"dtype": str(model.dtype)},
        "images": data.fingerprint(),
        "history": _report.rounded(history, 6),
    }
    accuracy = f"{metrics['test_accuracy']:.2%}"
    summary = f"{MODELS[configuration.model]} on held-out images: {accuracy} recognized, {wrong} of {images} wrong"
    mistakes = f"{wrong} mistake{'s' * (wrong != 1)} among {images} images"
    output = configuration.output
    pictures = [
        _report.Picture(
            "How it learned",
            "curves.png",
            plots.curves(history, configuration.loss, summary),
            "Loss and accuracy after each epoch, by the running statistics, of images as they are (not moved).",
        ),
        _report.Picture(
            "What the first layer looks for",
            "kernels.png",
            plots.first_kernels(state.params, data.image_shape, "The first layer's kernels after training"),
            "Red weighs ink in favor, blue against.",
        ),
        _report.Picture(
            "What was taken for what",
            "confusion.png",
            plots.confusion(labels, answers.classes(), configuration.classes, mistakes),
            "A row for what an image is, a column for what it was taken for; in gray, those recognized.",
        ),
        _report.Picture(
            "The most confident mistakes",
            "mistakes.png",
            plots.mistakes(data.test_images, labels, answers.outputs, output),
            f"Test images taken for something else, the most confident first, with the {output} of the answer.",
        ),
        _report.Picture(
            "Gradients, layer by layer",
            "gradients.png",
            plots.gradient_norms(history, "How much gradient reaches each layer"),
            "The norm of the gradient of each layer's kernel, mean over the batches of the epoch.",
        ),
    ]
    report = _report.Report(
        MODELS[configuration.model] + (", with batch norm" if configuration.batch_norm else ", without batch norm"),
        summary + ".",
        pictures,
        facts={
            "parameters": f"{metrics['parameters']:,}",
            "images": f"{len(data.train_labels):,} for training, {images:,} held out",
            "seconds an epoch": f"{metrics['seconds_per_epoch']:.2g} (median, evaluation apart)",
        },
        said=f"test accuracy {accuracy} ({wrong} of {images} images wrong), trained in {sum(history['seconds']):.0f} s",
    )
    _report.write(folder / "parameters.npz", parameters_file(state))
    _report.keep(folder / "metrics.json", metrics, configuration)
    _report.show(folder / "metrics.json", lambda _: report)  # the page last: with it the run is finished
    print(folder / "parameters.npz")


def parameters_file(state: State) -> bytes:
    """Every array under its path, such as params/conv1/kernel or state/bn1/mean, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path({"params": state.params, "state": state.running})
    buffer = io.BytesIO()
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(a) for path, a in leaves}
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
