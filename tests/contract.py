"""What every layer promises at every case; each promise a function that raises AssertionError where it is broken.

`layers` is the attachment under test (`bnderiv` or `bnderiv.forward_mode`); the oracle is always `bnderiv.reference`,
the plain forward differentiated by JAX, at float64.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_vjp

import bnderiv.reference
from tests.case import Case, random_like
from tests.compiling import fast_jit

ORACLE: Any = bnderiv.reference

TIGHT = 1e-11  # float64 against float64, in different orders of summation
HALF = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-6}  # a few roundings of the output


def vjp(layers: Any, case: Case) -> None:
    """Value and hand-derived gradient equal the reference and its autodiff, for a random cotangent."""
    close(value_and_gradient(layers, case), value_and_gradient(ORACLE, case))


def value_and_gradient(layers: Any, case: Case) -> Any:
    """At the point and the cotangent of the case."""
    return _rule(layers, case)(cotangent_at(case), *case.bind(layers)[1])


def eager(layers: Any, case: Case) -> None:
    """Without jit, the same value and gradient."""
    f, args = case.bind(layers)
    cotangent = cotangent_at(case)
    close(_value_and_gradient(f, cotangent, *args), _rule(layers, case)(cotangent, *args))


def finite_differences(layers: Any, case: Case) -> None:
    """First and second derivative in reverse mode agree with finite differences in float64."""
    _, args = case.bind(layers)
    rule, second = _rule(layers, case), _second(layers, case)
    cotangent, points = cotangent_at(case), jax.tree.map(np.asarray, args)  # of NumPy, whose sums compile nothing

    def check(function: Callable, pull_back: Callable) -> None:
        check_vjp(
            lambda *a: jax.tree.map(np.asarray, function(*a)),
            lambda *a: (function(*a), lambda c: pull_back(c, *a)[1]),
            points,
            atol=1e-4,
            rtol=1e-4,
        )

    check(lambda *a: rule(cotangent, *a)[0], rule)
    check(lambda *a: second(points, *a)[0], second)


def gradient_of_gradient(layers: Any, case: Case) -> None:
    """Reverse over reverse equals the reference's."""
    _, args = case.bind(layers)
    direction = random_like(args, 3)
    close(_second(layers, case)(direction, *args), _second(ORACLE, case)(direction, *args))


def jvp_of_gradient(layers: Any, case: Case) -> None:
    """Forward over reverse (a Hessian-vector product) equals the reference's reverse over reverse: H is symmetric."""
    f, args = case.bind(layers)
    direction = random_like(args, 4)
    gradient = partial(_gradient, f, cotangent_at(case))
    actual = fast_jit(lambda *a: jax.jvp(gradient, a, direction)[1])(*args)
    close(actual, _second(ORACLE, case)(direction, *args)[1])


def vmap(layers: Any, case: Case) -> None:
    """Mapped over each argument alone, value and gradient equal a loop; the others' gradients are the sums."""
    f, args = case.bind(layers)
    one = _rule(layers, case)
    points = [case.bind(layers, seed=s)[1] for s in range(3)]
    batches = [np.stack([np.asarray(a) for a in column]) for column in zip(*points, strict=True)]
    cotangents = jax.tree.map(np.asarray, cotangent_of(jax.vmap(case.bind(ORACLE)[0]), tuple(batches)))

    @fast_jit
    def over_each(cotangents: Any, batches: Any) -> Any:
        results = []
        for i, batch in enumerate(batches):
            mapped = jax.vmap(f, [0 if j == i else None for j in range(len(args))])
            results.append(_value_and_gradient(mapped, cotangents, *args[:i], batch, *args[i + 1 :]))
        return results

    for i, actual in enumerate(over_each(cotangents, batches)):
        rows = [
            one(jax.tree.map(lambda c, s=s: c[s], cotangents), *args[:i], batches[i][s], *args[i + 1 :])
            for s in range(3)
        ]
        outs, grads = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        close(actual, (outs, tuple(g if j == i else g.sum(0) for j, g in enumerate(grads))))


def dtypes(layers: Any, case: Case) -> None:
    """In every floating dtype the outputs and the gradients are near the float64 truth at the same (rounded) inputs,
    and each gradient has its primal's shape and dtype (JAX does not check it)."""
    bound = {name: case.bind(layers, jnp.dtype(name)) for name in HALF}
    points = {name: (cotangent_of(f, args), *args) for name, (f, args) in bound.items()}

    @fast_jit
    def in_each(points: Any) -> Any:
        return {name: _value_and_gradient(bound[name][0], *point) for name, point in points.items()}

    for name, (out, grads) in in_each(points).items():
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, bound[name][1])
        near((out, grads), _rule(ORACLE, case)(*_wide(points[name])), HALF[name])


def checkpoint(layers: Any, case: Case) -> None:
    """Recomputed in the backward, the same value and gradient."""
    f, args = case.bind(layers)
    cotangent = cotangent_at(case)
    close(compiled(jax.checkpoint(f))(cotangent, *args), _rule(ORACLE, case)(cotangent, *args))


def scan(layers: Any, case: Case) -> None:
    """The gradient through a loop of calls is the gradient of each."""
    f, _ = case.bind(layers)
    cotangent = cotangent_at(case)
    calls = [case.bind(layers, seed=s)[1] for s in range(3)]

    def total(stacked: Any) -> jax.Array:
        def step(sum_: jax.Array, a: Any) -> tuple[jax.Array, None]:
            return sum_ + _dot(f(*a), cotangent), None

        return jax.lax.scan(step, jnp.zeros(()), stacked)[0]

    stacked = jax.tree.map(lambda *a: jnp.stack(a), *calls)
    grads = [_rule(ORACLE, case)(cotangent, *a)[1] for a in calls]
    close(fast_jit(jax.grad(total))(stacked), jax.tree.map(lambda *g: jnp.stack(g), *grads))


def exported(layers: Any, case: Case) -> None:
    """Serialized and read back, the same value, and the same gradient through the export's own vjp."""
    f, args = case.bind(layers)
    cotangent = cotangent_at(case)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
    program = jax.export.deserialize(jax.export.export(jax.jit(f))(*shapes).serialize(vjp_order=1))
    close(compiled(program.call)(cotangent, *args), _rule(ORACLE, case)(cotangent, *args))


def jvp(layers: Any, case: Case) -> None:
    """Forward mode equals the reference's, called directly and as the linear map of jax.linearize."""
    f, args = case.bind(layers)
    g, _ = case.bind(ORACLE)
    tangents = random_like(args, 5)
    expected = fast_jit(lambda a, t: jax.jvp(g, a, t))(args, tangents)
    close(fast_jit(lambda a, t: jax.jvp(f, a, t))(args, tangents), expected)
    close(fast_jit(lambda a, t: (lambda out, push: (out, push(*t)))(*jax.linearize(f, *a)))(args, tangents), expected)


def jacobians(layers: Any, case: Case) -> None:
    """jacfwd and jacrev are the reference's Jacobian, mapped over a batch of points as well."""
    f, args = case.bind(layers)
    g, _ = case.bind(ORACLE)
    everything = tuple(range(len(args)))
    truth = fast_jit(jax.jacrev(g, everything))
    for jacobian in (jax.jacfwd, jax.jacrev):
        close(fast_jit(jacobian(f, everything))(*args), truth(*args))
    points = [case.bind(layers, seed=s)[1] for s in range(2)]
    batch = [jnp.stack(a) for a in zip(*points, strict=True)]
    mapped = fast_jit(jax.vmap(jax.jacfwd(f, everything)))(*batch)
    rows = [truth(*a) for a in points]
    close(mapped, jax.tree.map(lambda *r: jnp.stack(r), *rows))


def hessians(layers: Any, case: Case) -> None:
    """All four compositions of the two modes are the reference's Hessian."""
    f, args = case.bind(layers)
    g, _ = case.bind(ORACLE)
    everything = tuple(range(len(args)))
    cotangent = cotangent_at(case)

    def hessian(function: Callable, outer: Callable, inner: Callable) -> Any:
        def projected(*a: jax.Array) -> jax.Array:
            return _dot(function(*a), cotangent)

        return fast_jit(outer(inner(projected, everything), everything))(*args)

    expected = hessian(g, jax.jacrev, jax.jacrev)
    for outer in (jax.jacfwd, jax.jacrev):
        for inner in (jax.jacfwd, jax.jacrev):
            close(hessian(f, outer, inner), expected)


def without_x64(layers: Any, case: Case) -> None:
    """Where JAX has no float64 (its default), float32 in gives float32 out, near the truth."""
    f, args = case.bind(layers, jnp.float32)
    cotangent = cotangent_of(f, args)
    with jax.enable_x64(False):
        result = compiled(f)(cotangent, *args)
    chex.assert_trees_all_equal_shapes_and_dtypes(result, (cotangent, args))
    near(result, _rule(ORACLE, case)(_wide(cotangent), *_wide(args)), HALF["float32"])


PROMISES = (vjp, finite_differences, gradient_of_gradient, jvp_of_gradient, vmap, dtypes)
TRANSFORMS = (checkpoint, scan, exported, without_x64)
# For the attachment for both modes, at some cases. Its `vjp` and `jvp` are run at every case.
EVERYTHING = (eager, *PROMISES[1:], *TRANSFORMS, jacobians, hessians)
# What these test, both attachments have in common.
COMMON = {eager, finite_differences, without_x64, dtypes}


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


def compiled(function: Callable) -> Callable:
    return fast_jit(partial(_value_and_gradient, function))  # one compilation is faster than one for every operation


# Compiled once for all promises at a case, which are tested one after the other.


@lru_cache(maxsize=8)
def _rule(layers: Any, case: Case) -> Callable:
    """Of a cotangent and the arguments: value and gradient."""
    return compiled(case.bind(layers)[0])


@lru_cache(maxsize=8)
def _second(layers: Any, case: Case) -> Callable:
    """Of a cotangent of the gradient and the arguments: the gradient, and its gradient."""
    return compiled(partial(_gradient, case.bind(layers)[0], cotangent_at(case)))


def forget() -> None:
    """Drops the compiled programs: call it after a layer was changed."""
    _rule.cache_clear()
    _second.cache_clear()


def cotangent_of(function: Callable, args: tuple[Any, ...]) -> Any:
    return random_like(jax.eval_shape(function, *args), 1)


@lru_cache(maxsize=8)
def cotangent_at(case: Case) -> Any:
    """In float64, in the shapes of the reference's output, which is quickly traced."""
    return cotangent_of(*case.bind(ORACLE))


def _gradient(function: Callable, cotangent: Any, *args: jax.Array) -> Any:
    """Of ⟨cotangent, f⟩ + Σ log cosh f. So the backward's cotangent depends on the value, as with most losses."""
    value, pull_back = jax.vjp(function, *args)
    return pull_back(jax.tree.map(lambda v, c: jnp.tanh(v) + c, value, cotangent))


def _dot(a: Any, b: Any) -> jax.Array:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.stack([(x * y).sum() for x, y in pairs]).sum()


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a).astype(np.float64), tree)
