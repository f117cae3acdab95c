"""Turns a function of pytrees into a function of two flat tuples: the differentiated arrays and the other arrays."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FLOAT, CARRIED, STATIC = "float", "carried", "static"


class Arguments:
    """The arguments of a call, split into differentiated arrays, other arrays, and static objects.

    Args:
      f: names the arguments.
      args: the call. A Python float or complex number is differentiated as an array, as `jax.grad` does.
      argnums: the positions to differentiate; None for all.
      static_numbers: pass Python numbers unchanged instead.
    """

    def __init__(self, f: Callable, args: tuple[Any, ...], argnums: Any = None, static_numbers: bool = False):
        leaves, self._treedef = jax.tree_util.tree_flatten_with_path(args)
        names = _parameter_names(f, len(args))
        chosen = _chosen(argnums, len(args))
        arrays = [leaf for _, leaf in leaves if isinstance(leaf, (jax.Array, np.ndarray, np.generic))]
        real = jnp.result_type(*_dtypes_of_floats(arrays)) if _dtypes_of_floats(arrays) else jnp.result_type(float)
        positions = [path[0].idx for path, _ in leaves]

        def converted(leaf: Any, position: int) -> Any:
            if isinstance(leaf, (np.ndarray, np.generic)):
                return jnp.asarray(leaf)
            if type(leaf) in (float, complex) and position in chosen and not static_numbers:
                return jnp.asarray(leaf, real if type(leaf) is float else jnp.result_type(real, jnp.complex64))
            return leaf

        self._leaves = [converted(leaf, i) for (_, leaf), i in zip(leaves, positions, strict=True)]
        self.kinds = [_kind(a, i in chosen) for a, i in zip(self._leaves, positions, strict=True)]
        self.names = [names[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in leaves]
        self.floats = tuple(self._of_kind(FLOAT, self._leaves))
        self.carried = tuple(self._of_kind(CARRIED, self._leaves))
        self.float_names = self._of_kind(FLOAT, self.names)
        self.carried_names = self._of_kind(CARRIED, self.names)
        self.carried_positions = self._of_kind(CARRIED, positions)
        self.static = list(zip(self._of_kind(STATIC, self.names), self._of_kind(STATIC, self._leaves), strict=True))
        self.numbers = [
            name
            for name, (_, leaf), a in zip(self.names, leaves, self._leaves, strict=True)
            if type(leaf) in (float, complex) and isinstance(a, jax.Array)
        ]

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


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, including those of nested jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def inner_of(equation: Any) -> Any:
    """The jaxpr that an equation calls with its own arguments, such as a jit or a rule; None for any other."""
    inner = next((equation.params[p] for p in ("jaxpr", "call_jaxpr", "fun_jaxpr") if p in equation.params), None)
    same = inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(equation.invars)
    return inner if same else None


def random_draws(f: Callable, *args: Any) -> list[tuple[Any, ...]]:
    """Bit width and shape of every random draw in `f`, in program order; empty if `f` cannot be traced."""
    draws = [e.params for e in _program(f, *args) if e.primitive.name == "random_bits"]
    return [(params["bit_width"], params["shape"]) for params in draws]


def coarsest_ulp(f: Any, *args: Any) -> float:
    """The ulp of the narrowest floating dtype in the program: a cast to float32 rounds to 1e-7 whatever follows."""
    dtypes = [v.aval.dtype for e in _program(f, *args) for v in e.outvars if hasattr(v.aval, "dtype")]
    dtypes += [a.dtype for a in jax.tree.leaves(args)]
    return max((float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.inexact)), default=0.0)


def sees_symbolic_zeros(f: Callable, *args: Any) -> bool:
    """Whether a rule in `f` is told which arguments are differentiated; True if `f` cannot be traced."""
    try:
        program = jax.make_jaxpr(f)(*args)
    except Exception:
        return True
    return any(e.params.get("symbolic_zeros", False) for e in equations(program))


def may_not_end(f: Callable, *args: Any) -> bool:
    """Whether a `while_loop` in `f` compares floating numbers in its condition, and counts nothing."""
    for e in _program(f, *args):
        if e.primitive.name == "while":
            compared = [i.invars[0].aval.dtype for i in equations(e.params["cond_jaxpr"]) if _compares(i)]
            if any(jnp.issubdtype(d, jnp.inexact) for d in compared) and not any(
                jnp.issubdtype(d, jnp.integer) for d in compared
            ):
                return True
    return False


def converges(f: Callable, *args: Any) -> bool:
    """Whether a loop in `f` ends when floating numbers are small enough, or is hidden within a primitive."""
    loops = [e for e in _program(f, *args) if e.primitive.name in ("while", "scan")]
    conditions = [e.params["cond_jaxpr"] for e in loops if e.primitive.name == "while"]
    for condition in conditions:
        if any(_compares(i) and jnp.issubdtype(i.invars[0].aval.dtype, jnp.inexact) for i in equations(condition)):
            return True
    return not loops and "stablehlo.while" in jax.jit(f).lower(*args).as_text()


def _compares(equation: Any) -> bool:
    return equation.primitive.name in ("lt", "le", "gt", "ge", "ne", "eq")


def _program(f: Any, *args: Any) -> list[Any]:
    try:
        return list(equations(f if hasattr(f, "eqns") else jax.make_jaxpr(f)(*args)))
    except Exception:
        return []


def _chosen(argnums: Any, count: int) -> set[int]:
    if argnums is None:
        return set(range(count))
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not positions or not all(isinstance(i, int) and -count <= i < count for i in positions):
        raise ValueError(f"argnums must be positions of the {count} arguments, got {argnums!r}")
    return {i % count for i in positions}


def _dtypes_of_floats(arrays: Sequence[Any]) -> list[Any]:
    return [jnp.finfo(a.dtype).dtype for a in arrays if is_inexact(a)][:1]


def _kind(leaf: Any, chosen: bool) -> str:
    if not isinstance(leaf, jax.Array):
        return STATIC
    return FLOAT if chosen and is_inexact(leaf) else CARRIED


def _parameter_names(f: Callable, count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [positional[i] if i < len(positional) else f"args[{i}]" for i in range(count)]
