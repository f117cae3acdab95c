"""A script's options: a frozen dataclass, read from the command line, checked, and written as a command line again."""

import dataclasses
import math
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import tyro

from experiments import _command, _data

CONDITIONS = {
    ">= 0": lambda n: 0 <= n < math.inf,
    ">= 1": lambda n: n >= 1,
    ">= 2": lambda n: n >= 2,
    "> 0": lambda n: 0 < n < math.inf,
    "in [0, 1)": lambda n: 0 <= n < 1,
    "in [0, 2**32)": lambda n: 0 <= n < 2**32,
}
AtLeastOne = Annotated[int, ">= 1"]
Positive = Annotated[float, "> 0"]
Seed = Annotated[int, "in [0, 2**32)"]


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A script's options are the fields of a class of this kind, which is a frozen dataclass by that alone.

    The text under a field is its help. `Annotated` adds a condition to a type.
    """

    OTHERWISE_THE_SAME: ClassVar[tuple[str, ...]] = ()  # options that do not change what a run computes

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            if typing.get_origin(hint) is not ClassVar:
                object.__setattr__(self, name, _checked(name, getattr(self, name), hint))

    def changed(self) -> dict[str, Any]:
        """The options that are not the defaults."""
        fields = [field for field in dataclasses.fields(self) if field.name not in self.OTHERWISE_THE_SAME]
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}

    def arguments(self) -> list[str]:
        """The words of the command line that stand for these options."""
        words: list[str] = []
        for name, value in self.changed().items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words += [f"--{option}", *map(str, value if isinstance(value, tuple) else [value])]
        return words

    def shown(self) -> dict[str, Any]:
        """Every option that makes a run what it is."""
        names = (field.name for field in dataclasses.fields(self) if field.name not in self.OTHERWISE_THE_SAME)
        values = {name: getattr(self, name) for name in names}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def anonymous(self) -> Self:
        """As a report has them: without the name of a folder of images."""
        data = getattr(self, "data", None)
        return dataclasses.replace(self, data=type(data)("FOLDER")) if data else self  # type: ignore[call-arg]


class Results(Options):
    """The options of a script that leaves its results in one folder."""

    OTHERWISE_THE_SAME = ("out", "redraw", "memory")

    out: Path | None = None
    """The folder of the results. None takes one in runs/, which git ignores, by the names of the other options; what is
    committed lies in results/."""

    def folder(self) -> Path:
        """Where the results of the script that has these options go."""
        script = str(sys.modules[type(self).__module__].__file__)
        return self.out or _command.folder(script, {name: _short(value) for name, value in self.changed().items()})


class Measured(Results):
    """The options of a script whose tables and pictures can be made again from its numbers."""

    redraw: bool = False
    """Nothing is measured: all else is made again from the numbers that are there."""


class WithData(Measured):
    """The options of a script that takes images."""

    data: Path | None = None
    """A folder of IDX files (see experiments/data.md). None takes the digits of scikit-learn."""
    memory: Positive = _data.MEMORY
    """The most memory that a file of images may take, in GB."""


Kind = TypeVar("Kind", bound=Options)


def parse(kind: type[Kind], arguments: list[str] | None) -> Kind:
    """The options on the command line; the docstring of the script that has them says what it is."""
    description = sys.modules[kind.__module__].__doc__
    return tyro.cli(kind, args=arguments, prog=f"python -m {kind.__module__}", description=description)


def _short(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    return "-".join(map(str, value)) if isinstance(value, tuple) else value


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value in the type of its option. Files and programs give any type; the command line is checked by tyro."""
    condition = ""
    if typing.get_origin(hint) is Annotated:
        hint, *notes = typing.get_args(hint)
        condition = next((note for note in notes if isinstance(note, str)), "")
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise _command.Refused(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        return value
    if typing.get_origin(hint) is tuple:
        return tuple(_checked(name, each, typing.get_args(hint)[0]) for each in value)
    if hint is float and type(value) is int:
        value = float(value)
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise _command.Refused(f"{name} must be {wanted}, got {value!r}")
    if condition and not CONDITIONS[condition](value):
        raise _command.Refused(f"{name} must be {condition}, got {value!r}")
    return value
