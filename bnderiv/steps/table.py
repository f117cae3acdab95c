"""The results of the step functions: NamedTuples whose fields are documented one by one, printed as a table.

    @derivation
    class Softmax(NamedTuple):
        x: Annotated[jax.Array, "z", "any", INPUT, "scores of the classes"]
        axis: Annotated[int, "the axis that sums to 1"]
        s: Annotated[jax.Array, "s", "as z", "(A8)", "probabilities"]

An array has four strings: its symbol in the derivation, its shape, its label and its meaning; the label of an argument
is `INPUT`. An option, such as an axis or a padding, has its meaning alone. `Softmax.s.__doc__` and `help(Softmax)` show
them.
"""

import functools
import typing
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bnderiv import _checks
from bnderiv._numbers import accumulator

Class = TypeVar("Class", bound=type)
Steps = TypeVar("Steps")

INPUT, OPTION = "input", "option"
_LONGEST = 40  # characters of an option in the table; a longer one would widen the whole column
_FEW = 12  # elements up to which the table shows an array's values


class Field(NamedTuple):
    """How the derivation speaks of one step."""

    symbol: str
    shape: str
    label: str
    meaning: str


def derivation(cls: Class) -> Class:
    """Class decorator for a NamedTuple of annotated fields: their docstrings, and the table that `print` shows.

    Arrays are the leaves of the pytree, options are its metadata. So options stay numbers, tuples and strings when the
    steps are returned from `jit` or `vmap`.
    """
    described = fields(cls)
    for name, field in described.items():
        text = f"{OPTION}: {field.meaning}."
        if field.label != OPTION:
            text = f"{field.symbol}, shape {field.shape} {field.label}: {field.meaning}."
        getattr(cls, name).__doc__ = text
    shown: Any = cls  # type checkers do not let a NamedTuple have another repr
    shown.__repr__ = table
    options = [name for name, field in described.items() if field.label == OPTION]
    arrays = [name for name in described if name not in options]
    return jax.tree_util.register_dataclass(cls, data_fields=arrays, meta_fields=options)


def gather(cls: type[Steps], computed: Mapping[str, Any]) -> Steps:
    """The steps of a derivation by their names: `gather(Softmax, locals())` in the function that computes them."""
    made: Any = cls
    return made(**{name: computed[name] for name in made._fields})


@functools.cache
def fields(cls: Any) -> dict[str, Field]:
    """The fields of such a class in the order of the derivation."""
    described = {name: hint.__metadata__ for name, hint in typing.get_type_hints(cls, include_extras=True).items()}
    return {
        name: Field(*texts) if len(texts) > 1 else Field("", "", OPTION, *texts) for name, texts in described.items()
    }


def table(steps: Any) -> str:
    """Name, symbol, shape, norm and label of every step, one on each line, and its values if there are at most twelve.

    Traced steps have no numbers.
    """
    rows = [("step", "symbol", "shape", "norm", "label", f"values, up to {_FEW}")]
    for name, field in fields(type(steps)).items():
        value = getattr(steps, name)
        if value is None:  # this variant of the derivation has no such step
            continue
        symbol, shape = field.symbol, getattr(value, "shape", None)
        if field.label == OPTION:
            symbol = repr(value) if len(repr(value)) <= _LONGEST else f"{type(value).__name__}(…)"
        rows.append(
            (name, symbol, "" if shape is None else str(tuple(shape)), _norm(value), field.label, _values(value))
        )
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([type(steps).__name__, *lines])


def _width(text: str) -> int:
    """Columns in a terminal. A hat over a letter takes none."""
    return sum(not unicodedata.combining(letter) for letter in text)


def _norm(value: Any) -> str:
    if isinstance(value, Tracer):
        return "traced"
    if not _has_numbers(value):
        return ""
    return f"{np.linalg.norm(np.asarray(value).astype(np.float64).ravel()):.6g}"


def _values(value: Any) -> str:
    """As nested lists, four digits each."""
    if not _has_numbers(value) or value.size > _FEW:
        return ""

    def written(a: np.ndarray) -> str:
        return f"[{', '.join(map(written, a))}]" if a.ndim else f"{a:.4g}"

    return written(np.asarray(value).astype(np.float64))


def _has_numbers(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, Tracer) and value.dtype != object


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
    """`dy` in the dtype of `y`, if it has its shape.

    Raises:
      TypeError: no floating dtype.
      ValueError: another shape.
    """
    dy = _checks.float_array("dy", dy)
    _checks.shape_is("dy", dy, y.shape, "that of the output")
    return dy.astype(y.dtype)
