"""What a finished run leaves in its folder: numbers, parameters, pictures and the report."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import _command, _report
from experiments._data import Data
from experiments.lenet import network, plots
from experiments.lenet import training as trainings
from experiments.lenet.configuration import Configuration
from experiments.lenet.training import Progress, State

MODELS = {"lenet5": "LeNet-5", "mlp": "Perceptron"}


def save(folder: Path, state: State, progress: Progress, data: Data, configuration: Configuration) -> dict[str, Path]:
    """Writes all files; returns them by what they show."""
    history = progress.history
    answers = trainings.answers(state, data.test_images, data.test_labels, data.levels, configuration)
    accuracy, images = answers.accuracy(data.test_labels), len(data.test_labels)
    wrong = int((answers.classes() != data.test_labels).sum())
    model = configuration.network(data.image_shape)
    metrics = {
        "test_accuracy": accuracy,
        "test_images": images,
        "wrong": wrong,
        "parameters": network.count(state.params),
        "seconds_per_epoch": float(np.median(history["seconds"])),
        "network": dataclasses.asdict(model) | {"dtype": str(model.dtype)},
        "images": data.fingerprint(),
        "history": rounded(history),
    }
    summary = f"{MODELS[configuration.model]} on held-out images: {accuracy:.2%} recognized, {wrong} of {images} wrong"
    pictures = {
        "curves": _report.Picture(
            "How it learned",
            plots.curves(history, configuration.loss, summary),
            "Loss and accuracy after each epoch, by the running statistics, of images as they are (not moved).",
        ),
        "kernels": _report.Picture(
            "What the first layer looks for",
            plots.first_kernels(state.params, data.image_shape, "The first layer's kernels after training"),
            "Red weighs ink in favor, blue against.",
        ),
        "confusion": _report.Picture(
            "What was taken for what",
            plots.confusion(
                data.test_labels,
                answers.classes(),
                configuration.classes,
                f"{wrong} mistake{'s' * (wrong != 1)} among {images} images",
            ),
            "A row for what an image is, a column for what it was taken for; in gray, those recognized.",
        ),
        "mistakes": _report.Picture(
            "The most confident mistakes",
            plots.mistakes(
                data.test_images,
                data.test_labels,
                answers.outputs,
                configuration.output,
                f"The most confident mistakes, with the {configuration.output} of the answer",
            ),
            "Test images that were taken for something else, the most confident first.",
        ),
        "gradients": _report.Picture(
            "Gradients, layer by layer",
            plots.gradient_norms(history, "How much gradient reaches each layer"),
            "The norm of the gradient of each layer's kernel, mean over the batches of the epoch.",
        ),
    }
    files = {name: folder / f"{name}.png" for name in pictures}
    for name, picture in pictures.items():
        _report.write(files[name], picture.png)
    files |= {"metrics": folder / "metrics.json", "parameters": folder / "parameters.npz"}
    _report.write(files["metrics"], _report.as_json(metrics))
    _report.write(files["parameters"], parameters_file(state))
    files["report"] = folder / "report.html"
    facts = {
        "parameters": f"{metrics['parameters']:,}",
        "images": f"{len(data.train_labels):,} for training, {images:,} held out",
        "seconds an epoch": f"{metrics['seconds_per_epoch']:.2g} (median, evaluation apart)",
    }
    report = _report.page(
        MODELS[configuration.model] + (", with batch norm" if configuration.batch_norm else ", without batch norm"),
        summary + ".",
        list(pictures.values()),
        command=_command.line("experiments.lenet.run", "train", *configuration.arguments()),
        configuration=dataclasses.asdict(configuration),
        facts=facts,
    )
    _report.write(files["report"], report)
    return files


def parameters_file(state: State) -> bytes:
    """Every array under its path, such as params/conv1/kernel or state/bn1/mean, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path({"params": state.params, "state": state.running})
    buffer = io.BytesIO()
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(a) for path, a in leaves}
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def rounded(history: Any) -> Any:
    """Six digits after the point; a loss that is no number any more becomes null."""
    if isinstance(history, dict):
        return {name: rounded(values) for name, values in history.items()}
    return [round(value, 6) if np.isfinite(value) else None for value in history]
