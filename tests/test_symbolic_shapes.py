"""A program exported for batches of any size (`jax.export.symbolic_shape`) is the layer at each, gradient included."""

from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv.models import lenet5
from tests import contract
from tests.case import random_like
from tests.compiling import fast_jit

BATCH_LAST: dict[str, Any] = {"channel_axis": 1, "batch_axis": 3}
# (layer, the shapes of its arguments, its options)
CASES: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("batch_norm", ("b, 20", "20", "20"), {}),
    ("batch_norm", ("b, h, w, c", "c", "c"), {}),  # whatever
    ("batch_norm", ("b, 4, 4, 3", "3", "3"), {"where": np.arange(16).reshape(1, 4, 4, 1) % 3 > 0}),
    ("batch_renorm", ("b, h, w, c", "c", "c", "c", "c"), {}),
    ("layer_norm", ("b, h, c", "c", "c"), {}),
    ("group_norm", ("b, h, w, 6", "6", "6"), {"groups": 2}),
    ("rms_norm", ("b, h, 20", "20"), {}),
    ("dense", ("b, 20", "20, 5", "5"), {}),
    ("flatten", ("b, h, w, 3",), {}),
    ("conv2d", ("b, 9, 9, 1", "5, 5, 1, 6"), {}),
    ("conv2d", ("9, 6, 9, b", "3, 3, 6, 4"), {"strides": 2, "padding": "SAME", **BATCH_LAST}),
    ("conv2d", ("b, h, w, 3", "3, 3, 3, 8", "8"), {"padding": 1}),
    ("conv2d", ("b, 9, 9, c", "3, 3, c, c"), {}),
    ("conv2d", ("c, 9, 9, b", "3, 3, c, 4"), {"channel_axis": 0, "batch_axis": 3}),
    *(
        (pool, shapes, {"window": 2, "strides": 2, **options})
        for pool in ("avg_pool", "max_pool")
        for shapes, options in ((("b, 9, 9, 3",), {"padding": 1}), (("8, 3, 8, b",), BATCH_LAST))
    ),
    *((activation, ("b, 10",), {}) for activation in ("relu", "tanh", "sigmoid", "softmax", "log_softmax")),
    ("softmax_cross_entropy", ("b, 10", "b, 10"), {}),
    ("softmax_cross_entropy", ("b, c", "b, c"), {"label_smoothing": 0.1, "where": np.ones((1, 1), bool)}),
    ("squared_error", ("b, 10", "b, 10"), {}),
]
SLOW_CASES: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("instance_norm", ("b, h, w, c", "c", "c"), {}),
    ("layer_norm", ("b, h, 20", "20", "20"), {}),
    ("batch_norm_inference", ("b, 4, 4, 6", "6", "6", "6", "6"), {}),
    ("batch_norm_relu", ("b, 14, 14, 6", "6", "6"), {}),
    ("batch_norm", ("b, 5", "5", "5"), {}),
    ("batch_norm", ("b, 8, 8, 32", "32", "32"), {}),  # many channels
    ("batch_norm", ("b, 14, 14, 6", "6", "6"), {}),  # few, in rows
    ("batch_norm", ("14, 6, 14, b", "6", "6"), {"channel_axis": 1}),
    ("batch_norm", ("b, 6, h, w", "6", "6"), {"channel_axis": 1}),  # images of any size
    *(
        (pool, shapes, {"window": 2, "strides": strides, **options})
        for pool in ("avg_pool", "max_pool")
        for shapes, options in ((("b, 9, 9, 3",), {"padding": 1}), (("8, 3, 8, b",), BATCH_LAST))
        for strides in (1, 3)
    ),
]


def _named(attachment: Any, case: tuple[str, tuple[str, ...], dict[str, Any]], *marks: Any) -> Any:
    layer, shapes, _ = case
    return pytest.param(attachment, *case, marks=marks, id=f"{attachment.__name__}.{layer}({'; '.join(shapes)})")


@pytest.mark.few(2, 6)
@pytest.mark.parametrize(
    ("attachment", "layer", "shapes", "options"),
    [_named(bnderiv, case) for case in CASES]
    + [_named(bnderiv, case, pytest.mark.slow) for case in SLOW_CASES]
    + [_named(bnderiv.forward_mode, case, pytest.mark.slow) for case in CASES + SLOW_CASES if "norm" in case[0]],
)
def test_one_program_for_every_size(attachment, layer, shapes, options):
    constraints = [f"{size} >= 3" for size in "hw" if size in shapes[0]]
    scope = jax.export.SymbolicScope(constraints)
    symbolic = [jax.ShapeDtypeStruct(jax.export.symbolic_shape(s, scope=scope), jnp.float64) for s in shapes]

    def bound(layers: Any) -> Callable:
        return lambda *args: getattr(layers, layer)(*args, **options)

    program = jax.export.export(jax.jit(bound(attachment)))(*symbolic)
    program = jax.export.deserialize(program.serialize(vjp_order=1))
    for sizes in ({"b": 1, "h": 3, "w": 5, "c": 2}, {"b": 6, "h": 18, "w": 14, "c": 17}):
        args = tuple(random_like(jnp.zeros(tuple(eval(f"{s},", {}, sizes))), i) for i, s in enumerate(shapes))
        if layer in ("batch_norm_inference", "batch_renorm"):
            args = (*args[:4], args[4] ** 2 + 0.1)
        actual, expected = (
            contract.compiled(f)(contract.cotangent_of(f, args), *args)
            for f in (program.call, bound(bnderiv.reference))
        )
        contract.close(actual, expected)


@pytest.mark.few(1)
@pytest.mark.parametrize("channels", [3, 20])
def test_a_batch_that_is_perhaps_empty(channels):
    """Whether b − 1 is 0 is known when the program runs: nothing may ask before."""
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"b - 1, 5, 4, {channels}"), jnp.float64)
    vector = jnp.ones(channels)
    layer = jax.jit(lambda x: bnderiv.batch_norm(x, vector, vector)[0])
    images = random_like(jnp.zeros((6, 5, 4, channels)), 1)
    contract.close(jax.export.export(layer)(x).call(images), layer(images))


def test_few_channels_in_half_precision_are_measured_in_float32():
    x = random_like(jnp.zeros((8, 14, 14, 6)), 3).astype(jnp.bfloat16)
    (b,) = jax.export.symbolic_shape("b")
    ones = jnp.ones(6)
    program = jax.export.export(jax.jit(lambda x: bnderiv.batch_norm(x, ones, ones)[1].var))(
        jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype)
    )
    np.testing.assert_allclose(program.call(x), np.asarray(x, np.float64).var((0, 1, 2)), 1e-6)


def test_labels():
    (b,) = jax.export.symbolic_shape("b")
    program = jax.export.export(jax.jit(bnderiv.softmax_cross_entropy_with_integer_labels))(
        jax.ShapeDtypeStruct((b, 10), jnp.float64), jax.ShapeDtypeStruct((b,), jnp.int32)
    )
    for size in (1, 7):
        logits, labels = random_like(jnp.zeros((size, 10)), 0), jnp.arange(size, dtype=jnp.int32)
        expected = fast_jit(bnderiv.reference.softmax_cross_entropy_with_integer_labels)(logits, labels)
        contract.close(fast_jit(program.call)(logits, labels), expected)


@pytest.mark.parametrize("pool", ["avg_pool", "max_pool"])
def test_pools_need_the_size_of_the_image(pool):
    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, 8, 3"), jnp.float32)
    with pytest.raises(ValueError, match="spatial axes of x must be known"):
        jax.export.export(jax.jit(lambda x: getattr(bnderiv, pool)(x, 2)))(symbolic)


@pytest.mark.parametrize("channels", ["c", "2*c"])
def test_group_norm_needs_the_number_of_channels(channels):
    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"b, 4, {channels}"), jnp.float32)
    with pytest.raises(
        ValueError, match=r"^the channels of x must be known, only its other axes symbolic, got \(b, 4,"
    ):
        jax.export.export(jax.jit(lambda x: bnderiv.group_norm(x, None, None, 2)))(symbolic)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_step_of_training():
    """A LeNet-5's loss, running averages and gradient, exported for the platforms at once."""
    config = lenet5.Config(dtype=jnp.float64)
    params, state = lenet5.init(jax.random.key(0), config)

    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            logits, new_state = lenet5.apply(params, state, images, config, train=True)
            return bnderiv.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new_state

        return jax.value_and_grad(loss, has_aux=True)(params)

    (b,) = jax.export.symbolic_shape("b")
    known = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, state))
    inputs = jax.ShapeDtypeStruct((b, 28, 28, 1), jnp.float64), jax.ShapeDtypeStruct((b,), jnp.int32)
    program = jax.export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(*known, *inputs)
    for size in (2, 5):
        images = random_like(jnp.zeros((size, 28, 28, 1)), size)
        labels = jnp.arange(size, dtype=jnp.int32)
        actual, expected = (fast_jit(f)(params, state, images, labels) for f in (program.call, step))
        contract.near(actual, expected, 1e-9)
