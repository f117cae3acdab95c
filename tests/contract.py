"""What every layer promises at every case; each promise a function that raises AssertionError where it is broken.

`layers` is the attachment under test (`bnderiv` or `bnderiv.forward_mode`); the oracle is always `bnderiv.reference`,
the plain forward differentiated by JAX, at float64.
"""

from collections.abc import Callable
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


def value(layers: Any, case: Case) -> None:
    """The forward equals the reference."""
    f, args = case.bind(layers)
    g, _ = case.bind(bnderiv.reference)
    close(f(*args), g(*args))


def vjp(layers: Any, case: Case) -> None:
    """The hand-derived gradient equals autodiff of the reference, for a random cotangent."""
    f, args = case.bind(layers)
    g, _ = case.bind(bnderiv.reference)
    out, pull_back = jax.vjp(f, *args)
    expected_out, expected_pull_back = jax.vjp(g, *args)
    cotangent = random_like(out, 1)
    close(out, expected_out)
    close(pull_back(cotangent), expected_pull_back(cotangent))


def finite_differences(layers: Any, case: Case) -> None:
    """First and second derivative in reverse mode agree with finite differences in float64."""
    f, args = case.bind(layers)
    # Only what has a derivative: jax.test_util would shift a count by rounding.
    check_grads(lambda *a: tuple(jax.tree.leaves(f(*a))[:3]), args, order=2, modes=("rev",), atol=1e-4, rtol=1e-4)


def gradient_of_gradient(layers: Any, case: Case) -> None:
    """Reverse over reverse equals the reference's."""
    f, args = case.bind(layers)
    g, _ = case.bind(bnderiv.reference)
    close(_second(jax.grad, f, args), _second(jax.grad, g, args))


def jvp_of_gradient(layers: Any, case: Case) -> None:
    """Forward over reverse (a Hessian-vector product) equals the reference's."""
    f, args = case.bind(layers)
    g, _ = case.bind(bnderiv.reference)
    direction = random_like(args, 4)

    def product(function: Callable) -> Any:
        return jax.jvp(lambda *a: _gradient(function, *a), args, direction)[1]

    close(product(f), product(g))


def jit(layers: Any, case: Case) -> None:
    """Compiled equals eager, value and gradient."""
    f, args = case.bind(layers)
    out, pull_back = jax.vjp(f, *args)
    cotangent = random_like(out, 1)
    compiled = jax.jit(lambda ct, *a: (lambda o, p: (o, p(ct)))(*jax.vjp(f, *a)))
    close(compiled(cotangent, *args), (out, pull_back(cotangent)))


def vmap(layers: Any, case: Case) -> None:
    """Mapped over each argument alone, value and gradient equal a loop; the others' gradients are the sums."""
    f, args = case.bind(layers)
    for i in range(len(args)):
        batch = jnp.stack([case.bind(layers, seed=s)[1][i] for s in range(3)])
        axes = tuple(0 if j == i else None for j in range(len(args)))
        mapped = jax.vmap(f, axes)
        arguments = (*args[:i], batch, *args[i + 1 :])
        out, pull_back = jax.vjp(mapped, *arguments)
        cotangent = random_like(out, 2)
        rows = [jax.vjp(f, *args[:i], batch[s], *args[i + 1 :]) for s in range(3)]
        grads = [p(jax.tree.map(lambda c, s=s: c[s], cotangent)) for s, (_, p) in enumerate(rows)]
        expected = tuple((jnp.stack if j == i else sum)([g[j] for g in grads]) for j in range(len(args)))
        close(out, jax.tree.map(lambda *o: jnp.stack(o), *(o for o, _ in rows)))
        close(pull_back(cotangent), expected)


def dtypes(layers: Any, case: Case) -> None:
    """In every floating dtype the outputs and the gradients are near the float64 truth at the same (rounded) inputs,
    and each gradient has its primal's shape and dtype (JAX does not check it)."""
    for name, tolerance in HALF.items():
        f, args = case.bind(layers, jnp.dtype(name))
        g, _ = case.bind(bnderiv.reference)
        out, pull_back = jax.vjp(f, *args)
        cotangent = random_like(out, 1)
        grads = pull_back(cotangent)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, args)
        wide_out, wide_pull_back = jax.vjp(g, *_wide(args))
        near(out, wide_out, tolerance)
        near(grads, wide_pull_back(_wide(cotangent)), tolerance)


PROMISES = (value, vjp, finite_differences, gradient_of_gradient, jvp_of_gradient, jit, vmap, dtypes)


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
        error, scale = np.linalg.norm((a - e)[finite]), np.linalg.norm(e[finite])
        assert error <= tolerance * (scale + 1e-3), f"leaf {i}: off by {error:.3e} at norm {scale:.3e}"


def _gradient(function: Callable, *args: jax.Array) -> Any:
    out, pull_back = jax.vjp(function, *args)
    return pull_back(random_like(out, 1))


def _second(grad: Callable, function: Callable, args: tuple[jax.Array, ...]) -> Any:
    def projected(*a: jax.Array) -> jax.Array:
        grads = _gradient(function, *a)
        return sum(jnp.vdot(g, d) for g, d in zip(grads, random_like(grads, 3), strict=True))

    return grad(projected, tuple(range(len(args))))(*args)


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float64), tree)
