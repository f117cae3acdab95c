"""Runs the notebooks, each in a kernel of its own, and writes them stripped.

    python -m experiments.notebooks.run                              all, into runs/default
    python -m experiments.notebooks.run naive_variance               one
    python -m experiments.notebooks.run --out experiments/notebooks  the committed ones, anew

What is stored: sources, text outputs, pictures in a palette of 256 colors; nothing of the
machine or the moment. `ruff format` lays out the code in them.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.notebooks.run", extras="notebooks")

import base64
import io
import os
from pathlib import Path
from typing import Literal, get_args

import nbformat
from nbclient import NotebookClient
from PIL import Image
from tyro.conf import Positional

from experiments import _options, _report

FOLDER = Path(__file__).parent
Name = Literal[
    "batch_norm_gradient", "lenet5_backpropagation", "check_your_own_rule", "naive_variance"
]
NAMES: tuple[Name, ...] = get_args(Name)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 300  # the most a cell may take


class Settings(_options.Results):
    """Which notebooks are run."""

    OTHERWISE_THE_SAME = (*_options.Results.OTHERWISE_THE_SAME, "names")

    names: Positional[tuple[Name, ...]] = NAMES
    """The names of the notebooks; without one, all."""


def execute(source: Path) -> nbformat.NotebookNode:
    """The notebook, run from the top in a new kernel and stripped."""
    notebook = nbformat.read(source, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,  # the lines of a cell arrive in as many pieces as it happens
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": FOLDER}},
    )
    client.execute(env=kernel_environment())
    return stripped(notebook)


def kernel_environment() -> dict[str, str]:
    """JAX as it comes, on the CPU, whatever the caller has set; bnderiv from this checkout."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XLA_", "MPL"))
    }
    path = os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])
    # On a busy machine XLA logs that a compilation is slow: no output of the notebook.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return kept | quiet | {"PYTHONPATH": path.rstrip(os.pathsep), "JAX_PLATFORMS": "cpu"}


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without timings, ids of the session, paths, and the text behind pictures and tables."""
    notebook.metadata = nbformat.from_dict(METADATA)
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    for number, cell in enumerate(cells, start=1):
        cell.metadata.clear()
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            if "data" in output:
                output.metadata.clear()
                if len(output.data) > 1:
                    output.data.pop("text/plain", None)
                if "image/png" in output.data:
                    output.data["image/png"] = with_a_palette(output.data["image/png"])
    return notebook


def with_a_palette(png: str) -> str:
    """The same picture, base64 again, at a third of its size."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    small = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


@_command.command
def main(arguments: list[str] | None = None) -> None:
    options = _options.parse(Settings, arguments)
    out = _command.make(options.folder())
    for name in options.names:
        _command.say(f"{name} …")
        notebook = nbformat.writes(execute(FOLDER / f"{name}.ipynb")) + "\n"
        _report.leave(out, {f"{name}.ipynb": notebook.encode()})
