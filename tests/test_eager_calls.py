"""Outside of jit a layer is one program, not one for each operation, and nothing else about it differs by that."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import eval_jaxpr
from jax.sharding import NamedSharding, PartitionSpec

import bnderiv
from bnderiv import _layers, forward_mode
from tests.case import random_like
from tests.contract import HALF, near


def calls(n):
    """Every layer, its float32 arguments for a batch of n, and its other arguments."""
    rng = np.random.default_rng(n)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    x, h, vector = normal(n, 6, 4, 3), normal(n, 9), partial(normal, 3)
    positive = jnp.abs(vector())
    return {
        "dense": ((h, normal(9, 5), normal(5)), {}),
        "conv2d": ((x, normal(3, 2, 3, 5), normal(5)), {"strides": np.int64(2), "padding": [[1, 0], [0, 1]]}),
        "avg_pool": ((x,), {"window": [2, np.int32(3)]}),
        "max_pool": ((x,), {"window": 2, "strides": [1, 2]}),
        "batch_norm": ((x, vector(), vector()), {}),
        "batch_norm_relu": ((x, vector(), vector()), {}),
        "batch_norm_inference": ((x, vector(), vector(), vector(), positive), {}),
        # The running statistics have no gradient, and JAX's zeros for them are on the default device.
        "batch_renorm": ((x, vector(), vector()), {"mean": vector(), "var": positive, "r_max": np.float32(2)}),
        "layer_norm": ((h, normal(9), normal(9)), {}),
        "group_norm": ((normal(n, 4, 6), normal(6), normal(6)), {"groups": np.int64(2)}),
        "instance_norm": ((x, vector(), vector()), {}),
        "rms_norm": ((h, normal(9)), {"axis": np.int8(-1)}),
        "relu": ((x,), {}),
        "tanh": ((x,), {}),
        "sigmoid": ((x,), {}),
        "softmax": ((h,), {"axis": np.int8(0)}),
        "log_softmax": ((h,), {"axis": np.int8(0)}),
        "flatten": ((x,), {}),
        "softmax_cross_entropy": ((h, jax.nn.softmax(normal(n, 9))), {}),
        "softmax_cross_entropy_with_integer_labels": ((h,), {"labels": jnp.asarray(rng.integers(0, 9, n), jnp.int32)}),
        "squared_error": ((h, normal(n, 9)), {}),
    }


# The rules of these are layer norm's.
ALIKE = {"group_norm", "instance_norm"}
EVERY = sorted({*_layers.__all__} - {"conv"})  # it is conv2d
SLOW = [pytest.mark.slow]
every_layer = pytest.mark.parametrize(
    "layer", [pytest.param(name, marks=[pytest.mark.exhaustive] if name in ALIKE else []) for name in EVERY]
)


def bind(layers, layer, n):
    arrays, options = calls(n)[layer]
    return partial(getattr(layers, layer), **options), arrays


@pytest.fixture
def compiled():
    """`compiled(f, ...)`: the result of f, and how many programs were traced or compiled for it."""
    names = ("/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_trace_duration")
    seen = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def run(f, *args):
        seen.clear()
        out = jax.block_until_ready(f(*args))
        return out, tuple(seen.count(name) for name in names)

    yield run
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.few(2, 8)
@pytest.mark.parametrize(
    "layer", [pytest.param(name, marks=[] if name in ("batch_norm", "dense") else pytest.mark.slow) for name in EVERY]
)
def test_programs(layer, compiled):
    f, arrays = bind(bnderiv, layer, 11)  # shapes that no other test has
    out, (programs, _) = compiled(f, *arrays)
    assert 1 <= programs <= 2  # ε is put on the device by another, once
    assert compiled(f, *arrays)[1] == (0, 0)  # neither traced nor compiled again

    (_, pull_back), (programs, _) = compiled(partial(jax.vjp, f), *arrays)
    assert programs == 1
    _, (programs, _) = compiled(pull_back, out)
    assert programs == 1
    (_, pull_back), (programs, _) = compiled(partial(jax.vjp, f), *arrays)
    assert programs == compiled(pull_back, out)[1][0] == 0


@pytest.mark.parametrize("layer", ["max_pool", pytest.param("conv2d", marks=pytest.mark.slow)])
def test_programs_of_both_modes(layer, compiled):
    """Beside the core one program for all tangents, which JAX transposes as a whole."""
    f, arrays = bind(forward_mode, layer, 12)
    (out, pull_back), (programs, _) = compiled(partial(jax.vjp, f), *arrays)
    assert programs <= 2
    assert compiled(pull_back, out)[1][0] <= 2
    assert compiled(partial(jax.jvp, f), arrays, arrays)[1][0] <= 2


def test_operation_by_operation_where_jit_is_disabled(compiled):
    f, arrays = bind(bnderiv, "softmax_cross_entropy", 13)
    with jax.disable_jit():
        assert compiled(f, *arrays)[1][0] > 5


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(
            name,
            marks=[]
            if name in ("batch_renorm", "batch_norm_inference") or "integer" in name
            else [*SLOW, *[pytest.mark.exhaustive] * (name in ALIKE)],
        )
        for name in EVERY
    ],
)
def test_nan_is_reported_only_where_there_is_one(layer):
    f, arrays = bind(bnderiv, layer, 3)
    with jax.debug_nans(True), jax.disable_jit():
        both_ways(f, arrays)


def test_nan_is_not_reported_for_a_label_that_does_not_count():
    labels = jnp.array([2, -1, 9, 0])
    loss = partial(bnderiv.softmax_cross_entropy_with_integer_labels, labels=labels, where=jnp.arange(4) % 3 == 0)
    with jax.debug_nans(True), jax.disable_jit():
        both_ways(loss, (jnp.ones((4, 9)),))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: bnderiv.softmax_cross_entropy_with_integer_labels(x, jnp.array([2, 9, 0])),
        lambda x: bnderiv.batch_norm_inference(x, x[0], x[0], x[0], jnp.full(9, np.inf)),
    ],
    ids=["label", "variance"],
)
def test_nan_is_reported_where_there_is_one(f):
    with jax.debug_nans(True), jax.disable_jit(), pytest.raises(FloatingPointError, match="nan"):
        f(jnp.ones((3, 9)))


def test_within_a_transform_too_which_xla_inlines():
    (x,), _ = calls(2)["tanh"]
    f = lambda x: bnderiv.tanh(bnderiv.tanh(x))  # noqa: E731
    first, second = jax.make_jaxpr(f)(x).eqns
    assert first.primitive.name == second.primitive.name == "jit"
    assert first.params["jaxpr"] is second.params["jaxpr"]  # traced once
    program: Any = jax.jit(f).lower(x).compile()
    text = program.as_text()
    assert text.count(" tanh(") == 2
    assert " call(" not in text.split("ENTRY")[1]


def both_ways(f, arrays):
    out, pull_back = jax.vjp(f, *arrays)
    cotangent = jax.tree.map(lambda c, y: jax.device_put(c, y.sharding), random_like(out, 1), out)
    return f(*arrays), pull_back(cotangent)


def on_another_device(arrays):
    return jax.device_put(arrays, jax.devices()[5])


def sharded(arrays):
    """Over the batch where there is one."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    return tuple(
        jax.device_put(a, NamedSharding(mesh, PartitionSpec("batch" if a.shape[0] == 8 else None))) for a in arrays
    )


@pytest.mark.few(0, 3)
@pytest.mark.slow
@every_layer
@pytest.mark.parametrize("place", [pytest.param(on_another_device, marks=pytest.mark.exhaustive), sharded])
def test_as_operation_by_operation(layer, place):
    """The same numbers but for rounding, of the same kind and where the arguments are; and those are left alone."""
    f, arrays = bind(bnderiv, layer, 8)
    arrays = place(arrays)
    before = jax.tree.map(np.array, arrays)
    actual = both_ways(f, arrays)
    chex.assert_trees_all_equal(arrays, before)
    with jax.disable_jit():
        expected = both_ways(f, arrays)
    near(actual, expected, HALF["float32"])
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (e.shape, e.dtype, e.weak_type)
        assert (a.committed, a.devices()) == (True, arrays[0].devices())
        if e.committed:  # batch norm's count is a constant there
            assert a.sharding.is_equivalent_to(e.sharding, a.ndim), (a.sharding, e.sharding)


@pytest.mark.few(0, 8)
@pytest.mark.slow
@every_layer
def test_settings_are_not_cached(layer):
    """What was compiled under one setting does not answer for another."""
    f, arrays = bind(bnderiv, layer, 2)
    with_x64 = f(*arrays)
    with jax.enable_x64(False):
        chex.assert_trees_all_equal_shapes_and_dtypes(f(*arrays), with_x64)
    wide = [a.astype(jnp.float64) for a in arrays]
    assert {y.dtype for y in jax.tree.leaves(f(*wide))} == {jnp.dtype("float64")}
    with jax.default_device(jax.devices()[3]):  # of arrays that are committed to none
        assert {d for y in jax.tree.leaves(f(*map(np.asarray, arrays))) for d in y.devices()} == {jax.devices()[3]}


def _orders():
    """Both ways round for a few: what keeps the two apart is the decorator, not the layer."""
    for layer in EVERY:
        for n, order in ((3, (bnderiv, forward_mode)), (4, (forward_mode, bnderiv))):
            few = layer in ("batch_norm", "dense", "max_pool") or (n == 3 and layer not in ALIKE)
            yield pytest.param(layer, n, order, marks=() if few else pytest.mark.exhaustive, id=f"{layer}-{n}")


@pytest.mark.few(0, 4)
@pytest.mark.slow
@pytest.mark.parametrize(("layer", "n", "order"), list(_orders()))
def test_modes_do_not_leak(layer, n, order):
    """What an eager call compiled for one attachment is not what the other then differentiates."""
    for layers in order:
        f, arrays = bind(layers, layer, n)
        jax.block_until_ready(f(*arrays))
        if layers is forward_mode:
            jax.jvp(f, arrays, arrays)
        else:
            jax.vjp(f, *arrays)
            with pytest.raises(TypeError, match="forward-mode"):
                jax.jvp(f, arrays, arrays)


@pytest.mark.few(7, 14)
@pytest.mark.parametrize("layer", [name for name in EVERY if name != "squared_error"])  # keeps a difference
@pytest.mark.parametrize(
    "layers", [bnderiv, pytest.param(forward_mode, marks=pytest.mark.slow)], ids=["bnderiv", "forward_mode"]
)
def test_the_backward_keeps_no_copies(layers, layer):
    """What it saves of arguments and results are these arrays themselves."""
    f, arrays = bind(layers, layer, 2)
    out, pull_back = jax.vjp(f, *arrays)
    known = {a.unsafe_buffer_pointer() for a in jax.tree.leaves((arrays, out))}
    saved = [
        a for a in jax.tree.leaves(pull_back) if a.size > 9 and jnp.issubdtype(a.dtype, jnp.floating)
    ]  # no vectors
    assert {a.unsafe_buffer_pointer() for a in saved} <= known
    assert saved or layer in ("avg_pool", "flatten", "max_pool")


@pytest.mark.slow
def test_untraced_arguments_within_a_transform():
    """They too belong to the transform: its axis names, and its trace."""
    (x, gamma, beta), _ = calls(2)["batch_norm"]

    def count(layers):
        def of_one(_):
            return layers.batch_norm(x, gamma, beta, axis_name="i")[1].count

        return jax.jit(jax.vmap(of_one, axis_name="i"))(np.zeros(5))

    near(count(bnderiv), count(bnderiv.reference), 0)
    assert (count(bnderiv) == 5 * x.size / 3).all()
    program = jax.make_jaxpr(lambda: bnderiv.relu(x))()
    gradient = jax.grad(lambda constant: eval_jaxpr(program.jaxpr, [constant])[0].sum())(x)
    chex.assert_trees_all_equal(gradient, (x > 0).astype(x.dtype))
