"""The arguments of a call, as two flat tuples: the arrays that are differentiated and the other arrays."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check.numbers import is_inexact

_FLOAT, _CARRIED, _STATIC = "float", "carried", "static"


class Arguments:
    """The arguments of a call, split into differentiated arrays, other arrays, and static objects.

    Args:
      f: names the arguments.
      args: the call. A Python float or complex number is differentiated as an array, as `jax.grad` does.
      argnums: the positions to differentiate; None for all.
      static_numbers: pass Python numbers unchanged instead.

    Attributes:
      floats, carried, static: the differentiated arrays, the other arrays, and (name, object) of all else.
      converts_numbers: whether a Python number has become an array.
    """

    def __init__(self, f: Callable, args: tuple[Any, ...], argnums: Any = None, static_numbers: bool = False):
        leaves, self._treedef = jax.tree_util.tree_flatten_with_path(args)
        positions = [path[0].idx for path, _ in leaves]
        parameters = _parameter_names(f, len(args))
        names = [parameters[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in leaves]
        chosen = _chosen(argnums, len(args))
        given = [jnp.asarray(leaf) if isinstance(leaf, (np.ndarray, np.generic)) else leaf for _, leaf in leaves]
        arrays = [leaf for leaf in given if isinstance(leaf, jax.Array)]
        real = next((jnp.finfo(a.dtype).dtype for a in arrays if is_inexact(a)), jnp.result_type(float))

        def as_array(leaf: Any, position: int) -> Any:
            if type(leaf) in (float, complex) and position in chosen and not static_numbers:
                return jnp.asarray(leaf, real if type(leaf) is float else jnp.result_type(real, jnp.complex64))
            return leaf

        self._leaves = [as_array(leaf, i) for leaf, i in zip(given, positions, strict=True)]
        self._kinds = [_kind(a, i in chosen) for a, i in zip(self._leaves, positions, strict=True)]
        self.floats = tuple(self._of_kind(_FLOAT, self._leaves))
        self.carried = tuple(self._of_kind(_CARRIED, self._leaves))
        self.float_names = self._of_kind(_FLOAT, names)
        self.carried_names = self._of_kind(_CARRIED, names)
        self.carried_positions = self._of_kind(_CARRIED, positions)
        self.static = list(zip(self._of_kind(_STATIC, names), self._of_kind(_STATIC, self._leaves), strict=True))
        self.converts_numbers = any(a is not leaf for a, leaf in zip(self._leaves, given, strict=True))

    def _of_kind(self, kind: str, values: Sequence[Any]) -> list[Any]:
        return [v for v, k in zip(values, self._kinds, strict=True) if k == kind]

    def rebuild(self, floats: Sequence[Any], carried: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments in the structure that `f` takes, with these arrays."""
        sources = {_FLOAT: iter(floats), _CARRIED: iter(carried), _STATIC: iter([leaf for _, leaf in self.static])}
        return jax.tree.unflatten(self._treedef, [next(sources[kind]) for kind in self._kinds])

    def copies(self) -> tuple[Any, ...]:
        """Copies of the arguments, for a call of `f`, which may donate and so delete them."""
        return self.rebuild([a.copy() for a in self.floats], [a.copy() for a in self.carried])

    def bind(self, f: Callable) -> Callable:
        """`f` as a function (floats, carried) ↦ flat tuple of floating outputs."""

        def bound(floats: Sequence[Any], carried: Sequence[Any]) -> tuple[jax.Array, ...]:
            leaves = jax.tree.leaves(f(*self.rebuild(floats, carried)))
            return tuple(jnp.asarray(leaf) for leaf in leaves if is_inexact(leaf))

        return bound


def _chosen(argnums: Any, count: int) -> set[int]:
    if argnums is None:
        return set(range(count))
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not positions or not all(isinstance(i, int) and -count <= i < count for i in positions):
        raise ValueError(f"argnums must be positions of the {count} arguments, got {argnums!r}")
    return {i % count for i in positions}


def _kind(leaf: Any, chosen: bool) -> str:
    if not isinstance(leaf, jax.Array):
        return _STATIC
    return _FLOAT if chosen and is_inexact(leaf) else _CARRIED


def _parameter_names(f: Callable, count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [positional[i] if i < len(positional) else f"args[{i}]" for i in range(count)]
