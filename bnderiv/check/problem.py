"""A function of any pytrees as a function of two flat tuples: what is differentiated, and what is carried along."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FLOAT, CARRIED, STATIC = "float", "carried", "static"


class Arguments:
    """The arguments of a call, told apart: floating (and complex) arrays, other arrays, and everything else."""

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
        """The arguments as `f` takes them, with other arrays in place."""
        sources = {FLOAT: iter(floats), CARRIED: iter(carried), STATIC: iter([leaf for _, leaf in self.static])}
        return jax.tree.unflatten(self._treedef, [next(sources[kind]) for kind in self.kinds])

    def bind(self, f: Callable) -> Callable:
        """`f` as (floats, carried) ↦ its floating outputs, flat."""

        def bound(floats: Sequence[Any], carried: Sequence[Any]) -> tuple[jax.Array, ...]:
            leaves = jax.tree.leaves(f(*self.rebuild(floats, carried)))
            return tuple(jnp.asarray(leaf) for leaf in leaves if is_inexact(leaf))

        return bound


def is_inexact(a: Any) -> bool:
    return isinstance(a, (float, complex)) or (hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact))


def custom_vjp_of(f: Any) -> jax.custom_vjp | None:
    """The rule itself, where `f` is one or wraps one (jit); then its backward can be asked directly."""
    for _ in range(8):
        if isinstance(f, jax.custom_vjp):
            return f
        f = getattr(f, "__wrapped__", None)
    return None


def pull_back_directly(rule: Any, args: tuple[Any, ...], cotangent: Any) -> list[Any]:
    """What the rule's own backward returns, an entry per differentiated argument, before JAX has seen it.

    JAX drops a cotangent that a rule gives an integer argument, and says nothing.
    """
    _, residuals = rule.fwd(*args)
    static = [args[i] for i in sorted(rule.nondiff_argnums)]
    grads = iter(rule.bwd(*static, residuals, cotangent))
    return [None if i in rule.nondiff_argnums else next(grads) for i in range(len(args))]


def random_draws(f: Callable, *args: Any) -> list[tuple[Any, ...]]:
    """Width and shape of all random bits that `f` draws, in the order of its program; none if it cannot be traced."""
    try:
        program = jax.make_jaxpr(f)(*args)
    except Exception:
        return []
    draws = [e.params for e in equations(program) if e.primitive.name == "random_bits"]
    return [(params["bit_width"], params["shape"]) for params in draws]


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a traced function, with those of the functions inside it."""
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
