"""What every layer needs besides its mathematics, in one decorator.

A layer file writes the idiom of `jax.custom_vjp`: core, `_fwd`, `_bwd`, `defvjp`. The core's decorator does the rest.

    @closed_form(static=1, result=lambda geometry, x, kernel: P(*x[:-1], kernel[-1]))
    def _conv(geometry, x, kernel): ...

    def _conv_fwd(geometry, x, kernel):
        return _conv.body(geometry, x, kernel), (x, kernel)

    def _conv_bwd(geometry, residuals, delta): ...

    _conv.defvjp(_conv_fwd, _conv_bwd)

`closed_form` attaches the rule and compiles eager calls. With `result`, it also makes the core the edge of a layer: the
arguments' varying axes are joined, and explicit meshes are handled. Where a layer calls several rules, `layer` is the
edge, around the plain function that calls them.

Both modes. A rule is a `jax.custom_vjp`. Inside `both_modes()`, which `bnderiv.forward_mode` enters around each call,
the same `_fwd` and `_bwd` are attached as a `jax.custom_jvp`. `_bwd(residuals, ·)` is the linear map Jᵀ, and its
transpose is J:

    ẏ = J ẋ = (Jᵀ)ᵀ ẋ = transpose(ct ↦ _bwd(residuals, ct))(ẋ)

Reverse mode transposes once more. JAX finds the transpose by differentiating, so `_bwd` must be linear in the cotangent
as JAX sees it: it may multiply, add, select by residuals and sum. Where it rounds a cotangent or compares it, it does
so under `stop_gradient`.

Eager compilation. Eager JAX dispatches each operation in about 20 µs, so a function of untraced arrays is compiled as
one program: the core, `_fwd`, `_bwd`, and a layer of several rules. Under a transform the function is left as it is,
for the enclosing program to compile.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from bnderiv._checks import same_varying
from bnderiv._sharding import automatic

# JAX's caches know of it: a function that was traced outside is traced again inside.
_both_modes = jax.make_user_context(False)
_WHERE_TO_GO = (
    "bnderiv: its layers have forward mode within `bnderiv.forward_mode.enabled()`, and under the same names in "
    "`bnderiv.forward_mode`."
)


def both_modes(on: bool = True) -> AbstractContextManager[Any]:
    """Within it, every closed form attaches itself for forward and reverse mode alike; `on=False` changes nothing."""
    return _both_modes(on or _both_modes.value)


def closed_form(core: Any = None, *, static: int = 0, result: Callable[..., Any] | None = None) -> Any:
    """Decorates a core whose gradient is `_bwd`; `defvjp` attaches it.

    Args:
      core: the forward, of positional arguments: options first, then arrays (or None).
      static: how many of the arguments are options; these must be hashable.
      result: makes the core the edge of a layer, see `layer`. An elementwise core needs none, nor does one that is
        called inside a `layer`.

    Returns:
      A `Rule`, or a decorator where `core` is left out.
    """
    return partial(Rule, static=static, result=result) if core is None else Rule(core, static, result)


def layer(*, static: int = 0, result: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a function of arrays that calls rules, so that it works under `shard_map` and on explicit meshes.

    Args:
      static: how many of the leading arguments are options; these must be hashable.
      result: the `PartitionSpec` of the output (or a tree of them) from the function's own arguments, with each array
        replaced by its spec and None left as it is. A spec has an entry for each axis.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        names = tuple(inspect.signature(function).parameters)[static:]
        # Under a transform too: JAX traces and differentiates a program once for all its calls of these shapes.
        compiled = jax.jit(function, static_argnums=tuple(range(static)))

        @wraps(function)
        def call(*args: Any) -> Any:
            options, arrays = args[:static], same_varying(*args[static:])
            return automatic(
                partial(compiled, *options),
                lambda **specs: result(*options, *specs.values()),
                **dict(zip(names, arrays, strict=True)),
            )

        return call

    return decorate


class Rule:
    """A core with its closed form. `body` is the undecorated core, for `_fwd` to call."""

    def __init__(self, body: Callable[..., Any], static: int, result: Callable[..., Any] | None):
        self.body = body
        self.static = static
        options = tuple(range(static))
        self._reverse_mode = jax.custom_vjp(body, nondiff_argnums=options)
        self._in_both_modes = jax.custom_jvp(body, nondiff_argnums=options)

        @wraps(body)
        def attached(*args: Any) -> Any:
            if _both_modes.value:
                return self._in_both_modes(*args)
            try:
                return self._reverse_mode(*args)
            except TypeError as error:
                if "forward-mode" in str(error):  # under jit JAX raises it later, where nobody can catch it
                    error.add_note(_WHERE_TO_GO)
                raise

        edge = layer(static=static, result=result) if result else partial(_compiled_where_untraced, static=static)
        self._call = edge(attached)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """As `jax.custom_vjp.defvjp`."""
        self.fwd = _forwarding(fwd, self.static)
        self.bwd = _compiled_where_untraced(bwd, self.static)
        self._reverse_mode.defvjp(lambda *args: self.fwd(*args), lambda *args: self.bwd(*args))
        _attach_both_modes(self, self._in_both_modes)


def _compiled_where_untraced(f: Callable[..., Any], static: int, arrays: int | None = None) -> Callable[..., Any]:
    """`f`, compiled as one program unless one of its arrays is traced.

    `arrays`: how many of the arguments after the options are tested for that; all by default.
    """
    watched = slice(static, None if arrays is None else static + arrays)

    @cache  # made at the first call: a program for each rule would slow the import
    def compiled() -> Any:
        return jax.jit(f, static_argnums=tuple(range(static)))

    @wraps(f)
    def call(*args: Any) -> Any:
        traced = any(isinstance(a, Tracer) for a in jax.tree.leaves(args[watched]))
        return f(*args) if traced else compiled()(*args)

    return call


@partial(jax.tree_util.register_dataclass, data_fields=("computed",), meta_fields=("sources", "structure"))
@dataclass
class _Residuals:
    """Residuals without those that are arguments or outputs themselves: a compiled program would copy these."""

    computed: list[jax.Array]
    sources: tuple[int | None, ...]  # for each residual: which of the arguments and outputs it is, None if computed
    structure: Any


def _forwarding(fwd: Callable[..., Any], static: int) -> Callable[..., Any]:
    """`fwd`, compiled where untraced; a residual that is an argument or output is that same array, not a copy."""

    @wraps(fwd)
    def program(*args: Any) -> Any:
        out, residuals = fwd(*args)
        places = {id(a): i for i, a in enumerate(jax.tree.leaves((args[static:], out)))}
        leaves, structure = jax.tree.flatten(residuals)
        sources = tuple(places.get(id(a)) for a in leaves)
        return out, _Residuals([a for a in leaves if id(a) not in places], sources, structure)

    compiled = _compiled_where_untraced(program, static)

    @wraps(fwd)
    def call(*args: Any) -> Any:
        out, residuals = compiled(*args)
        known, computed = jax.tree.leaves((args[static:], out)), iter(residuals.computed)
        leaves = [next(computed) if source is None else known[source] for source in residuals.sources]
        return out, jax.tree.unflatten(residuals.structure, leaves)

    return call


def _attach_both_modes(rule: Rule, core: jax.custom_jvp[Any]) -> None:
    def pull_back(options: Any, residuals: Any, cotangents: Any, like: tuple[Any, ...]) -> list[Any]:
        """Jᵀ; the cotangent of an argument without a derivative (integers, booleans, None) is left out."""
        pairs = _pairs(rule.bwd(*options, residuals, cotangents), like)
        return [jnp.zeros_like(a) if g is None else g for g, a in pairs if _is_float(a)]

    def tangent(*args: Any) -> Any:
        *options, primals, tangents = args

        # The checkpoint keeps the residual at the arguments: without it, reverse mode would save the intermediates
        # of the transposed map.
        @jax.checkpoint
        def push_forward(primals: tuple[Any, ...], tangents: list[Any]) -> Any:
            out, residuals = rule.fwd(*options, *primals)
            # The derivative of a linear map is the map, at `out` as anywhere; XLA drops its value there.
            _, transpose = jax.vjp(lambda ct: pull_back(options, residuals, ct, primals), out)
            return transpose(tangents)[0]

        return push_forward(primals, tangents)

    compiled_core = _compiled_where_untraced(core, rule.static)
    # In an eager gradient the tangents alone are traced, and the program is transposed as a whole.
    compiled_tangent = _compiled_where_untraced(tangent, rule.static, arrays=1)

    @core.defjvp
    def _(*args: Any) -> tuple[Any, Any]:
        *options, primals, tangents = args
        floats = [t for t, a in _pairs(tangents, primals) if _is_float(a)]
        return compiled_core(*options, *primals), compiled_tangent(*options, primals, floats)


def _pairs(derivatives: Any, arguments: Any) -> list[tuple[Any, Any]]:
    """Each array of the arguments, which may be tuples of some, with its derivative; None stands for all of a tuple."""
    if not isinstance(arguments, tuple):
        return [(derivatives, arguments)]
    parts = [None] * len(arguments) if derivatives is None else derivatives
    return [pair for d, a in zip(parts, arguments, strict=True) for pair in _pairs(d, a)]


def _is_float(a: Any) -> bool:
    return a is not None and jnp.issubdtype(jnp.result_type(a), jnp.floating)
