"""How fast bnderiv is and how much it keeps: against Flax, PyTorch, plain autodiff and what the machine can do.

    python -m experiments.benchmark.run                     everything
    python -m experiments.benchmark.run --quick             a part of it, in under two minutes
    python -m experiments.benchmark.run --only lenet epoch  these sections again; the others keep their numbers
    python -m experiments.benchmark.run --redraw            tables and picture again, from the numbers
    python -m experiments.benchmark.run --fresh-memory      large arrays in memory new to the process (`allocator.py`)

A peer that is not installed (`pip install -e ".[peers]"` has them all) is left out and named.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.benchmark.run", extras="peers")

import contextlib
import os
import re
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # on a GPU PyTorch needs some of its memory

import jax

from experiments import _options, _report
from experiments.benchmark import allocator, tables
from experiments.benchmark.clock import FULL, QUICK, Effort
from experiments.benchmark.tables import SECTIONS
from experiments.benchmark.torch_peer import Torch

PEERS = {"flax": None, "torch": None}  # the versions, where they are absent
LAYERS = ["max_pool", "avg_pool", "batch_norm", "batch_norm_relu"]


class Settings(_options.Measured):
    """What is measured."""

    OTHERWISE_THE_SAME = (*_options.Measured.OTHERWISE_THE_SAME, "only")

    quick: bool = False
    """There are fewer cases and runs, and PyTorch is not compiled."""
    only: tuple[str, ...] = ()
    """These sections are measured; without one, all."""
    fresh_memory: bool = False
    """Memory is the allocator's default; only the layers are measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.only) - SECTIONS.keys():
            raise _command.Refused(f"only: no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")


def processor() -> str:
    """What the processor calls itself, and the vector units it has."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return "unknown"
    text = info.read_text()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    units = [word for flag, word in (("avx512f", "AVX-512"), ("amx_tile", "AMX")) if re.search(rf"\b{flag}\b", text)]
    return ", ".join([name[1] if name else "unknown", *units])


def stem(fresh_memory: bool) -> str:
    """Of the files: the machine in words."""
    return re.sub(r"\W+", "-", _report.machine().lower()).strip("-") + "-fresh-memory" * fresh_memory


def run(names: list[str], effort: Effort, numbers: Path, options: Settings) -> None:
    """Measures the sections, each written as soon as it is done."""
    sections = _report.numbers(numbers)["sections"] if numbers.exists() else {}
    content = {"backend": jax.default_backend(), "memory": allocator.state(), "sections": sections}
    for name in names:
        _command.say(f"{name} …")
        start = time.perf_counter()
        with contextlib.closing(Torch()) as torch:
            found = SECTIONS[name].measure(effort, torch)
            section = found if isinstance(found, dict) else {"cases": list(found)}
        about = {"seconds": round(time.perf_counter() - start), "processor": processor(), "date": _report.today()}
        sections[name] = section | about | {"versions": PEERS | _report.versions(*PEERS)}
        _report.keep(numbers, content, options)


@_command.command
def main(arguments: list[str] | None = None) -> None:
    options = _options.parse(Settings, arguments)
    allocator.start_again(keeping=not options.fresh_memory)
    names = list(options.only) or (LAYERS if options.fresh_memory else list(SECTIONS))

    file = options.folder() / f"{stem(options.fresh_memory)}.json"
    if not options.redraw:
        _command.make(file.parent)
        run(names, QUICK if options.quick else FULL, file, options)
    _report.show(file, partial(tables.present, stem=file.stem))
