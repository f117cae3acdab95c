"""Layer, group and RMS norm of `bnderiv.equinox` against those of `equinox.nn`, module against module."""

import inspect
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

eqx = pytest.importorskip("equinox", reason="needs the extra equinox")

import bnderiv.equinox
from tests.adapters.alike import alike, normal
from tests.adapters.norm_truth import errors
from tests.compiling import fast_jit

NORMS = ["LayerNorm", "GroupNorm", "RMSNorm"]


def pair(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Our layer and Equinox's, with the same weights, drawn at random."""

    def random(layer):
        leaves, structure = jax.tree.flatten(layer)
        return jax.tree.unflatten(structure, [normal(i + 5, a.shape, a.dtype) for i, a in enumerate(leaves)])

    return tuple(random(getattr(m, name)(*args, **options)) for m in (bnderiv.equinox, eqx.nn))


def with_gradient(layer, x):
    """y of a batch, and the gradients of ⟨delta, y⟩ by weights and x."""

    def product(layer, x):
        y = jax.vmap(layer)(x)
        return jnp.vdot(normal(1, x.shape, y.dtype), y), y

    (_, y), (d_layer, dx) = fast_jit(jax.value_and_grad(product, (0, 1), has_aux=True))(layer, x)
    return y, jax.tree.leaves(d_layer), dx


CASES = [
    ("LayerNorm", (6,), (6,), {}),
    ("LayerNorm", (4, 6), ((4, 6),), {"eps": 0.1, "use_bias": False}),
    ("LayerNorm", (4, 6), ([4, 6],), {"use_weight": False}),
    ("GroupNorm", (6, 4, 5), (2, 6), {}),
    ("GroupNorm", (6, 5), (6, 6), {"eps": 0.1}),
    ("GroupNorm", (6, 4), (1,), {"channelwise_affine": False}),
    ("GroupNorm", (6,), (2, 6), {}),
    ("RMSNorm", (6,), (6,), {}),
    ("RMSNorm", (4, 6), ((4, 6),), {"eps": 0.1, "use_weight": False}),
    ("RMSNorm", (6,), (6,), {"use_bias": False}),
]
QUICK = {0, 3, 7}


@pytest.mark.few(3, 3)
@pytest.mark.parametrize(
    ("name", "shape", "arguments", "options"),
    [pytest.param(*case, marks=[] if i in QUICK else pytest.mark.slow) for i, case in enumerate(CASES)],
)
def test_fields_values_and_gradients(name, shape, arguments, options):
    x = normal(0, (3, *shape), jnp.float64)
    ours, theirs = pair(name, *arguments, **options, dtype=jnp.float64)
    assert vars(ours).keys() == vars(theirs).keys()
    alike(with_gradient(ours, x), with_gradient(theirs, x))


@pytest.mark.parametrize("name", NORMS)
def test_every_dtype_is_equinox_s(name):
    arguments = (2, 6) if name == "GroupNorm" else (6,)
    for x_dtype in (jnp.float32, jnp.bfloat16, jnp.int32):
        for dtype in (None, jnp.float16):
            ours, theirs = pair(name, *arguments, dtype=dtype)
            x = jax.ShapeDtypeStruct((6,), x_dtype)
            assert jax.eval_shape(ours, x) == jax.eval_shape(theirs, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_leaves_of_either_load_into_the_other(name):
    arguments = (2, 6) if name == "GroupNorm" else (6,)
    x = normal(0, (6,), jnp.float64)
    ours, theirs = pair(name, *arguments, dtype=jnp.float64)
    for first, second in ((ours, theirs), (theirs, ours)):
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, first)
        file.seek(0)
        loaded = eqx.tree_deserialise_leaves(file, type(second)(*arguments, dtype=jnp.float64))
        alike(loaded(x), first(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "axes", "groups"), [("LayerNorm", (48,), -1, None), ("GroupNorm", (4, 48), -1, 4)]
)
def test_means_far_above_the_deviation(name, arguments, axes, groups):
    """Equinox's two passes are right to the rounding of the mean alone."""
    x, delta = normal(0, (64, 48), mean=1e4, scale=1), normal(1, (64, 48))

    def measured(library):
        layer = getattr(library, name)(*arguments)

        @jax.jit
        def both(x):
            y, pull_back = jax.vjp(jax.vmap(layer), x)
            return y, *pull_back(delta)

        return errors(both(x), x, delta, axes, groups=groups, eps=1e-5)

    assert max(measured(bnderiv.equinox)) < 4e-7
    assert max(measured(eqx.nn)) > 1e-4  # what the tests above would not see


@pytest.mark.parametrize("name", NORMS)
def test_the_class_is_equinox_s(name):
    ours, theirs = getattr(bnderiv.equinox, name), getattr(eqx.nn, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)


@pytest.mark.parametrize("name", NORMS)
def test_the_state_passes_through(name):
    layer, _ = pair(name, *((2, 6) if name == "GroupNorm" else (6,)))
    x = normal(0, (6,))
    state = object()
    y, same = layer(x, state, key=jax.random.key(0))
    assert same is state
    np.testing.assert_array_equal(y, layer(x))
    assert layer(x, None)[1] is None


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "message"),
    [
        ("LayerNorm", (6,), (2, 6), r"x must have the shape of the layer, \(6,\), got \(2, 6\): call it on a batch by"),
        ("RMSNorm", ((2, 3),), (6,), r"x must have the shape of the layer, \(2, 3\), got \(6,\)"),
        ("GroupNorm", (2, 6), (4,), r"x must have 6 channels first, got shape \(4,\)"),
        ("GroupNorm", (2, None, 1e-5, False), (3,), r"x must have a multiple of 2 channels first, got shape \(3,\)"),
        ("GroupNorm", (2, None, 1e-5, False), (), r"x must have a multiple of 2 channels first, got shape \(\)"),
    ],
)
def test_errors(name, arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        getattr(bnderiv.equinox, name)(*arguments)(normal(0, shape))


def test_complex_input_raises():
    with pytest.raises(TypeError, match="x must be real, got complex64"):
        bnderiv.equinox.LayerNorm(6)(jnp.ones(6, jnp.complex64))
