"""Ours in the place of a framework's layers, for models that cannot be edited."""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Self

_active: dict[str, int] = {}  # of each framework: how many patches have not been undone


class Patch:
    """Put ours in the place of a framework's layers until `undo`, or until the end of a `with` block.

    A name is replaced wherever it stands for the framework's object: in the modules of the framework, in the classes
    these define (Haiku's networks take their names from such a class), and in the modules given. A later patch of the
    same framework adds its modules; the last `undo` takes everything back.

    Attributes:
      places: (module or class, name) of each replaced name.
    """

    def __init__(self, package: str, table: Mapping[Any, Any], modules: tuple[ModuleType, ...]):
        for module in modules:
            if not isinstance(module, ModuleType):
                raise TypeError(f"patch takes modules in which names are replaced too, got {module!r}")
        self._package, self._modules = package, modules
        self._table = {id(theirs): (theirs, ours) for theirs, ours in table.items()}
        self._undone = False
        _active[package] = _active.get(package, 0) + 1
        self.places = _replace(package, modules, self._table)

    def undo(self) -> None:
        """Put the framework's own back, also where a name was bound meanwhile in its modules."""
        if self._undone:
            return
        self._undone = True
        _active[self._package] -= 1
        package = self._package if not _active[self._package] else None
        _replace(package, self._modules, {id(ours): (ours, theirs) for theirs, ours in self._table.values()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()


def _replace(package: str | None, modules: tuple[ModuleType, ...], table: Mapping[int, Any]) -> list[tuple[Any, str]]:
    found = []
    for place in _places(package, modules):
        for name, value in list(vars(place).items()):
            old, new = table.get(id(value), (None, None))
            if value is old and new is not None:
                setattr(place, name, new)
                found.append((place, name))
    return found


def _places(package: str | None, modules: tuple[ModuleType, ...]) -> Iterator[Any]:
    """The modules of the package and those given, and the classes that are defined in them."""
    names = [n for n in list(sys.modules) if package is not None and (n == package or n.startswith(f"{package}."))]
    for module in (*(sys.modules[name] for name in names), *modules):
        if not isinstance(module, ModuleType):
            continue
        yield module
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield value


def with_parts(change: Callable[[Any], Any], a: Any) -> Any:
    """A partial, dict, list or tuple with its parts changed; the same object if none is, or if it is something else."""
    if isinstance(a, partial):
        new = [change(part) for part in (a.func, a.args, a.keywords)]
        same = all(n is part for n, part in zip(new, (a.func, a.args, a.keywords), strict=True))
        return a if same else type(a)(new[0], *new[1], **new[2])
    if isinstance(a, dict):
        new = {key: change(value) for key, value in a.items()}
        return a if all(new[key] is a[key] for key in a) else new
    if isinstance(a, (list, tuple)):
        new = [change(value) for value in a]
        same = all(n is value for n, value in zip(new, a, strict=True))
        return a if same else type(a)(*new) if hasattr(a, "_fields") else type(a)(new)
    return a
