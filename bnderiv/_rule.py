"""The one attachment of a hand-derived rule: `jax.custom_vjp`, or both modes on request.

A layer file writes plain `jax.custom_vjp` idiom — core, `_fwd`, `_bwd`, `defvjp` — with `closed_form` as the decorator.
By itself a `closed_form` *is* the `jax.custom_vjp` it inherits from. Inside `both_modes()`, which
`bnderiv.forward_mode` enters around each call, the same `_fwd` and `_bwd` are attached as a `jax.custom_jvp` instead.

Why this works. `_bwd(residuals, ·)` is the linear map Jᵀ; its transpose is J, which is all that forward mode needs:

    ẏ = J ẋ = (Jᵀ)ᵀ ẋ = transpose(ct ↦ _bwd(residuals, ct))(ẋ)

Reverse mode over that transposes once more. JAX finds the transpose by differentiating, so a rule must be *linear in
the cotangent in the eyes of JAX*: it may multiply, add, select by residuals and sum. Where it rounds a cotangent, or
compares it with anything, it does so under `stop_gradient`, to no effect but on roundings.

Outside of any transform JAX runs a function operation by operation, and each costs some 20 µs however small it is. So
what is called with nothing traced, the core and `_bwd`, is compiled as a whole, `_compiled_where_untraced`.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from functools import cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

_both_modes: contextvars.ContextVar[bool] = contextvars.ContextVar("bnderiv_both_modes", default=False)


@contextlib.contextmanager
def both_modes() -> Iterator[None]:
    """Within it, every closed form attaches itself for forward and reverse mode alike."""
    token = _both_modes.set(True)
    try:
        yield
    finally:
        _both_modes.reset(token)


class closed_form(jax.custom_vjp[Any]):
    """`jax.custom_vjp` whose `(fwd, bwd)` pair `both_modes` can attach as a `jax.custom_jvp` as well.

    The non-differentiable arguments, where there are any, come first (as `nondiff_argnums=(0, 1, ...)`).
    """

    def __init__(self, fun: Callable[..., Any], nondiff_argnums: Sequence[int] = ()):
        super().__init__(fun, nondiff_argnums)
        reverse_mode = super().__call__

        @wraps(fun)
        def call(*args: Any) -> Any:
            return reverse_mode(*args)

        self._reverse_mode = _compiled_where_untraced(call, self.nondiff_argnums)

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """As `jax.custom_vjp.defvjp`."""
        # Not `fwd`: a compiled program would copy the arguments that are among its residuals.
        super().defvjp(fwd, _compiled_where_untraced(bwd, self.nondiff_argnums))

    def __call__(self, *args: Any) -> Any:
        if not _both_modes.get():
            return self._reverse_mode(*args)
        static = args[: len(self.nondiff_argnums)]
        return _attach_both_modes(self.fwd, self.bwd, static)(*args[len(static) :])


def _compiled_where_untraced(f: Callable[..., Any], static_argnums: tuple[int, ...]) -> Callable[..., Any]:
    """`f` in one program if none of its arrays is traced, and as it is within a transform, which sees all of it."""

    @cache
    def compiled() -> Any:  # when first wanted: two for every rule would be felt in the time of the import
        return jax.jit(f, static_argnums=static_argnums)

    @wraps(f)
    def call(*args: Any) -> Any:
        traced = any(isinstance(a, Tracer) for a in jax.tree.leaves(args[len(static_argnums) :]))
        return f(*args) if traced else compiled()(*args)

    return call


def _attach_both_modes(fwd: Any, bwd: Any, static: tuple[Any, ...]) -> Any:
    def pull_back(residuals: Any, cotangents: Any, like: tuple[Any, ...]) -> list[Any]:
        """Jᵀ; the cotangent of an argument without a derivative (integers, booleans, None) is left out."""
        pairs = [pair for g, a in zip(bwd(*static, residuals, cotangents), like, strict=True) for pair in _pairs(g, a)]
        return [jnp.zeros_like(a) if g is None else g for g, a in pairs if _is_float(a)]

    def push_forward(args: tuple[Any, ...], tangents: list[Any]) -> Any:
        out, residuals = fwd(*static, *args)
        # The derivative of a linear map is the map, at `out` as anywhere; XLA drops its value there.
        _, transpose = jax.vjp(lambda ct: pull_back(residuals, ct, args), out)
        return transpose(tangents)[0]

    @jax.custom_jvp
    def core(*args: Any) -> Any:
        return fwd(*static, *args)[0]

    @core.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        pairs = [pair for t, a in zip(tangents, primals, strict=True) for pair in _pairs(t, a)]
        floats = [t for t, a in pairs if _is_float(a)]
        # The checkpoint keeps the residual at the arguments: without it, reverse mode would save the intermediates
        # of the transposed map.
        return core(*primals), jax.checkpoint(push_forward)(primals, floats)

    return core


def _pairs(derivative: Any, argument: Any) -> list[tuple[Any, Any]]:
    """Each array of the argument, which may be a named tuple of some, with its derivative; None is none for all."""
    if not isinstance(argument, tuple):
        return [(derivative, argument)]
    parts = [None] * len(argument) if derivative is None else derivative
    return [pair for d, a in zip(parts, argument, strict=True) for pair in _pairs(d, a)]


def _is_float(a: Any) -> bool:
    return a is not None and jnp.issubdtype(jnp.result_type(a), jnp.floating)
