"""What every layer promises at every case; each promise a function that raises AssertionError where it is broken.

`layers` is the attachment under test (`bnderiv` or `bnderiv.forward_mode`); the oracle is always `bnderiv.reference`,
the plain forward differentiated by JAX, at float64.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

import bnderiv.reference
from tests.case import Case, random_like

TIGHT = 1e-11  # float64 against float64, in different orders of summation
HALF = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-6}  # a few roundings of the output


def vjp(layers: Any, case: Case) -> None:
    """Value and hand-derived gradient equal the reference and its autodiff, for a random cotangent."""
    f, args = case.bind(layers)
    cotangent = _cotangent(f, args)
    close(_compiled(f)(cotangent, *args), _oracle(case)(cotangent, *args))


def eager(layers: Any, case: Case) -> None:
    """Without jit, the same value and gradient."""
    f, args = case.bind(layers)
    cotangent = _cotangent(f, args)
    close(_value_and_gradient(f, cotangent, *args), _compiled(f)(cotangent, *args))


def finite_differences(layers: Any, case: Case) -> None:
    """First and second derivative in reverse mode agree with finite differences in float64."""
    f, args = case.bind(layers)
    compiled = jax.jit(lambda *a: tuple(jax.tree.leaves(f(*a))))
    check_grads(compiled, args, order=2, modes=("rev",), atol=1e-4, rtol=1e-4)


def gradient_of_gradient(layers: Any, case: Case) -> None:
    """Reverse over reverse equals the reference's."""
    f, args = case.bind(layers)
    g, _ = case.bind(bnderiv.reference)

    def second(function: Callable) -> Any:
        direction = random_like(args, 3)

        def projected(*a: jax.Array) -> jax.Array:
            return jnp.stack([jnp.vdot(s, d) for s, d in zip(_gradient(function, *a), direction, strict=True)]).sum()

        return jax.jit(jax.grad(projected, tuple(range(len(args)))))(*args)

    close(second(f), second(g))


def jvp_of_gradient(layers: Any, case: Case) -> None:
    """Forward over reverse (a Hessian-vector product) equals the reference's."""
    f, args = case.bind(layers)
    g, _ = case.bind(bnderiv.reference)

    def product(function: Callable) -> Any:
        direction = random_like(args, 4)
        return jax.jit(lambda *a: jax.jvp(lambda *b: _gradient(function, *b), a, direction)[1])(*args)

    close(product(f), product(g))


def vmap(layers: Any, case: Case) -> None:
    """Mapped over each argument alone, value and gradient equal a loop; the others' gradients are the sums."""
    f, args = case.bind(layers)
    one = _compiled(f)
    for i in range(len(args)):
        batch = jnp.stack([case.bind(layers, seed=s)[1][i] for s in range(3)])
        mapped = jax.vmap(f, [0 if j == i else None for j in range(len(args))])
        arguments = (*args[:i], batch, *args[i + 1 :])
        cotangent = _cotangent(mapped, arguments)
        rows = [
            one(jax.tree.map(lambda c, s=s: c[s], cotangent), *args[:i], batch[s], *args[i + 1 :]) for s in range(3)
        ]
        outs, grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        expected = tuple(g if j == i else g.sum(0) for j, g in enumerate(grads))
        close(_compiled(mapped)(cotangent, *arguments), (outs, expected))


def dtypes(layers: Any, case: Case) -> None:
    """In every floating dtype the outputs and the gradients are near the float64 truth at the same (rounded) inputs,
    and each gradient has its primal's shape and dtype (JAX does not check it)."""
    for name, tolerance in HALF.items():
        f, args = case.bind(layers, jnp.dtype(name))
        cotangent = _cotangent(f, args)
        out, grads = _compiled(f)(cotangent, *args)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, args)
        near((out, grads), _oracle(case)(_wide(cotangent), *_wide(args)), tolerance)


PROMISES = (vjp, eager, finite_differences, gradient_of_gradient, jvp_of_gradient, vmap, dtypes)


def close(actual: Any, expected: Any) -> None:
    """Equal to float64 rounding, structure, shapes and dtypes included."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    near(actual, expected, TIGHT)


def near(actual: Any, expected: Any, tolerance: float) -> None:
    """Every leaf within `tolerance` of the other, relative to its norm; the same NaNs and infinities."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape, f"leaf {i}: shape {a.shape}, expected {e.shape}"
        np.testing.assert_array_equal(np.isnan(a), np.isnan(e))
        finite = np.isfinite(e)
        np.testing.assert_array_equal(a[~finite], e[~finite])
        error, scale = np.linalg.norm(a[finite] - e[finite]), np.linalg.norm(e[finite])
        assert error <= tolerance * (scale + 1e-3), f"leaf {i}: off by {error:.3e} at norm {scale:.3e}"


def _value_and_gradient(function: Callable, cotangent: Any, *args: jax.Array) -> Any:
    out, pull_back = jax.vjp(function, *args)
    return out, pull_back(cotangent)


def _compiled(function: Callable) -> Callable:
    return jax.jit(partial(_value_and_gradient, function))  # one compilation is faster than one for every operation


@lru_cache
def _oracle(case: Case) -> Callable:
    return _compiled(case.bind(bnderiv.reference)[0])


def _cotangent(function: Callable, args: tuple[jax.Array, ...]) -> Any:
    return random_like(jax.eval_shape(function, *args), 1)


def _gradient(function: Callable, *args: jax.Array) -> Any:
    return _value_and_gradient(function, _cotangent(function, args), *args)[1]


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float64), tree)
