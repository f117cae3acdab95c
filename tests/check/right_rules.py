"""Rules that are right, at points or of kinds that are hard to check. The checker must fail none."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tests.check.rules import Case, at, normal, positive, rule

RIGHT: list[Case] = []
ONE = normal((4, 3))


def hard(name: str, how: str, plain: Any, args: Any, bwd: Any = None, *, misses: Any = (), **keywords: Any):
    """A row whose rule is `plain` with this backward, or `plain` itself."""
    RIGHT.append(Case(name, how, (lambda: rule(plain, bwd)) if bwd else lambda: plain, plain, args, keywords, misses))


def made(name: str, how: str, plain: Any, args: Any, *, misses: Any = (), **keywords: Any):
    """A row whose rule is made by the decorated function."""

    def register(make: Any) -> Any:
        RIGHT.append(Case(name, how, make, plain, args, keywords, misses))
        return make

    return register


# Steps: elements of many sizes, edges of a domain

WIDE = at(np.array([1e-6, 0.3, 0.7]))
hard("log-wide", "steps of the largest element leave the domain", jnp.log, WIDE, lambda r, ct: (ct / r[0],))
hard("entropy", "as log", lambda p: -(p * jnp.log(p)).sum(), WIDE, lambda r, ct: (-ct * (1 + jnp.log(r[0])),))


def log1mexp(x):
    return jnp.log(-jnp.expm1(-x))


hard("log1mexp", "as log", log1mexp, WIDE, lambda r, ct: (ct / jnp.expm1(r[0]),))
hard(
    "logit",
    "a domain with two edges",
    jax.scipy.special.logit,
    at(np.array([1e-4, 0.5, 0.999])),
    lambda r, ct: (ct / (r[0] * (1 - r[0])),),
)
hard(
    "reciprocal",
    "coarse steps cross a pole",
    lambda x: 1 / x,
    at(np.array([1e-5, 1.0, -2.0])),
    lambda r, ct: (-ct / r[0] ** 2,),
)
hard(
    "power-small",
    "x^0.3 at 1e-8",
    lambda x: x**0.3,
    at(np.array([1e-8, 1.0])),
    lambda r, ct: (0.3 * ct * r[0] ** -0.7,),
)
hard("log-tiny", "second derivatives beyond float32", jnp.log, at(np.array([1e-20, 0.7])), lambda r, ct: (ct / r[0],))
hard("log-negative", "NaN as a value", jnp.log, at(np.array([-1.0, 2.0])), lambda r, ct: (ct / r[0],))
hard("arctanh", "the end of a domain", jnp.arctanh, at(np.array([1.0, 0.5])), lambda r, ct: (ct / (1 - r[0] ** 2),))
hard("log-zero", "an infinite value and slope", jnp.log, at(np.array([0.0, 1.0])))
hard("sqrt-zero", "an infinite slope", jnp.sqrt, at(np.array([0.0, 1.0, 4.0])))
hard("huge", "arguments of 1e10", lambda x: x * x, normal((4,), scale=1e10), lambda r, ct: (2 * ct * r[0],))
hard("tiny", "arguments of 1e-10", lambda x: jnp.sin(x), normal((4,), scale=1e-10), lambda r, ct: (ct * jnp.cos(r[0]),))
hard(
    "quick",
    "a period far below the argument",
    lambda x: jnp.sin(100 * x),
    ONE,
    lambda r, ct: (100 * ct * jnp.cos(100 * r[0]),),
)
hard(
    "mixed-sizes",
    "1e-4 and 1e4 in one array",
    lambda x: x * x,
    at(np.array([1e-4, 1.0, 1e4])),
    lambda r, ct: (2 * ct * r[0],),
)
hard(
    "offset",
    "a small function on a large constant",
    lambda x: 1e3 + jnp.sin(x),
    ONE,
    lambda r, ct: (ct * jnp.cos(r[0]),),
)
hard(
    "many",
    "more elements than are differenced one by one",
    jnp.tanh,
    normal((40, 30)),
    lambda r, ct: (ct * (1 - jnp.tanh(r[0]) ** 2),),
)

# The reference's autodiff is wrong


def xlogx(x):
    return jnp.where(x == 0, 0, x * jnp.log(x))


def xlogy(x, y):
    return jnp.where(x == 0, 0, x * jnp.log(y))


hard(
    "xlogy-zero",
    "autodiff of a where loses the slope at 0",
    xlogy,
    at(np.array([0.0, 1.0]), np.array([2.0, 3.0])),
    lambda r, ct: (ct * jnp.log(r[1]), ct * r[0] / r[1]),
)


def sinc(x):
    return jnp.where(x == 0, 1, jnp.sin(x) / jnp.where(x == 0, 1, x))


def sinc_unguarded(x):
    return jnp.where(x == 0, 1, jnp.sin(x) / x)


def sinc_bwd(res, ct):
    (x,) = res
    small = jnp.abs(x) < 1e-3
    y = jnp.where(small, 1, x)
    return (ct * jnp.where(small, -x / 3 + x**3 / 30, (y * jnp.cos(y) - jnp.sin(y)) / y**2),)


@made("sinc-zero", "autodiff gives NaN through the branch not taken", sinc_unguarded, at(np.array([0.0, 1.0, 2.0])))
def _():
    return rule(sinc, sinc_bwd)


@made(
    "where-sqrt",
    "autodiff gives NaN through the branch not taken",
    lambda x: jnp.where(x > 0, jnp.sqrt(x), 0),
    at(np.array([-1.0, 4.0, 1.0])),
)
def _():
    def forward(x):
        return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)

    return rule(forward, lambda r, ct: (jnp.where(r[0] > 0, ct / 2 / jnp.sqrt(jnp.where(r[0] > 0, r[0], 1)), 0),))


def product_by_logs(x):
    return jnp.exp(jnp.log(jnp.abs(x)).sum()) * jnp.prod(jnp.sign(x))


@made("product-zero", "autodiff gives NaN in every element", product_by_logs, at(np.array([0.0, 1.5, -2.0])))
def _():
    return rule(
        lambda x: jnp.prod(x),
        lambda r, ct: (ct * jnp.stack([r[0][1] * r[0][2], r[0][0] * r[0][2], r[0][0] * r[0][1]]),),
    )


# Kinks

KINKED = at(np.array([-1.0, 0.0, 2.0, 0.0]))
hard("abs", "a kink", jnp.abs, KINKED, lambda r, ct: (ct * jnp.sign(r[0]),))
hard("relu", "the slope 0 at the kink", jax.nn.relu, KINKED, lambda r, ct: (jnp.where(r[0] > 0, ct, 0),))
hard(
    "ties",
    "one of two equal elements takes all",
    lambda x: x.max(-1),
    at(np.array([[2.0, 2.0, 1.0], [3.0, -1.0, 3.0]])),
    lambda r, ct: (jax.nn.one_hot(r[0].argmax(-1), 3, dtype=ct.dtype) * ct[:, None],),
)
hard(
    "clip",
    "two edges",
    lambda x: jnp.clip(x, -1, 1),
    at(np.array([-1.0, 1.0, 0.3])),
    lambda r, ct: (jnp.where(jnp.abs(r[0]) < 1, ct, 0),),
)


def huber(x):
    return jnp.where(jnp.abs(x) < 1, x * x / 2, jnp.abs(x) - 0.5)


hard(
    "huber",
    "a jump of the second derivative",
    huber,
    at(np.array([-1.0, 1.0, 0.3])),
    lambda r, ct: (ct * jnp.clip(r[0], -1, 1),),
)
hard(
    "norm-zero",
    "the slope 0 at the tip of a cone",
    lambda x: jnp.sqrt((x * x).sum()),
    at(np.zeros(3)),
    lambda r, ct: (jnp.zeros_like(r[0]),),
)
hard("floor", "zeros are right", jnp.floor, at(np.array([0.3, 1.7, -2.2])), lambda r, ct: (0 * ct,))

# Mixed precision


def tanh32(x):
    return jnp.tanh(x.astype(jnp.float32)).astype(x.dtype)


hard("cast", "a float32 cast", tanh32, ONE, lambda r, ct: (ct * (1 - jnp.tanh(r[0]) ** 2),))


def rms(x, gamma):
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5)).astype(x.dtype) * gamma[None]


hard("rms-norm", "statistics in float32", rms, normal((4, 6), (6,)))


def rms_bwd(res, ct):
    x, gamma = res
    y, g = x.astype(jnp.float32), (ct * gamma[None]).astype(jnp.float32)
    r = jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    dx = r * (g - y * r * (g * y * r).mean(-1, keepdims=True))
    return dx.astype(x.dtype), (ct * (y * r).astype(ct.dtype)).sum(0).astype(gamma.dtype)


hard("rms-norm-rule", "statistics and gradients in float32", rms, normal((4, 6), (6,)), rms_bwd)


def product_in_half(x, w):
    return (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(x.dtype)


hard(
    "half-inside",
    "a product in bfloat16: slopes of f cannot be measured",
    product_in_half,
    normal((4, 6), (6, 3)),
    lambda r, ct: (product_in_half(ct, r[1].T), product_in_half(r[0].T, ct)),
)


@made(
    "bfloat16",
    "a bfloat16 argument, statistics in float32",
    rms,
    lambda dtype: tuple(a.astype(jnp.bfloat16) for a in normal((4, 6), (6,))(dtype)),
)
def _():
    return rule(rms, rms_bwd)


# What JAX cannot do


@made("callback", "no second derivative, no forward mode", jnp.tanh, ONE)
def _():
    def call(f, *args):
        return jax.pure_callback(
            f, jax.ShapeDtypeStruct(args[0].shape, args[0].dtype), *args, vmap_method="expand_dims"
        )

    forward = partial(call, np.tanh)
    return rule(forward, lambda r, ct: (call(lambda x, c: c * (1 - np.tanh(x) ** 2), r[0], ct),))


@made("nested", "a rule within a rule", lambda x: jnp.sin(x) ** 2, ONE)
def _():
    sine = rule(jnp.sin, lambda r, ct: (ct * jnp.cos(r[0]),))
    return rule(lambda x: sine(x) ** 2, lambda r, ct: (2 * ct * sine(r[0]) * jnp.cos(r[0]),))


@made("iteration", "Newton's method in a while loop, differentiated implicitly", jnp.sqrt, positive((3,)))
def _():
    def root(x):
        return jax.lax.while_loop(lambda s: (jnp.abs(s * s - x) > 1e-6 * x).any(), lambda s: (s + x / s) / 2, x)

    def root_exactly(x):
        s = root(x)
        return (s + x / s) / 2

    f = jax.custom_vjp(root_exactly)
    f.defvjp(lambda x: (root_exactly(x),) * 2, lambda s, ct: (ct / (2 * s),))
    return f


@made(
    "conjugate-gradients",
    "no hessian in jax",
    lambda a, b: jnp.linalg.solve(a @ a.T + jnp.eye(3, dtype=a.dtype), b),
    normal((3, 3), (3,)),
    tolerances={"linearity": 1e-4},
)
def _():
    return lambda a, b: jax.scipy.sparse.linalg.cg(lambda v: a @ (a.T @ v) + v, b, tol=1e-12)[0]


def series(x):
    """Σ xᵏ/k!, until a term is small: a loop that never ends where x is huge."""
    return jax.lax.while_loop(
        lambda s: (jnp.abs(s[1]) > 1e-8).any(),
        lambda s: (s[0] + s[1], s[1] * x / s[2], s[2] + 1),
        (0 * x, 0 * x + 1, 1.0),
    )[0]


@made("series", "a reference without a gradient; a loop that may not end", series, ONE)
def _():
    return rule(series, lambda r, ct: (ct * jnp.exp(r[0]),))


HILBERT = 1 / (np.arange(5)[:, None] + np.arange(5) + 1.0)
hard("hilbert", "an ill-conditioned solve", jnp.linalg.solve, at(HILBERT, np.ones(5)))


def solve_bwd(res, ct):
    a, b = res
    db = jnp.linalg.solve(a.T, ct)
    return -db[:, None] * jnp.linalg.solve(a, b)[None], db


hard("hilbert-rule", "an ill-conditioned solve", jnp.linalg.solve, at(HILBERT, np.ones(5)), solve_bwd)


@made("picky", "raises for arguments outside of its range", lambda x: x**2, ONE)
def _():
    def forward(x):
        if not isinstance(x, Tracer) and float(jnp.abs(x).max()) > 1e6:
            raise ValueError("x is out of range")
        return x**2

    return rule(forward, lambda r, ct: (2 * r[0] * ct,))


@made("donated", "its arguments are donated", lambda x, w: jnp.tanh(x * w), normal((3,), (3,)))
def _():
    f = rule(
        lambda x, w: jnp.tanh(x * w),
        lambda r, ct: (ct * r[1] * (1 - jnp.tanh(r[0] * r[1]) ** 2), ct * r[0] * (1 - jnp.tanh(r[0] * r[1]) ** 2)),
    )
    return jax.jit(f, donate_argnums=0)


hard(
    "python-gradient",
    "a backward that returns a Python number",
    lambda x, s: x * 3 + 0 * s,
    at(np.array([1.0, 2.0]), np.array(1.0)),
    lambda r, ct: (3 * ct, 0.0),
)
hard(
    "python-integer",
    "a backward that returns the Python number 0",
    lambda x, s: x * 3 + 0 * s,
    at(np.array([1.0, 2.0]), np.array(1.0)),
    lambda r, ct: (3 * ct, 0),
)
hard(
    "python-number",
    "an argument that is a Python number",
    lambda x, s: x * s,
    lambda dtype: (*ONE(dtype), 1.5),
    lambda r, ct: (ct * r[1], (ct * r[0]).sum()),
)
hard(
    "python-list",
    "a list of Python numbers",
    lambda p: p[0] ** 2 * p[1],
    lambda _: ([1.5, 2.0],),
    lambda r, ct: ([2 * ct * r[0][0] * r[0][1], ct * r[0][0] ** 2],),
)


@made(
    "static-number",
    "a Python number that must stay one",
    lambda x, power: x**power,
    lambda dtype: (*positive((3,))(dtype), 2.0),
)
def _():
    f = jax.custom_vjp(lambda x, power: x**power, nondiff_argnums=(1,))
    f.defvjp(lambda x, power: (x**power, x), lambda power, x, ct: (ct * power * x ** (power - 1),))
    return f


# Roundings


def norm(x):
    return (x - x.mean(0)[None]) / jnp.sqrt(x.var(0) + 1e-5)[None]


hard(
    "vanishing-bias",
    "a bias before batch norm: its gradient is rounding",
    lambda x, b: norm(x + b[None]),
    normal((5, 3), (3,)),
)
hard(
    "vanishing-alone",
    "the same, with nothing beside it",
    lambda b: jax.nn.softmax(jnp.arange(4, dtype=b.dtype) / 3 + b),
    normal(()),
)
hard(
    "norm-of-norm",
    "a gradient a thousandth of what cancels in it",
    lambda x, g: norm(norm(x) * g[None]),
    normal((6, 3), (3,)),
)
hard("variance", "x far from zero", lambda x: x.var(0), normal((6, 3), shift=30.0))
hard("logsumexp", "exp of hundreds", lambda x: jax.nn.logsumexp(x), at(np.array([100.0, 300.0, 301.0])))
hard(
    "inf-logits",
    "−∞ for what is masked",
    lambda x: jax.nn.softmax(jnp.where(jnp.arange(3) < 2, x, -jnp.inf)),
    normal((3,)),
)
hard(
    "small-gradients",
    "elements of 1e-9 beside 1, right",
    lambda x: x * jnp.asarray([1, 1e-9, 1], x.dtype),
    normal((3,)),
)
hard("cumprod-zero", "a factor of zero", jnp.cumprod, at(np.array([2.0, 0.0, 3.0, 1.5])))
hard("eigenvalues", "LAPACK within", lambda a: jnp.linalg.eigvalsh(a + a.T), normal((3, 3)))
hard(
    "logdet",
    "a Cholesky factor within",
    lambda a: jnp.log(jnp.diagonal(jnp.linalg.cholesky(a @ a.T + jnp.eye(3, dtype=a.dtype)))).sum(),
    normal((3, 3)),
)
hard("scan", "a loop within", lambda x: jax.lax.scan(lambda c, a: (jnp.tanh(c + a), c * a), x[0], x)[1], normal((4, 2)))
hard("cond", "a branch within", lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), normal((3,)))
hard("remat", "a checkpoint within", jax.checkpoint(lambda x: jnp.sin(jnp.tanh(x))), ONE)
hard(
    "complex",
    "holomorphic, not conjugated",
    lambda z: z * z,
    lambda dtype: (jax.lax.complex(*normal((3,), (3,))(dtype)),),
    lambda r, ct: (2 * r[0] * ct,),
)
hard("empty", "an empty array beside others", lambda x, e: x.sum() + e.sum(), normal((3,), (0,)))
hard(
    "embedding",
    "integer arguments",
    lambda t, i: t[i],
    at(np.arange(6.0).reshape(3, 2), np.array([0, 2, 0])),
    lambda r, ct: (jnp.zeros_like(r[0]).at[r[1]].add(ct), None),
)
hard(
    "labels",
    "argnums: the labels get no gradient by design",
    lambda z, y: -(y * jax.nn.log_softmax(z)).sum(-1),
    normal((3, 4), (3, 4)),
    lambda r, ct: (ct[:, None] * (jax.nn.softmax(r[0]) * r[1].sum(-1, keepdims=True) - r[1]), jnp.zeros_like(r[1])),
    argnums=0,
)


@made("symbolic", "symbolic zeros, heeded", lambda x, w: jnp.tanh(x * w), normal((3,), (3,)))
def _():
    f = jax.custom_vjp(lambda x, w: jnp.tanh(x * w))

    def fwd(x, w):
        y = jnp.tanh(x.value * w.value)
        return y, (x.value if w.perturbed else None, w.value if x.perturbed else None, y)

    def bwd(res, ct):
        x, w, y = res
        s = ct * (1 - y * y)
        return None if w is None else s * w, None if x is None else s * x

    f.defvjp(fwd, bwd, symbolic_zeros=True)
    return f


# Not gradients, on purpose

hard("reversed", "a gradient reversal layer", lambda x: x * 2, ONE, lambda r, ct: (-2 * ct,), expected="scaled")
hard(
    "scaled",
    "a loss scale within",
    lambda x: jnp.tanh(x),
    ONE,
    lambda r, ct: (128 * ct * (1 - jnp.tanh(r[0]) ** 2),),
    expected="scaled",
)
hard(
    "straight-through",
    "rounding that passes the cotangent on",
    lambda x: jnp.round(x),
    normal((5,), scale=3.0),
    lambda r, ct: (ct,),
    expected="straight-through",
)
hard(
    "clipped", "a clipped gradient", lambda x: 3 * x, ONE, lambda r, ct: (jnp.clip(3 * ct, -1, 1),), expected="clipped"
)
