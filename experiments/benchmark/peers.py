"""Who is there to compare with: each peer is optional, and one that is absent is named."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType


def flax() -> ModuleType | None:
    """`flax_peer`, where flax is installed."""
    try:
        return importlib.import_module("experiments.benchmark.flax_peer")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "flax":
            raise
        return None


def versions() -> dict[str, str | None]:
    """Of the peers; None for one that is absent."""
    found: dict[str, str | None] = {}
    for name in ("flax", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
