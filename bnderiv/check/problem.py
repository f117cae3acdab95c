"""Turns a function of pytrees into a function of two flat tuples: the differentiated arrays and the other arrays."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FLOAT, CARRIED, STATIC = "float", "carried", "static"


class Arguments:
    """The arguments of a call, split into floating and complex arrays, other arrays, and static objects."""

    def __init__(self, f: Callable, args: tuple[Any, ...]):
        leaves, self._treedef = jax.tree_util.tree_flatten_with_path(args)
        names = _parameter_names(f, len(args))
        self._leaves = [jnp.asarray(a) if isinstance(a, (np.ndarray, np.generic)) else a for _, a in leaves]
        self.kinds = [_kind(a) for a in self._leaves]
        self.names = [names[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in leaves]
        self.floats = tuple(self._of_kind(FLOAT, self._leaves))
        self.carried = tuple(self._of_kind(CARRIED, self._leaves))
        self.float_names = self._of_kind(FLOAT, self.names)
        self.carried_names = self._of_kind(CARRIED, self.names)
        self.carried_positions = self._of_kind(CARRIED, [path[0].idx for path, _ in leaves])
        self.static = list(zip(self._of_kind(STATIC, self.names), self._of_kind(STATIC, self._leaves), strict=True))

    def _of_kind(self, kind: str, values: Sequence[Any]) -> list[Any]:
        return [v for v, k in zip(values, self.kinds, strict=True) if k == kind]

    def rebuild(self, floats: Sequence[Any], carried: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments in the structure that `f` takes, with these arrays."""
        sources = {FLOAT: iter(floats), CARRIED: iter(carried), STATIC: iter([leaf for _, leaf in self.static])}
        return jax.tree.unflatten(self._treedef, [next(sources[kind]) for kind in self.kinds])

    def bind(self, f: Callable) -> Callable:
        """`f` as a function (floats, carried) ↦ flat tuple of floating outputs."""

        def bound(floats: Sequence[Any], carried: Sequence[Any]) -> tuple[jax.Array, ...]:
            leaves = jax.tree.leaves(f(*self.rebuild(floats, carried)))
            return tuple(jnp.asarray(leaf) for leaf in leaves if is_inexact(leaf))

        return bound


def is_inexact(a: Any) -> bool:
    return isinstance(a, (float, complex)) or (hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact))


def custom_vjp_of(f: Any) -> jax.custom_vjp | None:
    """The rule if `f` is one or wraps one (jit), so that its backward can be called directly."""
    for _ in range(8):
        if isinstance(f, jax.custom_vjp):
            return f
        f = getattr(f, "__wrapped__", None)
    return None


def pull_back_directly(rule: Any, args: tuple[Any, ...], cotangent: Any) -> list[Any]:
    """What the backward of the rule returns for each argument, before JAX processes it.

    JAX silently drops the cotangent of an integer argument.
    """
    _, residuals = rule.fwd(*args)
    static = [args[i] for i in sorted(rule.nondiff_argnums)]
    grads = iter(rule.bwd(*static, residuals, cotangent))
    return [None if i in rule.nondiff_argnums else next(grads) for i in range(len(args))]


def random_draws(f: Callable, *args: Any) -> list[tuple[Any, ...]]:
    """Bit width and shape of every random draw in `f`, in program order; empty if `f` cannot be traced."""
    try:
        program = jax.make_jaxpr(f)(*args)
    except Exception:
        return []
    draws = [e.params for e in equations(program) if e.primitive.name == "random_bits"]
    return [(params["bit_width"], params["shape"]) for params in draws]


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, including those of nested jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def _kind(leaf: Any) -> str:
    if not isinstance(leaf, jax.Array):
        return STATIC
    return FLOAT if is_inexact(leaf) else CARRIED


def _parameter_names(f: Callable, count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [positional[i] if i < len(positional) else f"args[{i}]" for i in range(count)]
