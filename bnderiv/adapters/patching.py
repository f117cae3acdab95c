"""Ours in the place of a framework's layers, for models that cannot be edited."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Self


@dataclass
class _Held:
    """A framework or a given module that is patched: by how many patches, and which names were ours before."""

    patches: int = 0
    ours_before: set[tuple[int, str]] = field(default_factory=set)  # of each: the identity of its place, and the name


_held: dict[tuple[str, ModuleType | None], _Held] = {}  # by the package, and a module that was given
_lock = threading.RLock()  # one thread must not take names back while another replaces them


class Patch:
    """Put ours in the place of a framework's layers until `undo`, or until the end of a `with` block.

    A name is replaced wherever it stands for the framework's object: in the modules of the framework, in the classes
    these define (Haiku's networks take their names from such a class), and in the modules given. A later patch of the
    same framework adds its modules. The last `undo` of the framework, or of a module, puts its names back.

    Attributes:
      places: (module or class, name) of each replaced name.
    """

    def __init__(self, package: str, table: Mapping[Any, Any], modules: tuple[ModuleType, ...]):
        for module in modules:
            if not isinstance(module, ModuleType):
                raise TypeError(f"patch takes modules in which names are replaced too, got {module!r}")
        self._keys = [(package, module) for module in (None, *dict.fromkeys(modules))]
        there = {id(theirs): (theirs, ours) for theirs, ours in table.items()}
        self._back = {id(ours): (ours, theirs) for theirs, ours in table.items()}
        self._undone = False
        self.places: list[tuple[Any, str]] = []
        with _lock:
            for key in self._keys:
                if key not in _held:
                    _held[key] = _Held()
                    if key[1] is not None:  # a module that is migrated in part
                        _held[key].ours_before = {(id(place), name) for place, name, _ in _names(key, self._back)}
                _held[key].patches += 1
                for place, name, ours in _names(key, there):
                    setattr(place, name, ours)
                    self.places.append((place, name))

    def undo(self) -> None:
        """Put the framework's own back, also where a name was bound meanwhile in its modules."""
        with _lock:
            if self._undone:
                return
            self._undone = True
            for key in self._keys:
                held = _held[key]
                held.patches -= 1
                if held.patches:
                    continue
                del _held[key]
                for place, name, theirs in _names(key, self._back):
                    if (id(place), name) not in held.ours_before:
                        setattr(place, name, theirs)

    def __enter__(self) -> Self:
        if self._undone:
            raise RuntimeError("this patch is undone: call patch() again")
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()


def _names(key: tuple[str, ModuleType | None], table: Mapping[int, tuple[Any, Any]]) -> list[tuple[Any, str, Any]]:
    """Each place and name that stands for an object of the table, with the other one."""
    found = []
    for place in _places(*key):
        for name, value in list(vars(place).items()):
            old, new = table.get(id(value), (None, None))
            if value is old and new is not None:
                found.append((place, name, new))
    return found


def _places(package: str, module: ModuleType | None) -> Iterator[Any]:
    """The given module, or those of the package, and the classes that are defined in them."""
    names = [n for n in list(sys.modules) if n == package or n.startswith(f"{package}.")]
    for place in (sys.modules[name] for name in names) if module is None else (module,):
        if not isinstance(place, ModuleType):
            continue
        yield place
        for value in list(vars(place).values()):
            if isinstance(value, type) and value.__module__ == place.__name__:
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
