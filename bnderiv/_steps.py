"""What every step function returns: a NamedTuple whose fields are documented one by one, printed as a table.

    @derivation
    class Tanh(NamedTuple):
        a: Annotated[jax.Array, "a = τ(z)", "as z", "(A4)", "the activation"]

The four strings are the symbol of the derivation, the shape, the label and the meaning; `Tanh.a.__doc__` and
`help(Tanh)` show them.
"""

import functools
import typing
import unicodedata
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bnderiv import _checks
from bnderiv._numbers import accumulator

Class = TypeVar("Class", bound=type)


class Field(NamedTuple):
    """How the derivation speaks of one step."""

    symbol: str
    shape: str
    label: str
    meaning: str


def derivation(cls: Class) -> Class:
    """Class decorator for a NamedTuple of annotated fields: their docstrings, and the table that `print` shows."""
    for name, field in fields(cls).items():
        getattr(cls, name).__doc__ = f"{field.symbol}, shape {field.shape} {field.label}: {field.meaning}."
    shown: Any = cls  # a NamedTuple is a class of tuples to a type checker, which lets nobody set its repr
    shown.__repr__ = table
    return cls


@functools.cache
def fields(cls: Any) -> dict[str, Field]:
    """The fields of such a class in the order of the derivation."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: Field(*hints[name].__metadata__) for name in cls._fields}


def table(steps: Any) -> str:
    """Name, symbol, shape and norm of every step, one a line; no norm under tracing, where no numbers exist yet."""
    rows = [("step", "symbol", "shape", "norm", "")]
    for name, field in fields(type(steps)).items():
        value = getattr(steps, name)
        if value is None:  # a step that this variant of the derivation does not have
            continue
        shape = getattr(value, "shape", None)
        rows.append((name, field.symbol, "" if shape is None else str(tuple(shape)), _norm(value), field.label))
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([type(steps).__name__, *lines])


def _width(text: str) -> int:
    """Columns in a terminal: a hat over a letter takes none."""
    return sum(not unicodedata.combining(letter) for letter in text)


def _norm(value: Any) -> str:
    if isinstance(value, Tracer):
        return "traced"
    if not isinstance(value, (jax.Array, np.ndarray)) or value.dtype == object:
        return ""
    return f"{np.linalg.norm(np.asarray(value).astype(np.float64).ravel()):.6g}"


def arrays(**named: Any) -> list[jax.Array]:
    """The arguments in one floating dtype, float32 or float64.

    Raises:
      TypeError: one has no floating dtype.
    """
    checked = [_checks.float_array(name, value) for name, value in named.items()]
    for name, value in zip(named, checked, strict=True):
        _checks.nonempty(name, value)
    dtype = accumulator(jnp.result_type(*checked))
    return [value.astype(dtype) for value in checked]


def cotangent(dy: Any, y: jax.Array) -> jax.Array:
    """`dy`, checked to be what comes back to `y`.

    Raises:
      TypeError: no floating dtype.
      ValueError: another shape.
    """
    dy = _checks.float_array("dy", dy)
    _checks.shape_is("dy", dy, y.shape, "that of the output")
    return dy.astype(y.dtype)
