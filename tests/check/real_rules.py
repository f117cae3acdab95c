"""Rules that libraries ship, the idea of each in a few lines. `wrong` holds bugs that were found in them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.check.rules import Case, at, normal, positive, rule

REAL: list[Case] = []
REAL_WRONG: list[Case] = []
ONE = normal((4, 3))


def real(
    library: str, name: str, plain: Any, args: Any, *, table: list[Case] = REAL, misses: Any = (), **keywords: Any
):
    def register(make: Any) -> Any:
        table.append(Case(name, library, make, plain, args, keywords, misses))
        return make

    return register


@real("jax.nn", "relu", lambda x: jnp.maximum(x, 0), normal((4, 3)))
def _():
    f = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    f.defjvps(lambda t, ans, x: jnp.where(x > 0, t, jnp.zeros_like(t)))
    return f


@real("jax.nn", "softmax", lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True), ONE)
def _():
    f = jax.custom_jvp(lambda x: jax.nn.softmax(x))

    @f.defjvp
    def _(primals, tangents):
        y = f(*primals)
        return y, y * (tangents[0] - (y * tangents[0]).sum(-1, keepdims=True))

    return f


@real("jax.numpy", "sinc", lambda x: jnp.sin(x) / x, ONE)
def _():
    return lambda x: jnp.sinc(x / jnp.pi)


@real("jax.scipy", "xlogy", lambda x, y: x * jnp.log(y), positive((3,), (3,)))
def _():
    return jax.scipy.special.xlogy


@real("optax", "safe_norm", lambda x: jnp.sqrt((x * x).sum()), ONE)
def _():
    def safe(x):
        n = jnp.sqrt((x * x).sum())
        return jnp.where(n <= 1e-3, 1e-3, jnp.sqrt((jnp.where(n <= 1e-3, 1.0, x) ** 2).sum()))

    return safe


@real(
    "optax",
    "cross entropy",
    lambda z, i: -jnp.take_along_axis(jax.nn.log_softmax(z), i[:, None], 1)[:, 0],
    at(np.linspace(-1, 1, 12).reshape(3, 4), np.array([0, 3, 1])),
)
def _():
    return lambda z, i: jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, i[:, None], 1)[:, 0]


def on_simplex(x):
    u = jnp.sort(x)[::-1]
    over = (jnp.cumsum(u) - 1) / jnp.arange(1, x.size + 1, dtype=x.dtype)
    return jnp.maximum(x - over[(u > over).sum() - 1], 0)


@real("jaxopt", "projection_simplex", on_simplex, at(np.array([0.3, 0.9, -0.5, 0.4])))
def _():
    f = jax.custom_jvp(on_simplex)

    @f.defjvp
    def _(primals, tangents):
        p, (t,) = f(*primals), tangents
        support = (p > 0).astype(t.dtype)
        return p, support * t - support * (support * t).sum() / support.sum()

    return f


@real("lineax", "two_norm", lambda x: jnp.sqrt((x * x).sum()), ONE)
def _():
    f = jax.custom_jvp(lambda x: jnp.sqrt((x * x).sum()))

    @f.defjvp
    def _(primals, tangents):
        y = f(*primals)
        return y, (primals[0] * tangents[0]).sum() / jnp.where(y == 0, 1, y)

    return f


@real("e3nn", "normalized vectors", lambda x: x / jnp.sqrt((x * x).sum(-1, keepdims=True)), ONE)
def _():
    def forward(x):
        return x / jnp.sqrt((x * x).sum(-1, keepdims=True))

    def bwd(res, ct):
        n = jnp.sqrt((res[0] ** 2).sum(-1, keepdims=True))
        u = res[0] / n
        return ((ct - u * (u * ct).sum(-1, keepdims=True)) / n,)

    return rule(forward, bwd)


@real("numpyro", "log of a sum of a pair", lambda a, b: jnp.log(jnp.exp(a) + jnp.exp(b)), normal((3,), (3,)))
def _():
    f = jax.custom_jvp(jnp.logaddexp)
    f.defjvp(lambda p, t: (jnp.logaddexp(*p), jax.nn.sigmoid(p[0] - p[1]) * t[0] + jax.nn.sigmoid(p[1] - p[0]) * t[1]))
    return f


@real(
    "distrax",
    "lower triangle solve",
    lambda a, b: jnp.linalg.solve(jnp.tril(a) + 3 * jnp.eye(3, dtype=a.dtype), b),
    normal((3, 3), (3,)),
)
def _():
    def forward(a, b):
        return jax.scipy.linalg.solve_triangular(jnp.tril(a) + 3 * jnp.eye(3, dtype=a.dtype), b, lower=True)

    def bwd(res, ct):
        a, b = res
        full = jnp.tril(a) + 3 * jnp.eye(3, dtype=a.dtype)
        db = jax.scipy.linalg.solve_triangular(full, ct, lower=True, trans=1)
        return -jnp.tril(db[:, None] * forward(a, b)[None]), db

    return rule(forward, bwd)


@real("optimistix", "implicit root", lambda x: jnp.cbrt(x), positive((3,)))
def _():
    def forward(x):
        step = lambda i, y: y - (y**3 - x) / (3 * y**2)  # noqa: E731
        return jax.lax.fori_loop(0, 12, step, jnp.ones_like(x))

    f = jax.custom_vjp(forward)
    f.defvjp(lambda x: (forward(x),) * 2, lambda y, ct: (ct / (3 * y**2),))
    return f


@real("jax.lax", "custom_root", lambda x: jnp.cbrt(x), positive((3,)))
def _():
    def solve(f, y):
        return jax.lax.fori_loop(0, 12, lambda i, y: y - f(y) / (3 * y**2), y)

    def cube_root(x):
        linear = lambda g, y: y / g(jnp.ones_like(y))  # noqa: E731
        return jax.lax.custom_root(lambda y: y**3 - x, jnp.ones_like(x), solve, linear)

    return cube_root


@real("equinox", "filter_custom_vjp with perturbed", lambda x, w: x @ w, normal((3, 3), (3, 3)))
def _():
    f = jax.custom_vjp(lambda x, w: x @ w)
    f.defvjp(
        lambda x, w: (x.value @ w.value, (x.value, w.value, x.perturbed, w.perturbed)),
        lambda r, ct: (ct @ r[1].T if r[2] else None, r[0].T @ ct if r[3] else None),
        symbolic_zeros=True,
    )
    return f


@real("rlax", "clip_gradient", lambda x: x * 1, ONE, expected="clipped")
def _():
    return rule(lambda x: x * 1, lambda r, ct: (jnp.clip(ct, -0.5, 0.5),))


@real(
    "flax", "a quantizer's straight-through estimator", lambda x: jnp.round(8 * x) / 8, ONE, expected="straight-through"
)
def _():
    return rule(lambda x: jnp.round(8 * x) / 8, lambda r, ct: (ct,))


@real("ott", "norm at 0: 1.73 for 0", lambda x: jnp.sqrt((x * x).sum()) ** 2, at(np.zeros(3)), table=REAL_WRONG)
def _():
    return rule(lambda x: (x * x).sum(), lambda r, ct: (ct * jnp.where((r[0] != 0).any(), 2 * r[0], 1.73 / 3**0.5),))


@real(
    "ott", "softmin: its temperature", lambda x, t: -t * jax.nn.logsumexp(-x / t), positive((5,), ()), table=REAL_WRONG
)
def _():
    f = jax.custom_jvp(lambda x, t: -t * jax.nn.logsumexp(-x / t))
    f.defjvp(lambda p, t: (f(*p), (jax.nn.softmax(-p[0] / p[1]) * t[0]).sum()))
    return f
