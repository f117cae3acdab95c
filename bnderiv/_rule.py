"""What every layer needs besides its mathematics, in one decorator.

A layer file writes the idiom of `jax.custom_vjp`: core, `_fwd`, `_bwd`, `defvjp`. The core's decorator does the rest.

    @closed_form(static=1, result=lambda geometry, x, kernel: P(*x[:-1], kernel[-1]))
    def _conv(geometry, x, kernel): ...

    def _conv_fwd(geometry, x, kernel):
        return _conv.body(geometry, x, kernel), (x, kernel)

    def _conv_bwd(geometry, residuals, delta): ...

    _conv.defvjp(_conv_fwd, _conv_bwd)

`closed_form` attaches the rule. With `result`, the core is the edge of a layer: the arguments' varying axes are joined,
and explicit meshes are handled. Where a layer calls several rules, these are `inner`, and `layer` is the edge, around
the plain function that calls them.

Both modes. A rule is a `jax.custom_vjp`. Inside `both_modes()`, which `bnderiv.forward_mode` enters around each call,
the same `_fwd` and `_bwd` are attached as a `jax.custom_jvp`. `_bwd(residuals, ·)` is the linear map Jᵀ, and its
transpose is J:

    ẏ = J ẋ = (Jᵀ)ᵀ ẋ = transpose(ct ↦ _bwd(residuals, ct))(ẋ)

Reverse mode transposes once more. JAX finds the transpose by differentiating, so `_bwd` must be linear in the cotangent
as JAX sees it: it may multiply, add, select by residuals and sum. Where it rounds a cotangent or compares it, it does
so under `stop_gradient`.

The settings of the forward. JAX traces a `_bwd` when the gradient is taken, and contexts that the forward was in may
have been left: `jax.default_matmul_precision`, `jax.enable_x64`. With autodiff a gradient's products have the forward's
precision, and its arrays their dtype. So these settings are an option of each rule.

Always under `jax.jit`. Every layer is, inside other transforms too. Eager JAX dispatches each operation in about 20 µs,
those of a gradient as well. And JAX traces and differentiates a jitted function once for each shape: twenty batch norms
are traced four times as fast. XLA inlines the calls.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp

from bnderiv._checks import is_float, same_varying
from bnderiv._sharding import automatic

# A part of JAX's cache keys: a function that was traced outside is traced again inside.
_both_modes = jax.make_user_context(False)
_WHERE_TO_GO = (
    "bnderiv: its layers have forward mode within `bnderiv.forward_mode.enabled()`, and under the same names in "
    "`bnderiv.forward_mode`."
)


def both_modes(on: bool = True) -> AbstractContextManager[Any]:
    """A context in which every rule is attached for both modes; `on=False` leaves things as they are."""
    return _both_modes(on or _both_modes.value)


def closed_form(
    core: Any = None, *, static: int = 0, result: Callable[..., Any] | None = None, inner: bool = False
) -> Any:
    """Decorates a core whose gradient is `_bwd`; `defvjp` attaches it.

    Args:
      core: the forward, of positional arguments: options first, then arrays (or None).
      static: how many of the arguments are options; these must be hashable.
      result: as in `layer`. An elementwise core needs none: JAX follows its sharding.
      inner: True if only layers call this rule; it is not jitted by itself then.

    Returns:
      A `Rule`, or a decorator where `core` is left out.
    """
    rule = partial(Rule, static=static, result=result, inner=inner)
    return rule if core is None else rule(core)


def layer(*, static: int = 0, result: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a function of arrays that calls rules, so that it works under `shard_map` and on explicit meshes.

    Args:
      static: how many of the leading arguments are options; these must be hashable.
      result: the `PartitionSpec` of the output (or a tree of them) from the function's own arguments, with each array
        replaced by its spec and None left as it is. A spec has an entry for each axis.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        names = tuple(inspect.signature(function).parameters)[static:]
        program = _program(function, static)

        @wraps(function)
        def call(*args: Any) -> Any:
            options, arrays = args[:static], same_varying(*args[static:])
            return automatic(
                partial(program, *options),
                lambda **specs: result(*options, *specs.values()),
                **dict(zip(names, arrays, strict=True)),
            )

        return call

    return decorate


def _program(function: Callable[..., Any], static: int) -> Callable[..., Any]:
    """`function` under `jax.jit`."""
    compiled = jax.jit(function, static_argnums=tuple(range(static)))

    @wraps(function)
    def call(*args: Any) -> Any:
        try:
            return compiled(*args)
        except TypeError as error:
            if "forward-mode" in str(error):  # in a jitted function JAX raises it later, where nobody can catch it
                error.add_note(_WHERE_TO_GO)
            raise

    return call


class Rule:
    """A core with its closed form. `body` is the undecorated core, for `_fwd` to call.

    A body may have an attribute `alone`, a form that is called where no gradient is taken. It may round differently.
    Under `vmap` its results must have a mapped axis where those of the body have one: JAX does not check this.
    """

    def __init__(self, body: Callable[..., Any], static: int, result: Callable[..., Any] | None, inner: bool):
        self.body = body
        primal = getattr(body, "alone", body)
        self._reverse_mode = jax.custom_vjp(_with_settings(primal), nondiff_argnums=tuple(range(1 + static)))
        self._in_both_modes = CustomJvp(body, static)

        @wraps(body)
        def attached(*args: Any) -> Any:
            return self._in_both_modes(*args) if _both_modes.value else self._reverse_mode(_settings(), *args)

        if inner:
            self._call: Callable[..., Any] = attached
        elif result:
            self._call = layer(static=static, result=result)(attached)
        else:
            self._call = _program(attached, static)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """As `jax.custom_vjp.defvjp`."""
        self.fwd, self.bwd = fwd, bwd
        self._reverse_mode.defvjp(_with_settings(fwd), _with_settings(bwd))
        _attach_both_modes(self)


class CustomJvp:
    """`jax.custom_jvp` of positional arguments, `static` options first, whose rule has the settings of the forward."""

    def __init__(self, function: Callable[..., Any], static: int = 0):
        self._function = jax.custom_jvp(_with_settings(function), nondiff_argnums=tuple(range(1 + static)))

    def __call__(self, *args: Any) -> Any:
        return self._function(_settings(), *args)

    def defjvp(self, rule: Callable[..., Any]) -> None:
        """As `jax.custom_jvp.defjvp`."""
        self._function.defjvp(_with_settings(rule))


def _settings() -> tuple[str | None, bool]:
    return jax.default_matmul_precision.value, jax.enable_x64.value


def _with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with the settings that it is traced with as one more first argument."""

    def call(settings: tuple[str | None, bool], *args: Any) -> Any:
        precision, x64 = settings
        # A setting that was off leaves that of the context, as with autodiff.
        wide = jax.enable_x64(True) if x64 else nullcontext()
        with wide, jax.default_matmul_precision(precision) if precision else nullcontext():
            return function(*args)

    call.__name__ = function.__name__
    return call


def _attach_both_modes(rule: Rule) -> None:
    core = rule._in_both_modes

    def pull_back(options: Any, residuals: Any, cotangents: Any, like: tuple[Any, ...]) -> list[Any]:
        """Jᵀ; the cotangent of an argument without a derivative (integers, booleans, None) is left out."""
        pairs = _pairs(rule.bwd(*options, residuals, cotangents), like)
        return [jnp.zeros_like(a) if g is None else g for g, a in pairs if _has_derivative(a)]

    @core.defjvp
    def _(*args: Any) -> tuple[Any, Any]:
        *options, primals, tangents = args

        # The checkpoint keeps the residual at the arguments: without it, reverse mode would save the intermediates
        # of the transposed map.
        @jax.checkpoint
        def push_forward(primals: tuple[Any, ...], tangents: list[Any]) -> Any:
            out, residuals = rule.fwd(*options, *primals)
            # `pull_back` is linear, so its derivative is the same at any point: `out` gives the shapes.
            _, transpose = jax.vjp(lambda ct: pull_back(options, residuals, ct, primals), out)
            return transpose(tangents)[0]

        floats = [t for t, a in _pairs(tangents, primals) if _has_derivative(a)]
        return core(*options, *primals), push_forward(primals, floats)


def _pairs(derivatives: Any, arguments: Any) -> list[tuple[Any, Any]]:
    """Each array of the arguments, in tuples or not, with its derivative. One None may stand for all of a tuple."""
    if not isinstance(arguments, tuple):
        return [(derivatives, arguments)]
    parts = [None] * len(arguments) if derivatives is None else derivatives
    return [pair for d, a in zip(parts, arguments, strict=True) for pair in _pairs(d, a)]


def _has_derivative(a: Any) -> bool:
    return a is not None and is_float(a)
