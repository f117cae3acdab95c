"""LeNet-5: its parameters, what it computes, how it trains."""

import dataclasses
import itertools
import json

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

import bnderiv
from bnderiv.models import lenet5
from tests import forms
from tests.case import random_like
from tests.compiling import fast_jit
from tests.contract import near

SHAPES = ((28, 28, 1), (32, 32, 1), (32, 32, 3), (29, 40, 2))
# Compiling is most of what these tests take, so: few configurations to initialize.
compiled_init = fast_jit(lenet5.init, static_argnums=1)
compiled_apply = fast_jit(lenet5.apply, static_argnames=("config", "train", "axis_name"))


def _images(config, count=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, *config.image_shape)), config.dtype)


def _shapes(config):
    return jax.eval_shape(lambda: lenet5.init(jax.random.key(0), config))


def _network(**options):
    """A network in float64 whose every parameter and running statistic is random: none hides behind a 0 or a 1."""
    config = lenet5.Config(dtype=jnp.float64, **options)
    params, state = _shapes(config)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(0.1 * rng.standard_normal(a.shape)), params)
    state = {
        name: bnderiv.RunningStats(
            mean=jnp.asarray(rng.normal(size=running.mean.shape)),
            var=jnp.asarray(rng.uniform(0.5, 2, running.var.shape)),
            count=jnp.int32(0),
        )
        for name, running in state.items()
    }
    return config, params, state


@pytest.mark.parametrize("image_shape", [(28, 28, 1), (32, 32, 1)])
def test_the_classic_numbers_of_parameters(image_shape):
    params, state = _shapes(lenet5.Config(image_shape=image_shape, batch_norm=False))
    counts = {name: sum(leaf.size for leaf in layer.values()) for name, layer in params.items()}
    assert counts == {"conv1": 156, "conv2": 2416, "dense3": 48120, "dense4": 10164, "output": 850}
    assert sum(counts.values()) == 61706
    assert state == {}


@pytest.mark.parametrize(("image_shape", "padding"), [((28, 28, 3), 2), ((28, 32, 1), 0), ((32, 28, 1), 0)])
def test_images_of_28_by_28_alone_are_padded(image_shape, padding):
    assert lenet5.Config(image_shape=image_shape).padding == padding


def test_parameters_with_batch_norm():
    params, state = _shapes(lenet5.Config())
    widths = {"bn1": 6, "bn2": 16, "bn3": 120, "bn4": 84}
    assert jax.tree.map(lambda a: a.shape, params) == {
        "conv1": {"kernel": (5, 5, 1, 6)},  # no bias: batch norm would cancel it
        "conv2": {"kernel": (5, 5, 6, 16)},
        "dense3": {"kernel": (400, 120)},
        "dense4": {"kernel": (120, 84)},
        "output": {"kernel": (84, 10), "bias": (10,)},
    } | {name: {"gamma": (n,), "beta": (n,)} for name, n in widths.items()}
    assert {name: running.mean.shape for name, running in state.items()} == {n: (w,) for n, w in widths.items()}
    assert all(isinstance(running, bnderiv.RunningStats) for running in state.values())


def test_initial_values():
    params, state = compiled_init(jax.random.key(0), lenet5.Config())
    np.testing.assert_allclose(params["dense3"]["kernel"].var(), 2 / 400, rtol=0.05)  # He et al.: 2 / fan in
    np.testing.assert_allclose(params["conv2"]["kernel"].var(), 2 / 150, rtol=0.1)
    for i in range(1, 5):
        assert (params[f"bn{i}"]["gamma"] == 1).all()
        assert (params[f"bn{i}"]["beta"] == 0).all()
        assert (state[f"bn{i}"].mean == 0).all()
        assert (state[f"bn{i}"].var == 1).all()
    assert (params["output"]["bias"] == 0).all()


@pytest.mark.parametrize("image_shape", SHAPES)
@pytest.mark.parametrize("classes", [10, 3])
def test_shape_of_the_logits(image_shape, classes):
    config = lenet5.Config(image_shape=image_shape, classes=classes)

    def run(x):
        params, state = lenet5.init(jax.random.key(0), config)
        return lenet5.apply(params, state, x, config, train=True)[0]

    assert jax.eval_shape(run, _images(config, 7)).shape == (7, classes)


@pytest.mark.few(1)
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_against_numpy_image_by_image(pool):
    """The network spelled out with SciPy's correlation: kernel orientation, order of the flattened rows, pooling."""
    config, params, _ = _network(pool=pool, activation="tanh", batch_norm=False, image_shape=(32, 30, 2))
    x = _images(config)
    numbers = jax.tree.map(np.asarray, params)

    def convolve(maps, kernel, bias):
        return np.stack(
            [correlate(maps, kernel[..., k], mode="valid")[..., 0] + bias[k] for k in range(len(bias))], axis=-1
        )

    def halve(maps):
        blocks = [maps[i : maps.shape[0] - 1 + i : 2, j : maps.shape[1] - 1 + j : 2] for i in (0, 1) for j in (0, 1)]
        return np.max(blocks, axis=0) if pool == "max" else np.mean(blocks, axis=0)

    def logits(image):
        a = halve(np.tanh(convolve(image, **numbers["conv1"])))
        a = halve(np.tanh(convolve(a, **numbers["conv2"]))).ravel()
        for name in ("dense3", "dense4"):
            a = np.tanh(a @ numbers[name]["kernel"] + numbers[name]["bias"])
        return a @ numbers["output"]["kernel"] + numbers["output"]["bias"]

    ours, state = compiled_apply(params, {}, x, config, train=True)
    near(ours, np.stack([logits(image) for image in np.asarray(x)]), 1e-11)
    assert state == {}


@pytest.mark.slow
def test_28_by_28_is_the_zero_padded_32_by_32():
    config, params, state = _network()
    x = _images(config)
    large = dataclasses.replace(config, image_shape=(32, 32, 1))
    padded = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    near(
        compiled_apply(params, state, x, config, train=True),
        compiled_apply(params, state, padded, large, train=True),
        1e-11,
    )


def _vjp(config, params, state, x, train):
    """Outputs and gradients for a random cotangent of the logits and of the running statistics."""

    def floats(params, x):
        logits, new = lenet5.apply(params, state, x, config, train=train)
        return logits, {name: (running.mean, running.var) for name, running in new.items()}

    def run(params, x):
        out, pull_back = jax.vjp(floats, params, x)
        return out, pull_back(random_like(out, 5))

    return fast_jit(run)(params, x)


# These gradients are also held against the derivation step by step, in `test_steps.py`.
BY_STEPS = [pytest.mark.slow, pytest.mark.exhaustive]
ALWAYS = (("max", "relu", True, True), ("avg", "tanh", True, True), ("avg", "sigmoid", False, True))


@pytest.mark.few(1, 1)
@pytest.mark.parametrize(
    ("pool", "activation", "batch_norm", "train"),
    [
        *(
            pytest.param(*network, True, marks=[] if (*network, True) in ALWAYS else BY_STEPS)
            for network in itertools.product(("max", "avg"), ("relu", "tanh", "sigmoid"), (True, False))
        ),
        ("max", "relu", True, False),
        pytest.param("avg", "tanh", True, False, marks=pytest.mark.slow),
    ],
)
def test_gradient_equals_autodiff(pool, activation, batch_norm, train):
    """Every δ and ΔW of the chain at once."""
    config, params, state = _network(pool=pool, activation=activation, batch_norm=batch_norm)
    autodiff = dataclasses.replace(config, gradients="autodiff")
    x = _images(config, 3)
    near(_vjp(config, params, state, x, train), _vjp(autodiff, params, state, x, train), 1e-10)


@pytest.mark.parametrize(("gradients", "by_hand"), [("closed_form", True), ("autodiff", False)])
def test_which_gradients_are_attached(gradients, by_hand):
    config, params, state = _network(gradients=gradients)
    run = jax.make_jaxpr(lambda p, x: lenet5.apply(p, state, x, config, train=True))
    assert ("custom_vjp_call" in str(run(params, _images(config)))) == by_hand


@pytest.mark.slow
@pytest.mark.parametrize("activation", [pytest.param("relu", marks=pytest.mark.slow), "tanh"])
def test_evaluation_is_the_network_with_batch_norm_folded_into_the_kernels(activation):
    config, params, state = _network(activation=activation, pool="avg", eps=1e-3)
    x = _images(config)
    folded = {"output": params["output"]}
    for i, name in enumerate(("conv1", "conv2", "dense3", "dense4"), start=1):
        (gamma, beta), running = (params[f"bn{i}"][k] for k in ("gamma", "beta")), state[f"bn{i}"]
        slope = gamma / jnp.sqrt(running.var + 1e-3)
        kernel = params[name]["kernel"]
        folded[name] = {"kernel": kernel * jnp.broadcast_to(slope, kernel.shape), "bias": beta - running.mean * slope}
    logits, same = compiled_apply(params, state, x, config, train=False)
    plain = dataclasses.replace(config, batch_norm=False)
    near(logits, compiled_apply(folded, {}, x, plain, train=False)[0], 1e-11)
    chex.assert_trees_all_equal(same, state)


@pytest.mark.parametrize("activation", ["relu", pytest.param("tanh", marks=pytest.mark.slow)])
def test_training_renews_the_running_statistics(activation):
    config, params, state = _network(momentum=0.7, activation=activation, image_shape=(32, 32, 1))
    x = _images(config)
    _, new = compiled_apply(params, state, x, config, train=True)
    z = jax.lax.conv_general_dilated(
        x, params["conv1"]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    z = np.asarray(z).reshape(-1, 6)
    near(new["bn1"].mean, 0.7 * np.asarray(state["bn1"].mean) + 0.3 * z.mean(0), 1e-11)
    near(new["bn1"].var, 0.7 * np.asarray(state["bn1"].var) + 0.3 * z.var(0, ddof=1), 1e-11)
    assert [int(running.count) for running in new.values()] == [1, 1, 1, 1]
    assert all((new[name].mean != state[name].mean).all() for name in state)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float64, *(pytest.param(d, marks=pytest.mark.slow) for d in (jnp.float16, jnp.float32))]
)
def test_dtypes(dtype):
    config = lenet5.Config(dtype=dtype, image_shape=(32, 32, 1))

    def run(x, train):
        params, state = lenet5.init(jax.random.key(0), config)
        logits, new = lenet5.apply(params, state, x, config, train=train)
        return params, state, logits, new

    for train in (True, False):
        x = jax.ShapeDtypeStruct((4, 32, 32, 1), jnp.float32)  # cast to the network's dtype
        params, state, logits, new = jax.eval_shape(lambda x, train=train: run(x, train), x)
        assert {leaf.dtype for leaf in jax.tree.leaves((params, logits))} == {jnp.dtype(dtype)}
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        assert {s.dtype for running in state.values() for s in (running.mean, running.var)} == {jnp.dtype(wide)}


@pytest.mark.slow
def test_a_training_step_compiles_once_and_learns():
    config = lenet5.Config()
    params, state = compiled_init(jax.random.key(0), config)
    labels = jnp.arange(16) % 10

    @fast_jit
    @chex.assert_max_traces(n=1)
    def step(params, state, x):
        def loss(params):
            logits, new = lenet5.apply(params, state, x, config, train=True)
            return bnderiv.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), new, value

    losses = []
    for _ in range(8):
        params, state, value = step(params, state, _images(config, 16))
        losses.append(float(value))
    assert losses[-1] < 0.2 * losses[0]
    assert int(state["bn4"].count) == 8


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_batch_spread_over_a_mapped_axis_shares_its_statistics():
    config, params, state = _network()
    x = _images(config, 6)
    spread = fast_jit(
        jax.vmap(
            lambda part: lenet5.apply(params, state, part, config, train=True, axis_name="parts"), axis_name="parts"
        ),
    )
    logits, new = spread(x.reshape(3, 2, 28, 28, 1))
    expected, expected_new = compiled_apply(params, state, x, config, train=True)
    near(logits.reshape(6, 10), expected, 1e-10)
    for i in range(3):
        near(jax.tree.map(lambda a, i=i: a[i], new), expected_new, 1e-10)


@pytest.mark.slow
def test_exported_for_another_platform_a_step_convolves():
    """Twice forward and three times backward."""
    config = lenet5.Config(batch_norm=False)

    def step(params, x, labels):
        def loss(params):
            logits, _ = lenet5.apply(params, {}, x, config, train=True)
            return bnderiv.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.value_and_grad(loss)(params)

    arguments = _shapes(config)[0], jnp.zeros((8, 28, 28, 1), jnp.float32), jnp.zeros(8, jnp.int32)
    for platform, convolutions in {"cpu": 0, "cuda": 5, "rocm": 5, "tpu": 5}.items():
        program = jax.export.export(jax.jit(step), platforms=[platform])(*arguments)
        assert program.mlir_module().count("stablehlo.convolution") == convolutions


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_gradient_equals_autodiff_in_the_form_of(platform):
    config, params, state = _network()
    x = _images(config, 3)
    expected = _vjp(dataclasses.replace(config, gradients="autodiff"), params, state, x, True)
    with forms.of(platform):
        near(_vjp(config, params, state, x, True), expected, 1e-10)


def test_config_is_a_value():
    from_json = lenet5.Config(**json.loads('{"dtype": "float32", "image_shape": [28, 28, 1]}'))
    assert from_json == lenet5.Config()
    assert hash(from_json) == hash(lenet5.Config())
    assert lenet5.Config(pool="avg") != lenet5.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        lenet5.Config().pool = "avg"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "min"}, "pool must be one of 'max', 'avg', got 'min'"),
        ({"pool": None}, "pool must be one of 'max', 'avg', got None"),
        ({"activation": "gelu"}, "activation must be one of 'relu', 'tanh', 'sigmoid', got 'gelu'"),
        ({"gradients": "numeric"}, "gradients must be one of .*'closed_form'.*, got 'numeric'"),
        ({"batch_norm": 1}, "batch_norm must be True or False, got 1"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"dtype": jnp.int32}, "dtype must be a floating dtype"),
        ({"dtype": "float"}, None),
        ({"dtype": "number"}, "dtype must be a floating dtype, got 'number'"),
        ({"dtype": None}, "dtype must be a floating dtype, got None"),
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\], .* got 1.5"),
        ({"momentum": None}, r"momentum must lie in \[0, 1\], .* got None"),
        ({"eps": -1e-5}, "eps must be finite and at least 0, .* got -1e-05"),
        ({"eps": np.inf}, "eps must be finite and at least 0, .* got inf"),
        ({"image_shape": (28, 28)}, r"image_shape must be \(rows, columns, channels\), got \(28, 28\)"),
        ({"image_shape": 28}, r"image_shape must be \(rows, columns, channels\), got 28"),
        ({"image_shape": (27, 28, 1)}, "image_shape must be at least 28×28, got 27×28"),
        ({"image_shape": (32, 20, 1)}, "image_shape must be at least 28×28, got 32×20"),
        ({"image_shape": (28, 28, 0)}, r"image_shape\[2\] must be at least 1, got 0"),
    ],
)
def test_refused_options(options, message):
    if message is None:
        assert lenet5.Config(**options).dtype == jnp.float64
        return
    with pytest.raises(ValueError, match=message):
        lenet5.Config(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 32, 32, 1), r"x must have shape \(4, 28, 28, 1\).*\[4, 32, 32, 1\]"),
        ((4, 28, 28, 3), r"x must have shape \(4, 28, 28, 1\)"),
        ((0, 28, 28, 1), r"x must not be empty, got float\d+\[0, 28, 28, 1\]"),
        ((28, 28, 1), r"x must have rank 4"),
        ((4, 784), r"x must have rank 4"),
    ],
)
def test_refused_images(shape, message):
    config = lenet5.Config()
    params, state = compiled_init(jax.random.key(0), config)
    with pytest.raises(ValueError, match=message):
        lenet5.apply(params, state, jnp.zeros(shape), config, train=False)
    with pytest.raises(TypeError, match="x must have a floating dtype"):
        lenet5.apply(params, state, jnp.zeros((4, 28, 28, 1), jnp.uint8), config, train=False)
