"""A pytest plugin: runs any tests with this library's layers in the place of the installed frameworks' own.

    python -m pytest -p experiments.dropin.patched <a framework's test file>

It says at the end how often each layer was called, so that nothing passes without having been asked.
"""

import functools
import importlib
from collections import Counter

calls: Counter[str] = Counter()


def _counted(name, function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        calls[name] += 1
        return function(*args, **kwargs)

    return call


def _replace(places, name, ours):
    for place in places:
        setattr(importlib.import_module(place), name, ours)


def _flax() -> None:
    import bnderiv.linen
    import bnderiv.nnx

    for module in (bnderiv.linen, bnderiv.nnx):
        module.BatchNorm.__call__ = _counted(f"{module.__name__}.BatchNorm", module.BatchNorm.__call__)
    _replace(("flax.linen", "flax.linen.normalization"), "BatchNorm", bnderiv.linen.BatchNorm)
    _replace(("flax.nnx", "flax.nnx.nn.normalization"), "BatchNorm", bnderiv.nnx.BatchNorm)
    for name in ("avg_pool", "max_pool"):
        ours = _counted(f"bnderiv.linen.{name}", getattr(bnderiv.linen, name))
        _replace(("flax.linen", "flax.linen.pooling", "flax.nnx"), name, ours)


def _equinox() -> None:
    import bnderiv.equinox

    bnderiv.equinox.BatchNorm.__call__ = _counted("bnderiv.equinox.BatchNorm", bnderiv.equinox.BatchNorm.__call__)
    _replace(("equinox.nn", "equinox.nn._batch_norm"), "BatchNorm", bnderiv.equinox.BatchNorm)


def _haiku() -> None:
    import bnderiv.haiku

    bnderiv.haiku.BatchNorm.__call__ = _counted("bnderiv.haiku.BatchNorm", bnderiv.haiku.BatchNorm.__call__)
    _replace(("haiku", "haiku._src.batch_norm"), "BatchNorm", bnderiv.haiku.BatchNorm)


def pytest_configure() -> None:
    for patch in (_flax, _equinox, _haiku):
        patch()


def pytest_terminal_summary(terminalreporter) -> None:
    for name, number in sorted(calls.items()):
        terminalreporter.write_line(f"{name} was called {number} times")
