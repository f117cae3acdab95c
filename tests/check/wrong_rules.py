"""Rules that are wrong in the ways people get them wrong. The checker must fail each one."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tests.check.rules import Case, at, normal, positive, rule

WRONG: list[Case] = []
SMALL = normal((3, 3), (3, 3))


def wrong(
    name: str, how: str, plain: Any, bwd: Any, args: Any = SMALL, *, fwd: Any = None, misses: Any = (), **keywords: Any
):
    """A row whose rule is `plain` with this backward."""
    WRONG.append(Case(name, how, lambda: rule(plain, bwd, fwd), plain, args, keywords, misses))


def made(name: str, how: str, plain: Any, args: Any = SMALL, *, misses: Any = (), **keywords: Any):
    """A row whose rule is made by the decorated function."""

    def register(make: Any) -> Any:
        WRONG.append(Case(name, how, make, plain, args, keywords, misses))
        return make

    return register


# Formulas


def product(x, w):
    return jnp.tanh(x * w)


def slope(x, w):
    return 1 - jnp.tanh(x * w) ** 2


def right(res, ct):
    x, w = res
    return ct * w * slope(x, w), ct * x * slope(x, w)


def spoiled(spoil):
    """The right backward, then `spoil(dx, dw, x, w, ct)`."""
    return lambda res, ct: spoil(*right(res, ct), *res, ct)


wrong("sign", "a minus lost on paper", product, spoiled(lambda dx, dw, *_: (dx, -dw)))
wrong("factor", "the other factor forgotten", product, lambda res, ct: (ct * slope(*res), right(res, ct)[1]))
wrong("swapped", "gradients returned in the wrong order", product, spoiled(lambda dx, dw, *_: (dw, dx)))
wrong("turned", "rows written back to front", product, spoiled(lambda dx, dw, *_: (dx[::-1], dw)))
wrong("transposed", "a square array transposed once too often", product, spoiled(lambda dx, dw, *_: (dx.T, dw)))
wrong("doubled", "a path counted twice", product, spoiled(lambda dx, dw, *_: (2 * dx, dw)))
wrong("no-gradient", "zeros returned until the derivation is done", product, spoiled(lambda dx, dw, *_: (dx, 0 * dw)))
wrong("upstream", "the cotangent forgotten", product, lambda res, ct: (res[1] * slope(*res), res[0] * slope(*res)))
wrong("one-element", "an off-by-one at the border", product, spoiled(lambda dx, dw, *_: (dx.at[0, 0].set(0), dw)))
wrong("nearly", "a constant typed with five digits", product, spoiled(lambda dx, dw, *_: (dx * 1.00003, dw)))

ONE = normal((4, 3))
wrong("tanh-z", "1 − z² in place of 1 − a²", jnp.tanh, lambda res, ct: (ct * (1 - res[0] ** 2),), ONE)
wrong("tanh-root", "a missing square", jnp.tanh, lambda res, ct: (ct * (1 - jnp.tanh(res[0])),), ONE)
sigmoid = jax.nn.sigmoid
wrong("sigmoid-half", "s in place of s(1 − s)", sigmoid, lambda res, ct: (ct * sigmoid(res[0]),), ONE)


def sigmoid_twice(res, ct):
    s = sigmoid(sigmoid(res[0]))
    return (ct * s * (1 - s),)


wrong("sigmoid-twice", "the activation passed where its input is wanted", sigmoid, sigmoid_twice, ONE)
softmax = partial(jax.nn.softmax, axis=-1)
wrong(
    "softmax-diagonal",
    "the Jacobian taken for diagonal, as with the sigmoid",
    softmax,
    lambda res, ct: (softmax(res[0]) * (1 - softmax(res[0])) * ct,),
    ONE,
)


def softmax_axis(res, ct):
    p = softmax(res[0])
    return (p * (ct - (p * ct).sum(0, keepdims=True)),)


wrong("softmax-axis", "the sum over the wrong axis", softmax, softmax_axis, ONE)
log_softmax = partial(jax.nn.log_softmax, axis=-1)
wrong("log-softmax", "the sum of the cotangents taken for 1", log_softmax, lambda r, ct: (ct - softmax(r[0]),), ONE)


def entropy(z, y):
    return -(y * log_softmax(z)).sum(-1)


def entropy_bwd(res, ct, upstream=True, total=True, labels=True, divide=1):
    z, y = res
    ct = ct[:, None] if upstream else jnp.ones_like(ct)[:, None]
    dz = softmax(z) * (y.sum(-1, keepdims=True) if total else 1) - y
    return ct * dz / divide, -ct * log_softmax(z) if labels else jnp.zeros_like(y)


wrong("ce-upstream", "softmax − y, the cotangent forgotten", entropy, partial(entropy_bwd, upstream=False))
wrong("ce-total", "labels taken to sum to 1", entropy, partial(entropy_bwd, total=False))
wrong("ce-labels", "labels taken for constants", entropy, partial(entropy_bwd, labels=False))
wrong("ce-mean", "divided by the batch, where the loss is not", entropy, partial(entropy_bwd, divide=3))


def dense(x, w, b):
    return x @ w + b[None]


def dense_bwd(res, ct, dx=None, dw=None, db=None):
    x, w, _b = res
    given = {"x": x, "w": w, "ct": ct}
    return (
        dx(**given) if dx else ct @ w.T,
        dw(**given) if dw else x.T @ ct,
        db(**given) if db else ct.sum(0),
    )


DENSE = normal((3, 3), (3, 3), (3,))
wrong("dense-dw", "a square product transposed", dense, partial(dense_bwd, dw=lambda x, w, ct: ct.T @ x), DENSE)
wrong("dense-dx", "the kernel not transposed", dense, partial(dense_bwd, dx=lambda x, w, ct: ct @ w), DENSE)
wrong("dense-mean", "a mean where a sum belongs", dense, partial(dense_bwd, db=lambda x, w, ct: ct.mean(0)), DENSE)
wrong("dense-axis", "the sum over the features", dense, partial(dense_bwd, db=lambda x, w, ct: ct.sum(1)), DENSE)


def norm(x, gamma, beta, eps=1e-3):
    return gamma[None] * (x - x.mean(0)[None]) / jnp.sqrt(x.var(0) + eps)[None] + beta[None]


def norm_bwd(res, ct, mean=True, var=True, eps=1e-3, ddof=0, power=0.5, swap=False):
    x, gamma, _beta = res
    inv = (x.var(0, ddof=ddof) + eps) ** -power
    hat = (x - x.mean(0)[None]) * inv[None]
    g = gamma[None] * ct
    dx = g - (g.mean(0)[None] if mean else 0) - (hat * (g * hat).mean(0)[None] if var else 0)
    others = (ct * hat).sum(0), ct.sum(0)
    return dx * inv[None], *(others[::-1] if swap else others)


NORM = normal((5, 3), (3,), (3,))
wrong("norm-mean", "the path through the mean left out", norm, partial(norm_bwd, mean=False), NORM)
wrong("norm-var", "the path through the variance left out", norm, partial(norm_bwd, var=False), NORM)
wrong("norm-constants", "mean and variance taken for constants", norm, partial(norm_bwd, mean=False, var=False), NORM)
wrong("norm-eps", "another ε in the backward", norm, partial(norm_bwd, eps=1e-2), NORM)
wrong("norm-ddof", "the unbiased variance in the backward", norm, partial(norm_bwd, ddof=1), NORM)
wrong("norm-root", "the variance without its root", norm, partial(norm_bwd, power=1), NORM)
wrong("norm-swapped", "gamma's gradient and beta's exchanged", norm, partial(norm_bwd, swap=True), NORM)


def relu_of(x, w):
    return jnp.where(x > 0, x * w, 0)


wrong(
    "relu-mask",
    "the mask of the wrong array",
    relu_of,
    lambda r, ct: (jnp.where(r[1] > 0, ct * r[1], 0), jnp.where(r[0] > 0, ct * r[0], 0)),
)
leaky = partial(jax.nn.leaky_relu, negative_slope=0.1)
wrong("leaky", "the negative side forgotten", leaky, lambda r, ct: (jnp.where(r[0] > 0, ct, 0),), ONE)


def top(x):
    return x.max(-1)


wrong(
    "max-argmin",
    "the index of another reduction",
    top,
    lambda r, ct: (jax.nn.one_hot(r[0].argmin(-1), 3) * ct[:, None],),
    ONE,
)


def pooled(x):
    return x.reshape(2, 2, 3).mean(1)


wrong("pool-undivided", "upsampled and not divided", pooled, lambda r, ct: (jnp.repeat(ct, 2, 0),), ONE)
wrong("pool-tiled", "tiled in place of repeated", pooled, lambda r, ct: (jnp.tile(ct, (2, 1)) / 2,), ONE)


def correlate(x, k):
    return jnp.correlate(x, k)


def correlate_bwd(res, ct, flip=False):
    x, k = res
    return jnp.correlate(jnp.pad(ct, 2), k) if flip else jnp.convolve(ct, k), jnp.correlate(x, ct)


SIGNAL = normal((7,), (3,))
wrong("conv-kernel", "the kernel not turned in the backward", correlate, partial(correlate_bwd, flip=True), SIGNAL)


def length(x):
    return jnp.sqrt((x * x).sum(-1))


wrong(
    "length",
    "divided by the square of the norm",
    length,
    lambda r, ct: (r[0] * (ct / length(r[0]) ** 2)[:, None],),
    ONE,
)
wrong(
    "logsumexp", "not normalized", partial(jax.nn.logsumexp, axis=-1), lambda r, ct: (jnp.exp(r[0]) * ct[:, None],), ONE
)
ROOT = positive((4, 3))
wrong("sqrt", "½√x in place of ½/√x", jnp.sqrt, lambda r, ct: (ct * jnp.sqrt(r[0]) / 2,), ROOT)
TWO = positive((4, 3), (4, 3))
wrong(
    "power", "x^y forgotten before its log", lambda x, y: x**y,
    lambda r, ct: (ct * r[1] * r[0] ** (r[1] - 1), ct * jnp.log(r[0])), TWO,
)  # fmt: skip
wrong("quotient", "a missing square", lambda x, y: x / y, lambda r, ct: (ct / r[1], -ct * r[0] / r[1]), TWO)
wrong(
    "atan2", "the arguments exchanged", jnp.arctan2,
    lambda r, ct: (-ct * r[0] / (r[0] ** 2 + r[1] ** 2), ct * r[1] / (r[0] ** 2 + r[1] ** 2)), TWO,
)  # fmt: skip


def inverse(a):
    return jnp.linalg.inv(a + 3 * jnp.eye(3, dtype=a.dtype))


wrong(
    "inverse",
    "−A⁻¹ c A⁻¹ without transposes",
    inverse,
    lambda r, ct: (-inverse(*r) @ ct @ inverse(*r),),
    normal((3, 3)),
)


def determinant(a):
    return jnp.linalg.det(a)


wrong(
    "determinant", "the gradient of its log", determinant, lambda r, ct: (ct * jnp.linalg.inv(r[0]).T,), normal((3, 3))
)
wrong("cumsum", "summed from the wrong end", partial(jnp.cumsum, axis=0), lambda r, ct: (jnp.cumsum(ct, 0),), ONE)
ROWS = at(np.arange(6.0).reshape(3, 2) / 3, np.array([0, 2, 0, 1]))
wrong(
    "embedding", "set where repeated rows must add", lambda t, i: t[i],
    lambda r, ct: (jnp.zeros_like(r[0]).at[r[1]].set(ct), None), ROWS,
)  # fmt: skip
wrong(
    "mean-axis",
    "divided by the number of columns",
    lambda x: x.mean(0),
    lambda r, ct: (jnp.ones_like(r[0]) * ct[None] / 3,),
    ONE,
)
wrong("sort", "the order not undone", jnp.sort, lambda r, ct: (ct,), normal((5,)))
wrong("softplus", "the sigmoid of −x", jax.nn.softplus, lambda r, ct: (ct * sigmoid(-r[0]),), ONE)
wrong("silu", "the product rule's second term", jax.nn.silu, lambda r, ct: (ct * sigmoid(r[0]),), ONE)


def huber(x):
    return jnp.where(jnp.abs(x) < 1, x * x / 2, jnp.abs(x) - 0.5)


wrong("huber", "the sign forgotten outside", huber, lambda r, ct: (ct * jnp.where(jnp.abs(r[0]) < 1, r[0], 1),), ONE)


def softmin(x, t):
    return -t * jax.nn.logsumexp(-x / t)


def softmin_bwd(res, ct):
    x, t = res
    return ct * softmax(-x / t), jnp.zeros_like(t)


wrong("temperature", "the temperature taken for a constant (ott-jax)", softmin, softmin_bwd, positive((5,), ()))
wrong(
    "pi",
    "π with six digits: 8e-7, which is 7 ulps in float32, fewer than right rules lose",
    lambda x: jnp.sin(jnp.pi * x),
    lambda r, ct: (ct * 3.14159 * jnp.cos(jnp.pi * r[0]),),
    ONE,
    misses=("float32",),
)


def square(z):
    return z * z


def complex_args(dtype):
    x, y = normal((3, 2), (3, 2))(dtype)
    return (jax.lax.complex(x, y),)


wrong(
    "conjugate",
    "a conjugate too many: JAX does not conjugate",
    square,
    lambda r, ct: (2 * r[0].conj() * ct,),
    complex_args,
)


# Not linear in the cotangent


def scaled(x):
    return 17 * x


for name, how, bent in (
    ("clip-17", "the cotangent clipped", lambda c: 17 * jnp.clip(c, -0.5, 0.5)),
    ("sign-of-ct", "signSGD within a rule", jnp.sign),
    ("ct-abs", "squared, with its sign", lambda c: 17 * c * jnp.abs(c)),
    ("ct-normalized", "gradients normalized within a rule", lambda c: c / jnp.sqrt((c * c).sum())),
    ("clip-gradient", "the gradient clipped to ±1", lambda c: jnp.clip(17 * c, -1, 1)),
    ("clip-norm", "the gradient clipped to norm 1", lambda c: 17 * c / jnp.maximum(1, 17 * jnp.sqrt((c * c).sum()))),
    ("deconvnet", "negative cotangents dropped", lambda c: 17 * jnp.maximum(c, 0)),
    ("top-k", "all but the largest dropped", lambda c: jnp.where(jnp.abs(c) < jnp.abs(c).max() / 2, 0, 17 * c)),
    ("weight-decay", "a constant added", lambda c: 17 * c + 0.01),
    ("small-dropped", "what is small dropped", lambda c: jnp.where(jnp.abs(c) < 0.2, 0, 17 * c)),
    ("rounded-ct", "the cotangent cast to bfloat16", lambda c: 17 * c.astype(jnp.bfloat16).astype(c.dtype)),
    ("soft-sign", "tanh of the cotangent", lambda c: 17 * jnp.tanh(c)),
    ("ct-over-ct", "0/0 where the cotangent is zero", lambda c: 17 * c * (c / c)),
    ("clip-far", "clipped at what a test never reaches", lambda c: 17 * jnp.clip(c, -1e3, 1e3)),
    ("drop-tiny", "what is taken for noise dropped", lambda c: jnp.where(jnp.abs(c) < 1e-4, 0, 17 * c)),
    ("slightly-quadratic", "a term of second order", lambda c: 17 * c + 1e-6 * c * c),
    ("ct-jump", "wrong for large cotangents alone", lambda c: 17 * jnp.where(jnp.abs(c) > 1, 1.01 * c, c)),
):
    wrong(name, how, scaled, lambda res, ct, bent=bent: (bent(ct),), ONE)


@made("odd-homogeneous", "c|c|/‖c‖: exact under doubling and sign", scaled, ONE)
def _():
    return rule(scaled, lambda _, ct: (17 * ct * jnp.abs(ct) / jnp.sqrt((ct * ct).mean()),))


# State


@made("stale", "the forward keeps what the backward should be given", product)
def _():
    kept = {}

    def fwd(x, w):
        kept["residuals"] = x, w
        return product(x, w), None

    return rule(product, lambda _, ct: right(kept["residuals"], ct), fwd)


@made("remembered", "a slope kept from the first call, by shape", product)
def _():
    kept = {}

    def bwd(res, ct):
        x, w = res
        if isinstance(x, Tracer) and x.shape not in kept:
            return right(res, ct)
        s = kept.setdefault(x.shape, slope(x, w) if x.shape not in kept else None)
        s = s.astype(ct.dtype)
        return ct * w * s, ct * x * s

    return rule(product, bwd)


@made("wobble", "a counter within the rule", product)
def _():
    calls = itertools.count()

    def bwd(res, ct):
        wobble = 1 + 1e-6 * next(calls)
        return tuple(g * jnp.asarray(wobble, g.dtype) for g in right(res, ct))

    return rule(product, bwd)


@made("noise", "NumPy's random numbers within a rule", product)
def _():
    rng = np.random.default_rng(0)
    return rule(
        product,
        lambda r, ct: tuple(g * jnp.asarray(1 + 1e-3 * rng.standard_normal(g.shape), g.dtype) for g in right(r, ct)),
    )


# Transforms


def shifted(x, b):
    return x + b[None]


SHIFTED = normal((3, 3), (3,))


@made("vmap-callback", "a callback that takes the first axis for the batch", shifted, SHIFTED)
def _():
    def bwd(_, ct):
        shape = jax.ShapeDtypeStruct(ct.shape[1:], ct.dtype)
        return ct, jax.pure_callback(lambda c: np.asarray(c).sum(0), shape, ct, vmap_method="expand_dims")

    return rule(shifted, bwd)


@made("batching-rule", "a batching rule that sums the mapped axis", shifted, SHIFTED)
def _():
    @jax.custom_batching.custom_vmap
    def total(ct):
        return ct.sum(0)

    @total.def_vmap
    def _(axis_size, in_batched, ct):
        return ct.sum(0), True

    return rule(shifted, lambda _, ct: (ct, total(ct)))


wrong(
    "concrete", "a Python `if` on the cotangent", product,
    lambda r, ct: right(r, ct) if float(abs(ct).sum()) else (0 * ct, 0 * ct),
)  # fmt: skip
wrong("numpy", "NumPy in the backward", product, lambda r, ct: tuple(jnp.asarray(np.asarray(g)) for g in right(r, ct)))


def stopped_fwd(x, w):
    return product(x, w), (x, w, jax.lax.stop_gradient(slope(x, w)))


wrong(
    "second-order",
    "a residual under stop_gradient",
    product,
    lambda r, ct: (ct * r[1] * r[2], ct * r[0] * r[2]),
    fwd=stopped_fwd,
)
wrong("other-primal", "fwd returns something else", product, right, fwd=lambda x, w: (1.5 * product(x, w), (x, w)))


@made("jvp", "a tangent of a custom_jvp doubled", product)
def _():
    f = jax.custom_jvp(product)
    f.defjvp(lambda p, t: (product(*p), (t[0] * p[1] + 2 * t[1] * p[0]) * slope(*p)))
    return f


# Structure, and which arguments are differentiated

wrong("dtype", "a gradient in another dtype", product, spoiled(lambda dx, dw, *_: (dx, dw.astype(jnp.bfloat16))))
wrong("shape", "a gradient that broadcasts", product, lambda r, ct: (ct.sum(), ct))
wrong("arity", "a gradient too few", product, lambda r, ct: (ct,))
wrong("raises", "a name misspelt in the backward", product, lambda r, ct: r.x)
wrong("other-value", "the forward itself mistaken", product, right, fwd=lambda x, w: (product(x, w + 0.01), (x, w)))

LABELLED = at(np.linspace(-1.0, 1.0, 6).reshape(3, 2), np.array([[1, 2], [3, 4], [5, 6]]))
wrong(
    "integer", "a gradient for an integer argument, which JAX drops", lambda x, n: x * n.astype(x.dtype),
    lambda r, ct: (ct * r[1].astype(ct.dtype), ct * r[0]), LABELLED,
)  # fmt: skip


def symbolic(spoil):
    """A rule with symbolic zeros, spoiled for certain sets of differentiated arguments."""

    def make():
        f = jax.custom_vjp(product)

        def fwd(x, w):
            return product(x.value, w.value), (x.value, w.value, x.perturbed, w.perturbed)

        def bwd(res, ct):
            *args, x, w = res
            dx, dw = right(args, ct)
            return spoil(dx, dw, x, w)

        f.defvjp(fwd, bwd, symbolic_zeros=True)
        return f

    return make


for name, how, spoil in (
    ("perturbed-one", "wrong if one argument alone is differentiated", lambda dx, dw, x, w: (dx, dw if x else 0 * dw)),
    ("perturbed-other", "halved unless both are", lambda dx, dw, x, w: (dx if w else dx / 2, dw)),
):
    WRONG.append(Case(name, how, symbolic(spoil), product, SMALL))


@made("zero-output", "an output without a cotangent", lambda x, w: (x * w, jnp.tanh(x)), SMALL)
def _():
    f = jax.custom_vjp(lambda x, w: (x * w, jnp.tanh(x)))

    def fwd(x, w):
        return (x.value * w.value, jnp.tanh(x.value)), (x.value, w.value)

    def bwd(res, cts):
        x, w = res
        zero = [isinstance(c, jax.custom_derivatives.SymbolicZero) for c in cts]
        c, d = (jnp.zeros_like(x) if z else c for c, z in zip(cts, zero, strict=True))
        return c * w + d * (1 - jnp.tanh(x) ** 2), c * x * (2 if zero[1] else 1)

    f.defvjp(fwd, bwd, symbolic_zeros=True)
    return f


wrong(
    "python-number",
    "a function of one Python number",
    lambda x: x**3,
    lambda r, ct: (2 * r[0] ** 2 * ct,),
    lambda _: (1.5,),
)
wrong(
    "python-list", "a list of Python numbers", lambda p: p[0] ** 2 * p[1],
    lambda r, ct: ([ct * r[0][0] * r[0][1], ct * r[0][0] ** 2],), lambda _: ([1.5, 2.0],),
)  # fmt: skip
WRONG.append(
    Case("no-arguments", "a closure: nothing is differentiated", lambda: lambda: jnp.ones(3), lambda: jnp.ones(3), at())
)

# Numbers


def in_float32(x):
    return jnp.tanh(x.astype(jnp.float32)).astype(x.dtype)


wrong(
    "cast-3-percent",
    "3 % off below the noise of a cast",
    in_float32,
    lambda r, ct: (1.03 * ct * (1 - jnp.tanh(r[0]) ** 2),),
    ONE,
)


def in_bfloat16(x):
    return jnp.tanh(x.astype(jnp.bfloat16)).astype(x.dtype)


wrong(
    "half-3-percent",
    "3 % off below the noise of bfloat16",
    in_bfloat16,
    lambda r, ct: (1.03 * ct * (1 - jnp.tanh(r[0]) ** 2),),
    ONE,
)


def steep(x):
    return x * jnp.asarray([1, 1e-9, 1], x.dtype)


wrong(
    "small-beside-large", "a gradient of 1e-9 beside 1 is lost", steep,
    lambda r, ct: (ct * jnp.asarray([1, 0, 1], ct.dtype),), normal((3,)),
)  # fmt: skip
wrong(
    "single-slope", "a slope rounded to float32 in a float64 rule", jnp.sin,
    lambda r, ct: (ct * jnp.cos(r[0]).astype(jnp.bfloat16).astype(ct.dtype),), ONE,
)  # fmt: skip
wrong(
    "zero-times-infinity",
    "0 · ∞ where arguments are huge",
    lambda x: x * 1,
    lambda r, ct: (ct * r[0] ** 3 / r[0] ** 3,),
    ONE,
)
wrong(
    "reciprocal-small",
    "1 % off where a pole is near",
    lambda x: 1 / x,
    lambda r, ct: (-ct * jnp.where(jnp.abs(r[0]) < 1e-3, 1.01, 1) / r[0] ** 2,),
    at(np.array([1e-5, 1.0, -2.0])),
)
wrong(
    "log-beside-nan",
    "1 % off beside an element where f is NaN",
    jnp.log,
    lambda r, ct: (1.01 * ct / r[0],),
    at(np.array([-1.0, 2.0, 0.5])),
)
KINKED = at(np.array([-1.0, 0.0, 2.0]))
wrong(
    "relu-2",
    "a slope at the kink outside of both sides",
    jax.nn.relu,
    lambda r, ct: (jnp.where(r[0] >= 0, ct * jnp.where(r[0] == 0, 2, 1), 0),),
    KINKED,
)
TIES = at(np.array([[2.0, 2.0, 1.0], [3.0, 3.0, -1.0]]))
wrong("ties-all", "each tie takes all", top, lambda r, ct: ((r[0] == top(r[0])[:, None]) * ct[:, None],), TIES)
wrong(
    "nan-in-one",
    "a division by zero at one element",
    lambda x: x * x,
    lambda r, ct: (2 * ct * r[0] ** 2 / r[0],),
    at(np.array([1.0, 2.0, 0.0, 3.0])),
)


def guarded(x):
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


wrong(
    "where-nan",
    "0 · ∞ through the branch not taken",
    guarded,
    lambda r, ct: (jnp.where(r[0] > 0, 1, 0) * ct / (2 * jnp.sqrt(r[0])),),
    at(np.array([-1.0, 4.0, 1.0])),
)
wrong(
    "norm-at-zero",
    "√n where 0 belongs (ott-jax)",
    lambda x: (x * x).sum(),
    lambda r, ct: (ct * jnp.where((r[0] != 0).any(), 2 * r[0], 1),),
    at(np.zeros(3)),
)
