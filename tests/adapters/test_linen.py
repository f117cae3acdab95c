"""`bnderiv.linen.BatchNorm` against `flax.linen.BatchNorm`, module against module."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

nn = pytest.importorskip("flax.linen", reason="needs the extra flax")

from flax import serialization

import bnderiv.linen
from tests.adapters.alike import NEAR_1, alike, averages, nearest, normal, sgd
from tests.compiling import fast_jit
from tests.normalization.truth import batch_norm as truth
from tests.normalization.truth import relative_error

OURS: Any = bnderiv.linen.BatchNorm
THEIRS: Any = nn.BatchNorm
RANDOM = {"scale_init": nn.initializers.normal(1.0), "bias_init": nn.initializers.normal(1.0)}
KEY = jax.random.key(0)


class Network(nn.Module):
    """Convolutions, batch norm, ReLU, a mean over the image and a dense layer."""

    batch_norm: Any
    dtype: Any = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, x, train):
        dtypes = {"dtype": self.dtype, "param_dtype": jnp.promote_types(self.dtype, jnp.float32)}
        for features in (8, 12):
            x = nn.Conv(features, (3, 3), use_bias=False, **dtypes)(x)
            x = self.batch_norm(not train, momentum=0.9, axis_name=self.axis_name, **RANDOM, **dtypes)(x)
            x = nn.relu(x)
        return nn.Dense(5, **dtypes)(x.mean((1, 2)))


def init(model, *args):
    return fast_jit(lambda: model.init(KEY, *args))()


def wide(variables, dtype=jnp.float64):
    """The variables with float64 statistics, if `dtype` is float64.

    Flax makes them float32, and takes the first step with its momentum rounded to float32.
    """
    return jax.tree.map(lambda a: a.astype(dtype), variables) if dtype == jnp.float64 else variables


def train(model, variables, x, target, steps):
    """`steps` of gradient descent, and what comes of them at inference."""

    @fast_jit
    def step(variables):
        def loss(params):
            y, updated = model.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return jnp.square(y - target).sum() / len(x), updated

        gradient, updated = jax.grad(loss, has_aux=True)(variables["params"])
        return {"params": sgd(variables["params"], gradient, 0.01), **updated}

    for _ in range(steps):
        variables = step(variables)
    return variables, fast_jit(lambda v: model.apply(v, x, False))(variables)


def with_gradient(model, variables, x, *, delta, jit=True, **options):
    """y, the new statistics, and the gradients of ⟨delta, y⟩ by parameters and x."""

    def product(params, x):
        y, updated = model.apply({**variables, "params": params}, x, mutable=["batch_stats"], **options)
        return jnp.vdot(delta.astype(jnp.float32), y.astype(jnp.float32)), (y, updated)

    differentiated = jax.value_and_grad(product, (0, 1), has_aux=True)
    (_, (y, updated)), gradient = (fast_jit(differentiated) if jit else differentiated)(variables.get("params", {}), x)
    return y, updated, gradient


# --- Ten steps ---


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_ten_steps_of_training_then_inference(dtype):
    x, target = normal(0, (16, 6, 6, 3), dtype), normal(1, (16, 5), dtype)
    with jax.numpy_dtype_promotion("standard"):  # Flax's statistics are float32 whatever enters them
        variables = init(Network(THEIRS, dtype), x, True)
        alike(init(Network(OURS, dtype), x, True), variables, 0)
        variables = wide(variables, dtype)
        ours = train(Network(OURS, dtype), variables, x, target, 10)
        theirs = train(Network(THEIRS, dtype), variables, x, target, 10)
    assert not np.allclose(theirs[0]["params"]["BatchNorm_0"]["scale"], variables["params"]["BatchNorm_0"]["scale"])
    # In bfloat16 ten steps apart in their roundings are further apart than one.
    alike(ours, theirs, 0.05 if dtype == jnp.bfloat16 else None)


@pytest.mark.slow
def test_checkpoints_of_each_continue_in_the_other():
    x, target = normal(0, (16, 6, 6, 3), jnp.float64), normal(1, (16, 5), jnp.float64)
    ours, theirs = (Network(module, jnp.float64) for module in (OURS, THEIRS))
    with jax.numpy_dtype_promotion("standard"):
        start = wide(init(theirs, x, True))
        expected = train(theirs, start, x, target, 6)
        for first, second in ((ours, theirs), (theirs, ours)):
            halfway = serialization.to_bytes(train(first, start, x, target, 3)[0])
            alike(train(second, serialization.from_bytes(start, halfway), x, target, 3), expected)


# --- One step, every option ---


@pytest.mark.few(1, 1)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 3, 5), {}),
        pytest.param((6, 5, 3), {"axis": 1, "epsilon": 0.1, "momentum": 0.5}, marks=pytest.mark.slow),
        pytest.param((6, 4, 3, 5), {"axis": (1, -1)}, marks=pytest.mark.slow),
        pytest.param((6, 4, 3), {"axis": ()}, marks=pytest.mark.slow),
        pytest.param((9, 4), {"axis": 0, "use_scale": False}, marks=pytest.mark.slow),
        pytest.param((6, 4, 3), {"axis": (2, 1), "use_bias": False}, marks=pytest.mark.slow),
        pytest.param(
            (6, 4, 3), {"use_scale": False, "use_bias": False, "use_fast_variance": False}, marks=pytest.mark.slow
        ),
    ],
)
def test_variables_values_gradients_and_statistics(shape, options):
    x, delta = normal(0, shape, jnp.float64), normal(1, shape)
    options = {"use_running_average": False, "dtype": jnp.float64, "param_dtype": jnp.float64, **RANDOM, **options}
    with jax.numpy_dtype_promotion("standard"):
        variables = init(THEIRS(**options), x)
        alike(init(OURS(**options), x), variables, 0)
        variables = wide(variables)
        ours, theirs = (with_gradient(module(**options), variables, x, delta=delta) for module in (OURS, THEIRS))
        alike(ours, theirs)
        variables = {**variables, **theirs[1]}
        options["use_running_average"] = True
        ours, theirs = (with_gradient(module(**options), variables, x, delta=delta) for module in (OURS, THEIRS))
        alike(ours, theirs)


def test_two_axes_of_features_among_others():
    x = normal(0, (6, 2, 5, 3))
    y, variables = fast_jit(lambda x: OURS(False, axis=(1, -1)).init_with_output(KEY, x))(x)
    x = np.asarray(x)
    mean, var = x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True)
    alike(y, (x - mean) / np.sqrt(var + 1e-5), 1e-5)
    assert variables["batch_stats"]["mean"].shape == (2, 3)


@pytest.mark.slow
def test_a_single_example_and_a_single_element():
    for shape, axis in (((7,), -1), ((3, 4), (0, 1))):  # one element a feature: y is the bias
        x = normal(0, shape)
        model = OURS(False, axis=axis, **RANDOM)
        variables = model.init(KEY, x)
        y, updated = model.apply(variables, x, mutable=["batch_stats"])
        np.testing.assert_array_equal(y, variables["params"]["bias"])
        np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.01 * x, rtol=1e-6)
        np.testing.assert_allclose(updated["batch_stats"]["var"], np.full(shape, 0.99), rtol=1e-6)


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize("dtype", [None, jnp.float16])
@pytest.mark.parametrize(
    ("param_dtype", "reductions"), [(jnp.float32, True), (jnp.bfloat16, True), (jnp.bfloat16, False)]
)
def test_every_dtype_is_flax_s(x_dtype, dtype, param_dtype, reductions):
    x = normal(0, (32, 5), scale=4).astype(x_dtype)
    options = {"dtype": dtype, "param_dtype": param_dtype, "force_float32_reductions": reductions, **RANDOM}
    ours, theirs = OURS(**options), THEIRS(**options)
    if x_dtype == jnp.int32 and not reductions and dtype is None:
        pytest.skip("Flax's statistics would be integers")
    with jax.numpy_dtype_promotion("standard"):
        variables = theirs.init(KEY, x, False)
        alike(ours.init(KEY, x, False), variables, 0)
        expected = theirs.apply(variables, x, False, mutable=["batch_stats"])
        alike(ours.apply(variables, x, False, mutable=["batch_stats"]), expected, 0.02)
        variables = {**variables, **expected[1]}
        alike(ours.apply(variables, x, True), theirs.apply(variables, x, True), 0.02)


@pytest.mark.slow
def test_half_precision_needs_no_implicit_promotion():
    x = normal(0, (8, 5), jnp.bfloat16)  # Flax itself raises here, under jax_numpy_dtype_promotion=strict
    model = OURS(False, dtype=jnp.bfloat16)
    y, updated = model.apply(model.init(KEY, x), x, mutable=["batch_stats"])
    assert (y.dtype, updated["batch_stats"]["mean"].dtype) == (jnp.bfloat16, jnp.float32)


def test_positional_arguments_are_flax_s():
    fields = [name for name in THEIRS.__dataclass_fields__ if name not in ("parent", "name")]
    assert [name for name in OURS.__dataclass_fields__ if name not in ("parent", "name")] == [
        *fields,
        "activation",
        "forward_mode",
    ]
    for name in fields:
        assert OURS.__dataclass_fields__[name].default == THEIRS.__dataclass_fields__[name].default
    assert OURS(True, 1, 0.5).momentum == 0.5


# --- The numbers ---


@pytest.mark.slow
@pytest.mark.parametrize("mean", [1e3, 1e4])
def test_means_far_above_the_deviation(mean):
    x, delta = normal(0, (32, 12, 12, 3), mean=mean, scale=1), normal(1, (32, 12, 12, 3))
    ours, theirs = module_errors(OURS, x, delta), module_errors(THEIRS, x, delta)
    assert max(ours) < 4e-7
    assert min(theirs) > 1e-2  # what the tests above would not see


def module_errors(module, x, delta):
    """Relative errors of y and dx."""
    model = module(use_running_average=False)
    y, _, (_, dx) = with_gradient(model, model.init(KEY, x), x, delta=delta)
    expected = truth(x, np.ones(3), np.zeros(3), delta)
    return relative_error(y, expected[0]), relative_error(dx, expected[1])


@pytest.mark.slow
def test_saves_x_alone_with_and_without_activation():
    x = normal(0, (16, 8, 8, 4))
    for activation in (None, "relu"):
        model = OURS(False, activation=activation)
        variables = model.init(KEY, x)

        def apply(params, x, model=model, variables=variables):
            return model.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]

        saved = jax.eval_shape(lambda p, x, f=apply: jax.vjp(f, p, x)[1], variables["params"], x)
        sizes = sorted(a.size for a in jax.tree.leaves(saved))
        assert sizes[-1] == x.size
        assert sum(sizes[:-1]) < x.size / 10


@pytest.mark.slow
@pytest.mark.parametrize("average", [False, True])
def test_relu_within_the_rule(average):
    x, delta = normal(0, (16, 4, 4, 6), jnp.float64), normal(1, (16, 4, 4, 6))
    options = {"use_running_average": average, "dtype": jnp.float64, "param_dtype": jnp.float64, **RANDOM}

    class Separate(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(THEIRS(**options, name="norm")(x))

    class Fused(nn.Module):
        @nn.compact
        def __call__(self, x):
            return OURS(**options, activation="relu", name="norm")(x)

    with jax.numpy_dtype_promotion("standard"):
        variables = wide(init(Separate(), x))
        fused, separate = (with_gradient(module, variables, x, delta=delta) for module in (Fused(), Separate()))
    alike(fused, separate)


@pytest.mark.few(0, 2)
@pytest.mark.parametrize("axis", [-1, pytest.param((1, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize("average", [False, True])
def test_a_residual_within_the_rule(average, axis):
    x, z, delta = normal(0, (6, 4, 3), jnp.float64), normal(1, (6, 4, 3), jnp.float64), normal(2, (6, 4, 3))
    options = {"axis": axis, "dtype": jnp.float64, "param_dtype": jnp.float64, **RANDOM}

    def composed(params, x, z):
        y, updated = THEIRS(average, **options).apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return nn.relu(y + z), updated

    def fused(params, x, z):
        model = OURS(average, **options, activation="relu")
        return model.apply({**variables, "params": params}, x, residual=z, mutable=["batch_stats"])

    def gradient(f):
        def product(*args):
            y, updated = f(*args)
            return jnp.vdot(delta, y), (y, updated)

        return fast_jit(jax.value_and_grad(product, (0, 1, 2), has_aux=True))(variables["params"], x, z)

    with jax.numpy_dtype_promotion("standard"):
        variables = wide(init(THEIRS(average, **options), x))
        alike(gradient(fused), gradient(composed))


@pytest.mark.few(1)
@pytest.mark.parametrize(("dtype", "momentum"), NEAR_1)
def test_a_momentum_near_1_leaves_the_batch_its_weight(dtype, momentum):
    old, new = averages(0, dtype)
    x = jnp.broadcast_to(new, (4, 64))
    model = OURS(False, momentum=momentum, param_dtype=dtype, force_float32_reductions=False)
    variables = model.init(KEY, x)
    variables["batch_stats"]["mean"] = old
    _, updated = model.apply(variables, x, mutable=["batch_stats"])
    nearest(updated["batch_stats"]["mean"], momentum, old, new)


# --- Masks and devices ---


@pytest.mark.slow
def test_masks():
    x, delta = normal(0, (8, 6, 5), jnp.float64), normal(1, (8, 6, 5))
    for axis, shape in ((-1, (8, 6, 1)), (-1, (6, 5)), (1, (8, 6, 5)), ((1, 2), (8, 1, 5))):
        mask = jnp.asarray(np.random.default_rng(2).random(shape) < 0.7).at[..., 0].set(True)
        options = {"use_running_average": False, "axis": axis, "dtype": jnp.float64, "param_dtype": jnp.float64}
        with jax.numpy_dtype_promotion("standard"):
            variables = wide(init(THEIRS(**options, **RANDOM), x))
            ours, theirs = (with_gradient(m(**options), variables, x, delta=delta, mask=mask) for m in (OURS, THEIRS))
        alike(ours, theirs)


@pytest.mark.parametrize("dtype", ["int32", "float32", ">i4"])
def test_a_mask_of_zeros_and_ones(dtype):
    x, mask = normal(0, (8, 3)), np.arange(8)[:, None] < 5
    of_numbers, of_booleans = (
        OURS(False).init_with_output(KEY, x, mask=m) for m in (mask.astype(dtype), jnp.asarray(mask))
    )
    alike(of_numbers, of_booleans, 0.0)


@pytest.mark.slow
def test_nothing_behind_a_mask_reaches_anything():
    mask = jnp.arange(8)[:, None] < 5
    x = jnp.where(mask, normal(0, (8, 3)), jnp.nan)
    model = OURS(False)
    variables = model.init(KEY, x)
    y, updated, (d_params, dx) = with_gradient(
        model, variables, x, delta=jnp.where(mask, normal(1, x.shape), 0), mask=mask
    )
    alone = with_gradient(model, variables, x[:5], delta=normal(1, x.shape)[:5])
    alike((y[:5], updated, (d_params, dx[:5])), alone, 1e-6)
    np.testing.assert_array_equal(dx[5:], 0)


def test_features_without_elements_keep_their_statistics():
    x, mask = normal(0, (8, 3)), jnp.asarray([True, False, True])
    model = OURS(False, momentum=0.5)
    variables = {"batch_stats": {"mean": jnp.full(3, 7.0, jnp.float32), "var": jnp.full(3, 5.0, jnp.float32)}}
    variables = {**model.init(KEY, x), **variables}
    y, updated = model.apply(variables, x, mask=mask, mutable=["batch_stats"])
    assert np.isfinite(y).all()
    assert (updated["batch_stats"]["mean"][1], updated["batch_stats"]["var"][1]) == (7, 5)
    assert updated["batch_stats"]["mean"][0] != 7


@pytest.mark.slow
def test_groups_of_devices():
    """The module is initialized outside of the map."""
    x = normal(0, (4, 5, 3))
    model = OURS(False, axis_name="i", axis_index_groups=((0, 1), (2, 3)))
    variables = model.init(KEY, x[0])
    y, _ = jax.pmap(lambda x: model.apply(variables, x, mutable=["batch_stats"]), axis_name="i")(x)
    pairs = np.asarray(x).reshape(2, 10, 3)
    mean, var = pairs.mean(1, keepdims=True), pairs.var(1, keepdims=True)
    alike(y.reshape(pairs.shape), (pairs - mean) / np.sqrt(var + 1e-5), 1e-5)


@pytest.mark.slow
def test_over_devices_by_true_counts():
    x, delta = normal(0, (24, 4)), normal(1, (24, 4))
    mask = jnp.asarray(np.random.default_rng(2).random(24) < 0.6).at[:3].set(False)[:, None]  # one shard has none
    model = OURS(False, axis_name="batch", **RANDOM)
    variables = model.init(KEY, x[:1])  # the axis need not exist yet
    whole = with_gradient(OURS(False), variables, x, delta=delta, mask=mask)

    @partial(jax.vmap, axis_name="batch", in_axes=(None, 0, 0), out_axes=(0, None))
    def apply(params, x, mask):
        return model.apply({**variables, "params": params}, x, mask=mask, mutable=["batch_stats"])

    def product(params, x):
        split = [a.reshape(8, 3, -1) for a in (x, mask)]
        y, updated = apply(params, split[0], split[1])
        y = y.reshape(x.shape)
        return jnp.vdot(delta, y), (y, updated)

    differentiated = fast_jit(jax.value_and_grad(product, (0, 1), has_aux=True))
    (_, (y, updated)), gradient = differentiated(variables["params"], x)
    alike((y, updated, gradient), whole, 1e-6)


@pytest.mark.slow
def test_shard_map_over_two_axes_and_training_across_devices():
    x, target = normal(0, (16, 6, 6, 3)), normal(1, (16, 5))
    mesh = jax.make_mesh((4, 2), ("host", "device"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    alone, spread = Network(OURS), Network(OURS, axis_name=("host", "device"))
    variables = init(alone, x, True)

    def loss(params, model, x, target):
        y, updated = model.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        return jnp.square(y - target).mean(), updated

    @fast_jit
    @partial(
        jax.shard_map, mesh=mesh, in_specs=(P(), P(("host", "device")), P(("host", "device"))), out_specs=(P(), P())
    )
    def across(params, x, target):
        def mean(params):
            value, updated = loss(params, spread, x, target)
            return jax.lax.pmean(value, ("host", "device")), updated

        return jax.grad(mean, has_aux=True)(params)

    whole = fast_jit(lambda params, x, target: jax.grad(loss, has_aux=True)(params, alone, x, target))
    alike(across(variables["params"], x, target), whole(variables["params"], x, target))


# --- Transforms ---


class Block(nn.Module):
    batch_norm: Any

    @nn.compact
    def __call__(self, x, _=None):
        kinds = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        x = nn.Dense(6, use_bias=False, **kinds)(x)
        return nn.relu(self.batch_norm(False, momentum=0.9, **kinds)(x)), None


class Scanned(nn.Module):
    batch_norm: Any

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        return nn.scan(Block, axes, split_rngs={"params": True}, length=4)(self.batch_norm)(x, None)[0]


class Rematerialized(nn.Module):
    batch_norm: Any

    @nn.compact
    def __call__(self, x):
        return nn.remat(Block)(self.batch_norm, name="block")(x)[0]


class Ensemble(nn.Module):
    batch_norm: Any

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        block = nn.vmap(Block, axes, split_rngs={"params": True}, in_axes=None, axis_size=3)
        return block(self.batch_norm)(x)[0]


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("model", [Scanned, Rematerialized, Ensemble])
@pytest.mark.parametrize("jit", [True, False])
def test_lifted_transforms(model, jit):
    # Float64 statistics from the start: nn.scan wants the carried state to keep its dtype.
    x = normal(0, (10, 6), jnp.float64)
    results = []
    with jax.numpy_dtype_promotion("standard"):
        variables = jax.tree.map(lambda a: a.astype(jnp.float64), init(model(THEIRS), x))
        assert jax.tree.structure(variables) == jax.tree.structure(jax.eval_shape(lambda: model(OURS).init(KEY, x)))
        shape = jax.eval_shape(lambda: model(THEIRS).apply(variables, x, mutable=["batch_stats"])[0])
        for module in (OURS, THEIRS):
            results.append(with_gradient(model(module), variables, x, delta=normal(1, shape.shape), jit=jit))
    alike(*results)


@pytest.mark.slow
def test_vmap_over_independent_batches():
    x = normal(0, (3, 8, 4))
    model = OURS(False)
    variables = model.init(KEY, x[0])
    apply = partial(model.apply, mutable=["batch_stats"])
    each = fast_jit(jax.vmap(apply, (None, 0)))(variables, x)
    alike(jax.tree.map(lambda a: a[1], each), fast_jit(apply)(variables, x[1]), 1e-6)


# --- What it says ---


@pytest.mark.parametrize(
    ("options", "x", "error", "message"),
    [
        ({}, np.ones((2, 3), jnp.complex64), TypeError, "x must be real, got complex64"),
        ({}, np.ones((2, 3), ">f4"), TypeError, r"x must have the byte order of this machine, got >f4\[2, 3\]"),
        ({}, np.ones((2, 3), object), TypeError, r"x must have a dtype that JAX has.*, got object\[2, 3\]"),
        (
            {"activation": "gelu"},
            np.ones((2, 3), jnp.float32),
            ValueError,
            "activation must be None or \"relu\", got 'gelu'",
        ),
        ({"axis": 2}, np.ones((2, 3), jnp.float32), ValueError, r"axis must lie in \[-2, 2\)"),
        ({"axis": 1.0}, np.ones((2, 3), jnp.float32), TypeError, "axis must be an integer"),
        ({"epsilon": -1.0}, np.ones((2, 3), jnp.float32), ValueError, "eps must be finite and at least 0"),
    ],
)
def test_errors(options, x, error, message):
    with pytest.raises(error, match=message):
        OURS(False, **options).init(KEY, x)


def test_errors_at_the_call():
    x = normal(0, (4, 3))
    with pytest.raises(ValueError, match="use_running_average"):
        OURS().init(KEY, x)
    with pytest.raises(ValueError, match=r"mask must broadcast to the shape of x, \(4, 3\), got shape \(4,\)"):
        OURS(False).init(KEY, x, mask=jnp.ones(4, bool))
    for average in (False, True):
        with pytest.raises(ValueError, match='residual must come with activation="relu", got None'):
            OURS(average).init(KEY, x, residual=x)
        with pytest.raises(ValueError, match=r"residual must have shape \(4, 3\) \(that of the input\), got .*\[3\]"):
            OURS(average, activation="relu").init(KEY, x, residual=x[0])


@pytest.mark.slow
def test_empty_batches():
    x = jnp.zeros((0, 3), jnp.float32)
    model = OURS(momentum=0.5)
    variables = model.init(KEY, x, False)
    y, updated = model.apply(variables, x, False, mutable=["batch_stats"])
    assert y.shape == x.shape
    alike(updated, {"batch_stats": variables["batch_stats"]}, 0)
    assert model.apply(variables, x, True).shape == x.shape


@pytest.mark.parametrize("name", ["BatchNorm", "BatchRenorm"])
def test_a_summary_has_no_row_for_a_method_within(name):
    model = getattr(bnderiv.linen, name)(use_running_average=False)
    summary = nn.tabulate(model, jax.random.key(0), show_repeated=True)(jnp.ones((4, 3), jnp.float32))
    assert name in summary
    assert "_renorm" not in summary
