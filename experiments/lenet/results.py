"""What a finished run leaves in its folder: numbers, parameters, pictures and the report; the picture of several."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import LogLocator, MaxNLocator

from experiments import _command, _report
from experiments._data import Data
from experiments._report import WIDTH, Picture, png
from experiments.lenet.configuration import Configuration
from experiments.lenet.training import Progress, State, answers

MODELS = {"lenet5": "LeNet-5", "mlp": "Perceptron"}
LOSSES = {"cross_entropy": "cross entropy", "mse": "½ ‖y − a‖²"}
KERNELS_SHOWN, MISTAKES_SHOWN = 32, 18


def save(folder: Path, state: State, progress: Progress, data: Data, configuration: Configuration) -> None:
    """Writes all files, and prints what came out and where they are."""
    history, labels, name = progress.history, data.test_labels, MODELS[configuration.model]
    found = answers(state, data.test_images, labels, data.levels, configuration)
    images, parameters = len(labels), sum(a.size for a in jax.tree.leaves(state.params))
    wrong, accuracy = int((found.classes != labels).sum()), found.accuracy
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
            curves(history, configuration.loss, summary),
            first_kernels(state.params, data.image_shape),
            confusion(labels, found.classes, configuration.classes),
            mistakes(data.test_images, labels, found.outputs, configuration.output),
            gradient_norms(history),
        ],
        facts={
            "parameters": f"{parameters:,}",
            "images": f"{len(data.train_labels):,} for training, {images:,} held out",
            "seconds an epoch": f"{seconds:.2g} (median, evaluation apart)",
        },
        said=f"test accuracy {accuracy:.2%} ({wrong} of {images} images wrong), "
        f"trained in {sum(history['seconds']):.0f} s",
    )
    arrays = _report.named({"params": state.params, "state": state.running})
    np.savez(file := io.BytesIO(), allow_pickle=False, **arrays)
    _report.write(folder / "parameters.npz", file.getvalue())
    _report.keep(folder / "metrics.json", metrics, configuration)
    _report.show(folder / "metrics.json", lambda _: report)  # the page last: with it the run is finished
    print(folder / "parameters.npz")


def curves(history: Mapping[str, Any], loss: str, title: str) -> Picture:
    """Loss and accuracy against the epoch, training and test images."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4))
    epochs = range(1, len(history["test_loss"]) + 1)
    for name, style in (("training", "--"), ("test", "-")):
        left.plot(epochs, history[f"{name}_loss"], style, label=f"{name} images")
        right.plot(epochs, 100 * np.array(history[f"{name}_accuracy"]), style, label=f"{name} images")
    left.set(title="Loss", xlabel="epoch", ylabel=LOSSES[loss], yscale="log")
    right.set(title="Accuracy", xlabel="epoch", ylabel="images recognized, %")
    figure.suptitle(title, fontsize=12)
    caption = "Loss and accuracy after each epoch, by the running statistics, of images as they are (not moved)."
    return Picture("How it learned", "curves.png", _with_legend(figure, left, right, columns=2), caption)


def comparison(histories: Mapping[str, Sequence[Mapping[str, Any]]], loss: str, images: str, seeds: int) -> Picture:
    """Loss and error against the epoch, of test or validation images: the mean of the seeds, the best and the worst."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.8 + 0.22 * len(histories)))
    for name, runs in histories.items():
        # A loss that was no number is null.
        losses, accuracies = (np.array([run[what] for run in runs], float) for what in ("test_loss", "test_accuracy"))
        for axes, values in ((left, losses), (right, 100 * (1 - accuracies))):
            epochs, mean = range(1, values.shape[1] + 1), values.mean(0)
            (line,) = axes.plot(epochs, mean, "o-" if len(mean) < 6 else "-", lw=2, ms=4, label=name)
            if np.isfinite(mean).any():  # matplotlib has no scale of logarithms for a band without a number
                axes.fill_between(epochs, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, lw=0)
    left.set(title=f"Loss on the {images} images", xlabel="epoch", ylabel=loss, yscale="log")
    right.set(title=f"{images.capitalize()} error", xlabel="epoch", ylabel="images not recognized, %", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    right.yaxis.set_minor_formatter("{x:g}")
    drawn = _with_legend(figure, left, right, columns=1, legend="mean of the seeds, and the band from best to worst")
    caption = f"Lines: mean over {seeds} seeds. Bands: from the best to the worst."
    return Picture("How they learned", "comparison.png", drawn, caption)


def gradient_norms(history: Mapping[str, Any]) -> Picture:
    """The norm of each layer's gradient against the epoch."""
    figure, axes = plt.subplots()
    layers = history["gradient_norms"]
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers)))
    for (layer, values), color in zip(layers.items(), colors, strict=True):
        axes.plot(range(1, len(values) + 1), values, "o-" if len(values) < 6 else "-", ms=4, color=color, label=layer)
    axes.set(xlabel="epoch", ylabel="norm of ∂J/∂W, mean over the epoch's batches", yscale="log")
    axes.set_title("How much gradient reaches each layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(title="layer, first to last")
    caption = "The norm of the gradient of each layer's kernel, mean over the batches of the epoch."
    return Picture("Gradients, layer by layer", "gradients.png", png(figure), caption)


def first_kernels(params: Mapping[str, Any], image_shape: tuple[int, int, int]) -> Picture:
    """What each map of the first convolution looks for; of a first dense layer, the strongest units."""
    if "conv1" in params:
        kernels = np.asarray(params["conv1"]["kernel"])[:, :, 0].transpose(2, 0, 1)
    else:
        kernels = np.asarray(params["dense1"]["kernel"]).T.reshape(-1, *image_shape[:2])
        kernels = kernels[np.argsort(-np.linalg.norm(kernels, axis=(1, 2)))[:KERNELS_SHOWN]]
    columns = min(len(kernels), 8)
    rows = -(-len(kernels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 0.9 * rows + 0.9), squeeze=False)
    most = np.abs(kernels).max()
    colors = ScalarMappable(Normalize(-most, most), "RdBu_r")
    for axes, kernel in zip(grid.flat, kernels, strict=False):
        axes.imshow(kernel, cmap=colors.cmap, norm=colors.norm)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    figure.colorbar(colors, ax=grid, label="weight", shrink=0.9)
    figure.suptitle("The first layer's kernels after training")
    caption = "Red weighs ink in favor, blue against."
    return Picture("What the first layer looks for", "kernels.png", png(figure), caption)


def confusion(labels: np.ndarray, found: np.ndarray, classes: int) -> Picture:
    """How often each class was taken for each: the right ones written in gray, the mistakes in color."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, found), 1)
    mistakes = np.where(np.eye(classes, dtype=bool), 0, counts)
    figure, axes = plt.subplots(figsize=(max(6.4, 0.42 * classes), max(5.6, 0.38 * classes)))
    axes.grid(visible=False)
    image = axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(mistakes.max(), 1))
    for i, j in np.ndindex(counts.shape):
        if counts[i, j]:
            color = "gray" if i == j else "white" if 2 * counts[i, j] > mistakes.max() else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=9, color=color)
    axes.set(xticks=range(classes), yticks=range(classes), xlabel="taken for", ylabel="is")
    wrong = int(mistakes.sum())
    axes.set_title(f"{wrong} mistake{'s' * (wrong != 1)} among {len(labels)} images")
    figure.colorbar(image, label="mistakes", ticks=MaxNLocator(integer=True), shrink=0.9)
    caption = "A row for what an image is, a column for what it was taken for; in gray, those recognized."
    return Picture("What was taken for what", "confusion.png", png(figure), caption)


def mistakes(images: np.ndarray, labels: np.ndarray, outputs: np.ndarray, output: str) -> Picture:
    """The wrong answers given with the most confidence, each over its image."""
    found = outputs.argmax(-1)
    wrong = np.flatnonzero(found != labels)
    wrong = wrong[np.argsort(-outputs[wrong, found[wrong]], kind="stable")][:MISTAKES_SHOWN]
    columns, rows = 6, max(1, -(-len(wrong) // 6))
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 1.75 * rows + 0.4), squeeze=False)
    for axes in grid.flat[len(wrong) :]:
        axes.axis("off")
    for axes, i in zip(grid.flat, wrong, strict=False):
        axes.imshow(images[i, ..., 0], cmap="gray_r", vmin=images.min(), vmax=images.max())
        confidence = outputs[i, found[i]]
        shown = f"{100 * confidence:.3g} %" if output == "softmax" else f"{confidence:.2f}"
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{labels[i]} taken for {found[i]}\n{shown}", fontsize=10)
    figure.suptitle(f"The most confident mistakes, with the {output} of the answer", fontsize=12)
    caption = f"Test images taken for something else, the most confident first, with the {output} of the answer."
    return Picture("The most confident mistakes", "mistakes.png", png(figure), caption)


def _with_legend(figure, left, right, columns: int, legend: str = "") -> bytes:
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=columns, title=legend)
    return png(figure)
