"""A pytest plugin: runs any tests with this library's layers in the place of the installed frameworks' own.

    python -m pytest -p experiments.dropin.patched <a framework's test file>

It says at the end how often each layer was called, so that nothing passes without having been asked.
"""

import functools
import importlib
from collections import Counter
from typing import Any

calls: Counter[str] = Counter()


def _counted(name, function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        calls[name] += 1
        return function(*args, **kwargs)

    return call


def pytest_configure() -> None:
    classes: dict[Any, str] = {}
    for framework in ("linen", "nnx", "equinox", "haiku"):
        adapter = importlib.import_module(f"bnderiv.{framework}")
        for place, name in adapter.patch().places:
            ours = getattr(place, name)
            if isinstance(ours, type):
                classes[ours] = f"bnderiv.{framework}.{ours.__name__}"
            else:
                setattr(place, name, _counted(f"bnderiv.{framework}.{name}", ours))
    for ours, name in classes.items():
        ours.__call__ = _counted(name, ours.__call__)


def pytest_terminal_summary(terminalreporter) -> None:
    for name, number in sorted(calls.items()):
        terminalreporter.write_line(f"{name} was called {number} times")
