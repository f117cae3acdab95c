"""How many digits of batch norm are right: bnderiv, Flax, Equinox, Haiku, PyTorch and plain jnp on the same inputs.

    python -m experiments.accuracy.run            every input, five seeds: numbers, tables, picture, report
    python -m experiments.accuracy.run --quick    one shape, one seed
    python -m experiments.accuracy.run --redraw   all but the numbers again, from the numbers

The errors are relative L2 distances to a truth computed in long double from the same rounded inputs. A library that is
not installed (`pip install -e ".[peers]"` has them all) is left out and named.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.accuracy.run", extras="peers")

from typing import Any

import numpy as np

from experiments import _options, _report
from experiments.accuracy.cases import EPS, all_cases, inputs, truth
from experiments.accuracy.judgment import Outcome, judged
from experiments.accuracy.libraries import installed_libraries
from experiments.accuracy.pages import present

SEEDS = range(5)
PEERS = ("flax", "equinox", "dm-haiku", "torch")


class Settings(_options.Measured):
    """How much is measured."""

    quick: bool = False
    """Only one shape and one seed are measured."""


def measure(options: Settings) -> dict[str, Any]:
    """The numbers of every library that is installed."""
    if np.finfo(np.longdouble).eps > 1e-18:
        raise _command.Refused("the truth needs a long double wider than float64, which this machine's NumPy has not")
    libraries, absent = installed_libraries()
    for name in absent:
        print(f"{name} is not installed: left out")
    cases, seeds = all_cases(options.quick), SEEDS[:1] if options.quick else SEEDS
    rows = []
    with _command.bar(total=len(cases) * len(seeds), unit="input") as bar:
        for case in cases:
            bar.set_postfix_str(case.name, refresh=False)
            each: dict[str, dict[str, list[Outcome]]] = {}
            for seed in seeds:
                arrays = inputs(case, seed)
                right = truth(arrays)
                for library, compute in libraries.items():
                    for name, value in judged(arrays, right, compute).items():
                        value = value if isinstance(value, str) else float(f"{value:.3g}")
                        each.setdefault(library, {}).setdefault(name, []).append(value)
                bar.update()
            row = {"case": case.name, "group": case.group, "shape": case.shape, "dtype": case.dtype}
            rows.append(row | {"outcomes": each})
    return {"eps": EPS, "seeds": list(seeds), "libraries": list(libraries), "absent": absent, "rows": rows}


main = _report.experiment(Settings, "accuracy.json", measure, present, "bnderiv", *PEERS)
