"""Arrays whose type says how they are spread over devices: results and gradients have such types too, and are right.

Every layer with its batch spread is in test_sharding.py and normalization/test_across_devices.py; here is the rest.
"""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bnderiv
import bnderiv.reference
from bnderiv._sharding import automatic
from bnderiv.models import lenet5
from tests.case import random_like
from tests.compiling import fast_jit
from tests.contract import TIGHT, near
from tests.programs import collectives

MESH = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)
EVERYWHERE = P()


def _random(*shapes):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape)) for shape in shapes)


def _put(a, spec):
    return jax.device_put(a, NamedSharding(MESH, spec))


def _spec(a):
    return jax.typeof(a).sharding.spec


def _value_and_gradient(f, cotangent, *args):
    out, pull_back = jax.vjp(f, *args)
    return out, pull_back(cotangent)


LAYERS = {
    "dense-outputs": ("dense", {}, ((8, 6), P("data")), ((6, 4), P(None, "model")), ((4,), P("model"))),
    "dense-inputs": ("dense", {}, ((8, 6), P("data", "model")), ((6, 4), P("model")), ((4,), P())),
    "dense-both-axes": ("dense", {}, ((8, 6), P(("data", "model"))), ((6, 4), P())),
    "conv2d-outputs": (
        "conv2d",
        {"padding": 1},
        ((4, 6, 6, 2), P("data")),
        ((3, 3, 2, 4), P(None, None, None, "model")),
        ((4,), P("model")),
    ),
    "conv2d-hcwn": (
        "conv2d",
        {"channel_axis": 0, "batch_axis": 3},
        ((2, 6, 6, 4), P(None, None, None, "data")),
        ((3, 3, 2, 4), P()),
    ),
    "max_pool-channels": ("max_pool", {"window": 3, "strides": 2}, ((4, 7, 7, 2), P("data", None, None, "model"))),
    "max_pool-rows": ("max_pool", {"window": 2}, ((4, 8, 4, 2), P("data", "model"))),
    "avg_pool-channels": ("avg_pool", {"window": 3, "strides": 2}, ((4, 7, 7, 2), P("data", None, None, "model"))),
    "batch_norm_inference-channels": (
        "batch_norm_inference",
        {},
        ((4, 3, 3, 2), P("data", None, None, "model")),
        *[((2,), P())] * 2,
        *[((2,), P("model"))] * 2,
    ),
    "batch_norm-channels": (
        "batch_norm",
        {},
        ((4, 3, 3, 2), P("data", None, None, "model")),
        *[((2,), P("model"))] * 2,
    ),
    "batch_norm_relu-rows": ("batch_norm_relu", {}, ((8, 4), P(("data", "model"))), *[((4,), P())] * 2),
    "batch_norm_relu-residual": (
        "batch_norm_relu",
        {},
        ((8, 4), P("data", "model")),
        *[((4,), P())] * 2,
        ((8, 4), P(None, "model")),  # unlike x: y is sharded like x, the gradient like z
    ),
    "batch_renorm-channels": (
        "batch_renorm",
        {},
        ((4, 3, 3, 2), P("data", None, None, "model")),
        *[((2,), P("model"))] * 2,
        *[((2,), P())] * 2,
    ),
    "layer_norm-features": ("layer_norm", {}, ((8, 2, 4), P("data", None, "model")), *[((4,), P("model"))] * 2),
    "group_norm-channels": (
        "group_norm",
        {"groups": 2},
        ((4, 3, 3, 4), P("data", None, None, "model")),
        *[((4,), P("model"))] * 2,
    ),
    "instance_norm-rows": ("instance_norm", {}, ((4, 4, 3, 2), P("data", "model")), *[((2,), P())] * 2),
    "rms_norm-features": ("rms_norm", {}, ((8, 4), P("data", "model")), ((4,), P())),
    "flatten-rows": ("flatten", {}, ((8, 4, 3), P("data", "model"))),
    "softmax-classes": ("softmax", {}, ((8, 4), P("data", "model"))),
    "log_softmax-classes": ("log_softmax", {}, ((8, 4), P("data", "model"))),
    "softmax_cross_entropy-options": (
        "softmax_cross_entropy",
        {"label_smoothing": 0.1, "class_weights": np.arange(1.0, 5), "where": np.arange(8) % 3 > 0},
        *[((8, 4), P("data", "model"))] * 2,
    ),
    "softmax_cross_entropy-classes": ("softmax_cross_entropy", {}, *[((8, 4), P("data", "model"))] * 2),
    "squared_error-classes": ("squared_error", {}, *[((8, 4), P("data", "model"))] * 2),
    "squared_error-targets": ("squared_error", {}, ((8, 4), P()), ((8, 4), P("data"))),
}


def _bound(case, layers=bnderiv):
    name, options, *placed = case
    args = _random(*(shape for shape, _ in placed))
    args = (*args[:4], jnp.abs(args[4])) if len(args) == 5 else args  # a variance
    return partial(getattr(layers, name), **options), args, [spec for _, spec in placed]


@pytest.mark.few(12)
@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
def test_the_result_is_spread_as_asked(case):
    """Its type says so when it is traced."""
    layer, args, specs = _bound(case)
    args = tuple(map(_put, args, specs))
    spread = [a.sharding.spec for a in jax.tree.leaves(jax.eval_shape(layer, *args))]
    assert spread == _expected_specs(case[0], [_spec(a) for a in args])


@pytest.mark.few(2, 6)
@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
def test_values_are_right_and_gradients_spread_like_their_arguments(case):
    layer, args, specs = _bound(case)
    reference, *_ = _bound(case, bnderiv.reference)
    cotangent = random_like(jax.eval_shape(reference, *args), 1)
    expected = fast_jit(partial(_value_and_gradient, reference))(cotangent, *args)

    args = tuple(map(_put, args, specs))
    leaves, structure = jax.tree.flatten(cotangent)
    spread = _expected_specs(case[0], [_spec(a) for a in args])
    cotangent = jax.tree.unflatten(structure, map(_put, leaves, spread))
    out, gradient = fast_jit(partial(_value_and_gradient, layer))(cotangent, *args)
    near((out, gradient), expected, TIGHT)
    assert [_spec(a) for a in jax.tree.leaves((out, gradient))] == [*spread, *map(_spec, args)]


def _expected_specs(name, specs):
    """Those of the outputs, in order."""
    x = specs[0]
    if name == "dense":
        return [P(x[0], specs[1][1])]
    if name == "conv2d":
        return [P(specs[1][3], None, None, x[3]) if x[3] else P(x[0], None, None, specs[1][3])]
    if name in ("batch_norm", "batch_norm_relu", "batch_renorm"):
        return [x, *[P(x[-1])] * 3]
    if name in ("softmax_cross_entropy", "squared_error"):
        return [P(x[0] or specs[1][0])]
    return [P(x[0], x[1])] if name == "flatten" else [x]


@pytest.mark.slow
@pytest.mark.parametrize("within", [True, False], ids=["set_mesh", "no-mesh-set"])
def test_outside_of_jit(within):
    x, gamma, kernel = _random((8, 4, 4, 3), (3,), (12, 4))

    def network(layers, x, gamma, kernel):
        y, stats = layers.batch_norm(x, gamma, gamma)
        return layers.dense(layers.max_pool(y, 2).reshape(8, 12), kernel), stats.var

    cotangent = _random((8, 4), (3,))
    expected = fast_jit(partial(_value_and_gradient, partial(network, bnderiv.reference)))(cotangent, x, gamma, kernel)
    placed = _put(x, P("data")), _put(gamma, EVERYWHERE), _put(kernel, P(None, "model"))
    cotangent = _put(cotangent[0], P("data", "model")), _put(cotangent[1], EVERYWHERE)
    with jax.set_mesh(MESH) if within else contextlib.nullcontext():
        out, gradient = _value_and_gradient(partial(network, bnderiv), cotangent, *placed)
    near((out, gradient), expected, TIGHT)
    assert [_spec(a) for a in gradient] == [_spec(a) for a in placed]


def test_arguments_that_are_spread_nowhere_in_particular():
    x, kernel = _random((8, 6), (6, 4))
    z = bnderiv.dense(_put(x, P("data")), kernel)
    near(z, x @ kernel, TIGHT)
    assert _spec(z) == P("data", None)


@pytest.mark.parametrize("axes", [(AxisType.Auto, AxisType.Explicit), (AxisType.Explicit, AxisType.Auto)], ids=str)
def test_a_mesh_of_which_one_axis_is_explicit(axes):
    """The other is XLA's: it stands in no type."""
    x, kernel = _random((4, 6, 6, 2), (3, 3, 2, 4))
    mesh = jax.make_mesh((4, 2), ("data", "model"), axes)
    placed = [NamedSharding(mesh, spec) for spec in (P("data"), P(None, None, None, "model"))]
    with jax.set_mesh(mesh):
        z = bnderiv.conv2d(*(jax.device_put(a, spec) for a, spec in zip((x, kernel), placed, strict=True)))
    near(z, fast_jit(bnderiv.reference.conv2d)(x, kernel), TIGHT)
    assert _spec(z) == (P(None, None, None, "model") if axes[0] == AxisType.Auto else P("data", None, None, None))


def test_other_errors_of_a_layer_are_raised_as_they_are():
    (x,) = _random((8, 6))

    def refuses(x):
        raise ValueError("another reason")

    with pytest.raises(ValueError, match=r"^another reason$"):
        automatic(refuses, lambda x: x, x=_put(x, P("data")))


def test_a_result_spread_twice_over_one_axis_is_refused():
    x, kernel = _random((8, 6), (6, 4))
    for spec in (P(("data", "model")), P(("model", "data"))):
        with pytest.raises(ValueError, match="two axes of the result cannot both be sharded over mesh axis 'model'"):
            jax.eval_shape(bnderiv.dense, _put(x, spec), _put(kernel, P(None, "model")))
    with pytest.raises(ValueError, match=r"'data', got P\('data', 'data'\) from x P\('data', None\), kernel P\(None"):
        jax.eval_shape(bnderiv.dense, _put(x, P("data")), _put(kernel, P(None, "data")))


def test_a_result_that_cannot_be_spread_is_refused():
    (x,) = _random((8, 8, 8, 2))
    with pytest.raises(ValueError, match=r"cannot be sharded like x P\('data', 'model', None, None\) .*reshard"):
        bnderiv.avg_pool(_put(x, P("data", "model")), 8)


@pytest.mark.few(1, 3)
@pytest.mark.parametrize(
    ("loss", "specs", "spread"),
    [
        pytest.param("squared_error", (P("data"), P()), "data", marks=pytest.mark.slow),
        pytest.param("softmax_cross_entropy", (P("data", "model"), P("data")), "data", marks=pytest.mark.slow),
        ("softmax_cross_entropy", (P(), P("data")), "data"),
        ("softmax_cross_entropy_with_integer_labels", (P(), P("data")), "data"),
        pytest.param(
            "softmax_cross_entropy_with_integer_labels", (P("data", "model"), P()), "data", marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("layers", [bnderiv, bnderiv.forward_mode], ids=["bnderiv", "forward_mode"])
def test_losses_of_arrays_that_are_spread_otherwise(loss, specs, spread, layers):
    logits, labels = _random((8, 4), (8, 4))
    second = jnp.arange(8) % 4 if "integer" in loss else labels
    placed = _put(logits, specs[0]), _put(second, specs[1])

    def gradient(layers, logits, labels):
        return jax.value_and_grad(lambda z: (getattr(layers, loss)(z, labels) ** 2).sum())(logits)

    actual = fast_jit(partial(gradient, layers))(*placed)
    near(actual, fast_jit(partial(gradient, bnderiv.reference))(logits, second), TIGHT)
    assert _spec(actual[1]) == _spec(placed[0])
    assert _spec(getattr(layers, loss)(*placed)) == P(spread)


def test_running_statistics_stay_where_they_are():
    x, gamma = _random((8, 4), (4,))
    running = bnderiv.init_running_stats(4, jnp.float64)

    def update(running, x, gamma):
        return bnderiv.update_running_stats(running, bnderiv.batch_norm(x, gamma, gamma)[1])

    placed = jax.tree.map(lambda a: _put(a, EVERYWHERE), running)
    actual = fast_jit(update)(placed, _put(x, P("data", "model")), _put(gamma, EVERYWHERE))
    near(actual, update(running, x, gamma), TIGHT)
    assert _spec(actual.mean) == _spec(actual.var) == P(None)


def test_a_sum_yet_to_be_taken_is_refused():
    a, b, kernel = _random((8, 6), (6, 4), (4, 4))

    def f(a, b, kernel):
        return bnderiv.dense(jnp.dot(a, b, out_sharding=P("data", None, unreduced=frozenset({"model"}))), kernel)

    with jax.set_mesh(MESH), pytest.raises(ValueError, match="x must be neither unreduced nor reduced, got P"):
        jax.eval_shape(f, _put(a, P("data", "model")), _put(b, P("model")), _put(kernel, EVERYWHERE))


def test_an_argument_whose_gradient_is_yet_to_be_summed_is_refused():
    x, kernel = _random((8, 6), (6, 4))

    def f(x, kernel):
        return bnderiv.dense(jax.reshard(x, P("data", None, reduced=frozenset({"model"}))), kernel)

    with jax.set_mesh(MESH), pytest.raises(ValueError, match="x must be neither unreduced nor reduced, got P"):
        jax.eval_shape(f, _put(x, P("data")), _put(kernel, EVERYWHERE))


@pytest.mark.slow
def test_second_derivatives_and_forward_mode():
    x, gamma = _random((8, 3), (3,))

    def loss(layers, x, gamma):
        return (layers.batch_norm_relu(x, gamma, gamma)[0] ** 3).sum()

    def hessian_times(layers, x, gamma):
        return jax.grad(lambda x: (jax.grad(partial(loss, layers))(x, gamma) * x**2).sum())(x)

    placed = _put(x, P("data")), _put(gamma, EVERYWHERE)
    expected = fast_jit(partial(hessian_times, bnderiv.reference))(x, gamma)
    for layers in (bnderiv, bnderiv.forward_mode):
        actual = fast_jit(partial(hessian_times, layers))(*placed)
        near(actual, expected, TIGHT)
        assert _spec(actual) == P("data", None)

    def slope(layers, x, gamma):
        return jax.jvp(partial(layers.batch_norm_relu), (x, gamma, gamma), (x**2, gamma, gamma))[1][0]

    actual = fast_jit(partial(slope, bnderiv.forward_mode))(*placed)
    near(actual, fast_jit(partial(slope, bnderiv.reference))(x, gamma), TIGHT)
    assert _spec(actual) == P("data", None)


def test_vmap_over_an_axis_that_is_spread():
    x, kernel = _random((4, 6, 5), (5, 4))

    def gradients(layers, x, kernel):
        return jax.grad(lambda *a: (layers.dense(*a) ** 3).sum(), (0, 1))(x, kernel)

    mapped = (fast_jit(jax.vmap(partial(gradients, layers), (0, None))) for layers in (bnderiv, bnderiv.reference))
    ours, expected = (f(_put(x, P("data")), _put(kernel, P(None, "model"))) for f in mapped)
    near(ours, expected, TIGHT)
    assert [_spec(a) for a in ours] == [_spec(a) for a in expected] == [P("data", None, None), P("data", None, "model")]


@pytest.mark.slow
def test_beside_a_mapped_axis():
    """`shard_map` over the batch alone: the channels stay spread explicitly."""
    x, gamma = _random((8, 3, 3, 4), (4,))

    def local(x, gamma):
        def loss(x):
            y, stats = bnderiv.batch_norm(x, gamma, gamma, axis_name="data")
            return jax.lax.psum((y**3).sum(), "data") + stats.var.sum()

        return jax.grad(loss)(x)

    gradient = jax.shard_map(local, mesh=MESH, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"})

    def whole(x):
        y, stats = bnderiv.reference.batch_norm(x, gamma, gamma)
        return (y**3).sum() + stats.var.sum()

    actual = fast_jit(gradient)(_put(x, P("data", None, None, "model")), _put(gamma, EVERYWHERE))
    near(actual, fast_jit(jax.grad(whole))(x), TIGHT)
    assert _spec(actual) == P("data", None, None, "model")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_step_of_lenet5():
    """As on a mesh whose axes are left to XLA, message for message."""
    config = lenet5.Config(dtype=jnp.float64)
    params, state = lenet5.init(jax.random.key(0), config)
    images = jax.random.normal(jax.random.key(1), (16, 28, 28, 1), jnp.float64)
    labels = jnp.arange(16) % 10

    def step(params, images, labels):
        def loss(params):
            logits, new_state = lenet5.apply(params, state, images, config, train=True)
            return bnderiv.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new_state

        return jax.value_and_grad(loss, has_aux=True)(params)

    expected = fast_jit(step)(params, images, labels)
    messages = []
    for axes in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), (axes,))
        by_batch, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        args = (jax.device_put(a, s) for a, s in ((params, everywhere), (images, by_batch), (labels, by_batch)))
        with jax.set_mesh(mesh):
            args = tuple(args)
            program = fast_jit(step).lower(*args).compile()
            (loss, new_state), gradient = program(*args)
        near(((loss, new_state), gradient), expected, 1e-9)
        messages.append(collectives(program))
    assert messages[0] == messages[1]
    assert set(messages[1]) == {"all-reduce"}
    assert all(_spec(g) == P(*[None] * g.ndim) for g in jax.tree.leaves(gradient))
