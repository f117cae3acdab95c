"""The ways to the three correlations: each against a loop over (C6), and which of them is taken."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv.convolution import banded, correlations, direct, shifted
from bnderiv.convolution.conv import _Geometry
from tests.compiling import fast_jit
from tests.devices import traced_for
from tests.programs import writers

NHWC, CHWN = (0, 3, 1, 2), (3, 0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Shape:
    rows: int
    columns: int
    kernel: tuple[int, int, int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)


SHAPES = (
    Shape(6, 5, (3, 2, 2, 3)),
    Shape(7, 6, (3, 3, 1, 2), padding=((2, 1), (0, 2))),
    Shape(9, 8, (2, 3, 2, 1), strides=(3, 2), padding=((1, 0), (1, 3))),  # leaves a rest
    Shape(8, 9, (3, 2, 1, 2), dilation=(2, 3), padding=((1, 1), (2, 0))),
    Shape(2, 3, (2, 1, 1, 2), strides=(3, 1), dilation=(2, 2), padding=((3, 4), (2, 0))),  # windows of padding alone
    Shape(4, 4, (4, 4, 3, 2)),
    Shape(5, 7, (1, 1, 2, 2), strides=(2, 3)),
)

# Whatever differs between the axes does, and leaves a rest on both.
EVERYTHING = Shape(11, 12, (3, 2, 2, 3), strides=(3, 2), padding=((2, 0), (0, 3)), dilation=(2, 3))
WAYS = (
    pytest.param(direct, NHWC, id="direct-nhwc"),
    pytest.param(direct, CHWN, id="direct-chwn"),
    pytest.param(banded, NHWC, id="banded-nhwc"),
    pytest.param(banded, CHWN, id="banded-chwn"),
    pytest.param(shifted, CHWN, id="shifted-chwn"),
)


def _loop(shape, x, kernel):
    """(C6) for x (N, H, W, C), and what each triple of (C5) contributes to the gradients of vdot(z, δ)."""
    kh, kw, _, c_out = kernel.shape
    n = x.shape[0]
    (top, bottom), (left, right) = shape.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    reach = [d * (k - 1) + 1 for d, k in zip(shape.dilation, (kh, kw), strict=True)]
    out = [(size - r) // s + 1 for size, r, s in zip(padded.shape[1:3], reach, shape.strides, strict=True)]
    triples = [
        (i, r, j, k, shape.strides[0] * i + shape.dilation[0] * j, shape.strides[1] * r + shape.dilation[1] * k)
        for i, r, j, k in itertools.product(range(out[0]), range(out[1]), range(kh), range(kw))
    ]
    z = np.zeros((n, *out, c_out))
    for i, r, j, k, p, q in triples:
        z[:, i, r] += padded[:, p, q] @ kernel[j, k]

    def gradients(delta):
        d_padded, d_kernel = np.zeros_like(padded), np.zeros_like(kernel)
        for i, r, j, k, p, q in triples:
            d_padded[:, p, q] += delta[:, i, r] @ kernel[j, k].T
            d_kernel[j, k] += padded[:, p, q].T @ delta[:, i, r]
        rows, columns = x.shape[1:3]
        return d_padded[:, top : top + rows, left : left + columns], d_kernel

    return z, gradients


@pytest.mark.parametrize(("way", "layout"), WAYS)
def test_each_way_with_all_options_is_the_loop(way, layout):
    _is_the_loop(way, layout, EVERYTHING)
    if way is not direct:
        with traced_for(devices=1):
            _is_the_loop(way, layout, EVERYTHING)


@pytest.mark.few(4, 12)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("way", "layout"), WAYS)
def test_each_way_is_the_loop(way, layout, shape):
    _is_the_loop(way, layout, shape)
    if way is not direct:
        with traced_for(devices=1):
            _is_the_loop(way, layout, shape)


def _is_the_loop(way, layout, shape):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, shape.rows, shape.columns, shape.kernel[2]))
    kernel = rng.standard_normal(shape.kernel)
    z, gradients = _loop(shape, x, kernel)
    delta = rng.standard_normal(z.shape)
    dx, dkernel = gradients(delta)

    def laid_out(a):  # axes (batch, rows, columns, channels) -> as the layout says
        return jnp.asarray(np.moveaxis(a, (0, 3, 1, 2), layout))

    geometry = _Geometry(shape.strides, shape.padding, shape.dilation, 1, layout)
    x, kernel, delta = laid_out(x), jnp.asarray(kernel), laid_out(delta)

    @fast_jit  # one program, not one for every operation
    def ours(x, kernel, delta):
        if way is shifted:
            return (way.correlation(geometry, x, kernel),)
        return (
            way.correlation(geometry, x, kernel),
            way.input_gradient(geometry, x.shape, kernel, delta),
            way.kernel_gradient(geometry, kernel.shape, x, delta),
        )

    for actual, expected in zip(
        ours(x, kernel, delta), (laid_out(z), laid_out(dx), dkernel), strict=way is not shifted
    ):
        _near(actual, expected)


def _near(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("devices", [1, 8])
def test_the_gradient_of_the_kernel_is_a_product_of_matrices(devices):
    """On one device; on more the batch, which may be spread over them, stays an axis."""
    geometry = _Geometry((1, 1), ((0, 0), (0, 0)), (1, 1), 1, CHWN)
    x, delta = jnp.ones((2, 6, 6, 5)), jnp.ones((3, 4, 4, 5))
    with traced_for(devices):
        gradient = jax.make_jaxpr(lambda x, delta: banded.kernel_gradient(geometry, (3, 3, 2, 3), x, delta))(x, delta)
    (product,) = (e for e in gradient.jaxpr.eqns if e.primitive.name == "dot_general")
    lines = [v.aval.shape for e in gradient.jaxpr.eqns if e.primitive.name == "slice" for v in e.invars[:1]]
    assert lines[:3] == [(2, 6, 6 * 5) if devices == 1 else x.shape] * 3
    shapes = [v.aval.shape for v in product.invars]
    assert shapes == ([(3 * 4, 4 * 5), (3 * 2 * 6, 4 * 5)] if devices == 1 else [(3, 4, 4, 5), (3, 2, 6, 4, 5)])


@pytest.mark.parametrize(
    ("layout", "x", "delta"),
    [(NHWC, (9, 12, 12, 2), (9, 10, 10, 3)), (CHWN, (2, 12, 12, 9), (3, 10, 10, 9))],
    ids=["nhwc", "chwn"],
)
def test_the_gradient_of_the_input_is_added_up_once(layout, x, delta):
    """In one kernel, whoever uses it; not each line padded in one of its own, and the lines added at every use."""
    geometry = _Geometry((1, 1), ((0, 0), (0, 0)), (1, 1), 1, layout)

    def used_twice(kernel, delta):
        dx = banded.input_gradient(geometry, x, kernel, delta)
        return jnp.cos(dx), jnp.tanh(dx).sum((1, 2))

    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 3, 2, 3), delta))
    kernels = writers(jax.jit(used_twice).lower(*arguments).compile(), x)
    assert [k.count(" pad(") for k in kernels if " pad(" in k] == [3]


@pytest.mark.parametrize(
    ("x", "kernel", "options", "chosen"),
    [
        # The two of LeNet-5, and the first with the batch in front.
        ((1, 28, 28, 32), (5, 5, 1, 6), {"layout": CHWN}, (shifted, banded)),
        ((6, 14, 14, 32), (5, 5, 6, 16), {"layout": CHWN}, (banded, banded)),
        ((32, 28, 28, 1), (5, 5, 1, 6), {"layout": NHWC}, (banded, banded)),
        ((32, 28, 28, 32), (5, 5, 32, 32), {"layout": NHWC}, (direct, direct)),
        ((64, 56, 56, 64), (3, 3, 64, 64), {"layout": NHWC}, (direct, direct)),
        # The length of the kernel counts along the banded axis, the columns here and the rows there.
        ((32, 28, 28, 1), (2, 9, 1, 32), {"layout": NHWC}, (banded, banded)),
        ((1, 28, 28, 32), (2, 9, 1, 32), {"layout": CHWN}, (direct, direct)),
        ((32, 1, 28, 28), (5, 5, 1, 6), {"layout": (0, 1, 2, 3)}, (direct, direct)),  # neither of the two layouts
        ((32, 28, 28, 4), (5, 5, 1, 4), {"layout": NHWC, "groups": 4}, (direct, direct)),
    ],
)
def test_the_choice_on_a_cpu(x, kernel, options, chosen):
    geometry = _Geometry((1, 1), ((0, 0), (0, 0)), (1, 1), options.get("groups", 1), options["layout"])
    ways = correlations.fastest_on_cpu(geometry, x, kernel)
    forward, backward = chosen
    assert ways == (forward.correlation, backward.input_gradient, backward.kernel_gradient)


def test_a_long_signal_does_not_take_its_length_to_compile():
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 1, 500, 1), (1, 16, 1, 1)))
    program = jax.jit(jax.grad(lambda k, x: (bnderiv.conv2d(x, k) ** 2).sum())).lower(kernel, x)
    assert program.as_text().count("\n") < 100


def test_what_is_not_finite_stays_in_its_example():
    x = jax.random.normal(jax.random.key(0), (3, 6, 6, 1), jnp.float32).at[1, 2, 3, 0].set(jnp.nan)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 2), jnp.float32)
    z = bnderiv.conv2d(x, kernel)
    assert jnp.isnan(z[1]).any()
    assert jnp.isfinite(z[0]).all()
    assert jnp.isfinite(z[2]).all()
