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
    history, labels, name = progress.history, data.test_labels, MODELS[configuration.model]
    answers = trainings.answers(state, data.test_images, labels, data.levels, configuration)
    found, images, parameters = answers.classes(), len(labels), sum(a.size for a in jax.tree.leaves(state.params))
    wrong, accuracy = int((found != labels).sum()), answers.accuracy(labels)
    seconds = float(np.median(history["seconds"]))
    model = configuration.network(data.image_shape)
    metrics = {
        "command": _command.line("experiments.lenet.run", "train", *configuration.anonymous().arguments()),
        "test_accuracy": accuracy,
        "test_images": images,
        "wrong": wrong,
        "parameters": parameters,
        "seconds_per_epoch": seconds,
        "network": dataclasses.asdict(model) | {"dtype": str(model.dtype)},
        "images": data.fingerprint(),
        "history": _report.rounded(history, 6),
    }
    summary = f"{name} on held-out images: {accuracy:.2%} recognized, {wrong} of {images} wrong"
    report = _report.Report(
        f"{name}, with{'' if configuration.batch_norm else 'out'} batch norm",
        summary + ".",
        [
            plots.curves(history, configuration.loss, summary),
            plots.first_kernels(state.params, data.image_shape),
            plots.confusion(labels, found, configuration.classes),
            plots.mistakes(data.test_images, labels, answers.outputs, configuration.output),
            plots.gradient_norms(history),
        ],
        facts={
            "parameters": f"{parameters:,}",
            "images": f"{len(data.train_labels):,} for training, {images:,} held out",
            "seconds an epoch": f"{seconds:.2g} (median, evaluation apart)",
        },
        said=f"test accuracy {accuracy:.2%} ({wrong} of {images} images wrong), "
        f"trained in {sum(history['seconds']):.0f} s",
    )
    arrays = jax.tree_util.tree_leaves_with_path({"params": state.params, "state": state.running})
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(a) for path, a in arrays}
    np.savez(file := io.BytesIO(), allow_pickle=False, **named)  # in the order of the tree
    _report.write(folder / "parameters.npz", file.getvalue())
    _report.keep(folder / "metrics.json", metrics, configuration)
    _report.show(folder / "metrics.json", lambda _: report)  # the page last: with it the run is finished
    print(folder / "parameters.npz")
