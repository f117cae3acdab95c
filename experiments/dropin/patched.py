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


def _replace_layers(places, ours):
    """All norms that `ours` has, each counted."""
    for name in ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"):
        layer = getattr(ours, name, None)
        if layer is not None:
            layer.__call__ = _counted(f"{ours.__name__}.{name}", layer.__call__)
            _replace([place for place in places if hasattr(importlib.import_module(place), name)], name, layer)


def _flax() -> None:
    import bnderiv.linen
    import bnderiv.nnx

    _replace_layers(("flax.linen", "flax.linen.normalization"), bnderiv.linen)
    _replace_layers(("flax.nnx", "flax.nnx.nn.normalization"), bnderiv.nnx)
    for name in ("avg_pool", "max_pool"):
        ours = _counted(f"bnderiv.linen.{name}", getattr(bnderiv.linen, name))
        _replace(("flax.linen", "flax.linen.pooling", "flax.nnx"), name, ours)


def _equinox() -> None:
    import bnderiv.equinox

    _replace_layers(("equinox.nn", "equinox.nn._batch_norm", "equinox.nn._normalisation"), bnderiv.equinox)


def _haiku() -> None:
    import bnderiv.haiku

    modules = (f"haiku._src.{kind}_norm" for kind in ("batch", "layer", "group", "rms"))
    _replace_layers(("haiku", *modules), bnderiv.haiku)


def pytest_configure() -> None:
    for patch in (_flax, _equinox, _haiku):
        patch()


def pytest_terminal_summary(terminalreporter) -> None:
    for name, number in sorted(calls.items()):
        terminalreporter.write_line(f"{name} was called {number} times")
