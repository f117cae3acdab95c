"""Layer, RMS, group and instance norm of `bnderiv.linen` against those of `flax.linen`, module against module."""

import contextlib
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
from bnderiv import forward_mode
from tests.adapters.alike import alike, normal, sgd
from tests.adapters.norm_truth import errors
from tests.compiling import fast_jit

NORMS = ["LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]
BIASED = [name for name in NORMS if name != "RMSNorm"]
FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
KEY = jax.random.key(0)
OURS: Any = bnderiv.linen


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """Our module and Flax's, with parameters drawn at random."""
    random = {"scale_init": nn.initializers.normal(1.0), "bias_init": nn.initializers.normal(1.0)}
    if name == "RMSNorm":
        del random["bias_init"]
    return tuple(getattr(module, name)(**{**random, **options}) for module in (bnderiv.linen, nn))


@contextlib.contextmanager
def as_flax_needs():
    """Flax promotes dtypes and ranks; ours does not, as the tests without this show."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def mask_of(shape):
    """One that counts the first two places of the last axis, of each group of two or three."""
    mask = np.random.default_rng(2).random(shape) < 0.7
    mask[..., ::3] = mask[..., 1::3] = True
    return jnp.asarray(mask)


def with_gradient(model, variables, x, mask=None):
    """y, and the gradients of ⟨delta, y⟩ by parameters and x."""

    def product(params, x):
        y = model.apply({"params": params}, x, mask=mask)
        return jnp.vdot(normal(1, x.shape, y.dtype), y), y

    (_, y), gradient = fast_jit(jax.value_and_grad(product, (0, 1), has_aux=True))(variables.get("params", {}), x)
    return y, gradient


CASES = [
    ("LayerNorm", (4, 3, 6), {}, True),
    ("LayerNorm", (3, 4, 5, 6), {"reduction_axes": (1, 2, 3), "use_bias": False, "use_fast_variance": False}, False),
    ("LayerNorm", (3, 4, 6), {"reduction_axes": (-2, 0), "feature_axes": (1, 2), "epsilon": 0.1}, True),
    ("LayerNorm", (3, 4), {"reduction_axes": (), "use_scale": False}, False),
    ("RMSNorm", (4, 3, 6), {}, True),
    ("RMSNorm", (3, 4, 6), {"reduction_axes": (1, 2), "epsilon": 0.1}, False),
    ("GroupNorm", (3, 4, 5, 6), {"num_groups": 2}, True),
    ("GroupNorm", (3, 4, 6), {"num_groups": 2, "reduction_axes": (0, 1, 2)}, False),  # all axes, few channels
    ("GroupNorm", (3, 4, 6), {"num_groups": None, "group_size": 3, "reduction_axes": -1, "use_scale": False}, False),
    ("InstanceNorm", (3, 4, 5, 6), {}, True),
    ("InstanceNorm", (3, 4, 5, 6), {"feature_axes": (1, -1), "use_bias": False}, False),
]
QUICK = {0, 4, 6}


@pytest.mark.few(1, 2)
@pytest.mark.parametrize(
    ("name", "shape", "options", "masked"),
    [pytest.param(*case, marks=[] if i in QUICK else pytest.mark.slow) for i, case in enumerate(CASES)],
)
def test_parameters_values_and_gradients(name, shape, options, masked):
    x = normal(0, shape, jnp.float64)
    ours, theirs = pair(name, **options, **FLOAT64)
    with as_flax_needs():
        variables = theirs.init(KEY, x)
        alike(ours.init(KEY, x), variables, 0)
        for mask in (None, mask_of(shape)) if masked else (None,):
            alike(with_gradient(ours, variables, x, mask), with_gradient(theirs, variables, x, mask))


def test_groups_of_one_channel_are_those_of_instance_norm():
    x = normal(0, (2, 4, 3))
    group, instance = OURS.GroupNorm(num_groups=None, group_size=1), OURS.InstanceNorm()
    alike(*fast_jit(lambda x: [norm.init_with_output(KEY, x)[0] for norm in (group, instance)])(x), tolerance=1e-6)


@pytest.mark.few(0)
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])  # merged in two ways
def test_parts_of_the_features_under_a_map_are_normalized_together(name):
    x, options = normal(0, (2, 5, 3)), {"use_scale": False, **({"use_bias": False} if name in BIASED else {})}
    parts, whole = (getattr(OURS, name)(axis_name=axis, **options) for axis in ("parts", None))

    def of_parts(x):
        return jnp.concatenate(list(jax.vmap(lambda x: parts.apply({}, x), axis_name="parts")(x)), -1)

    def of_all(x):
        return whole.apply({}, jnp.concatenate(list(x), -1))

    @fast_jit
    def both(x):
        return [(f(x), jax.grad(lambda x, f=f: jnp.vdot(normal(1, (5, 6)), f(x)))(x)) for f in (of_parts, of_all)]

    alike(*both(x), tolerance=2e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NORMS)
def test_every_dtype_is_flax_s(name):
    options = {"num_groups": 2} if name == "GroupNorm" else {}
    for x_dtype in (jnp.float32, jnp.bfloat16, jnp.int32):
        x = normal(0, (4, 5, 6), scale=4).astype(x_dtype)
        for dtypes in ({}, {"dtype": jnp.float16}, {"param_dtype": jnp.bfloat16, "force_float32_reductions": False}):
            if x_dtype == jnp.int32 and not dtypes.get("force_float32_reductions", True):
                continue  # Flax's statistics would be integers
            ours, theirs = pair(name, **options, **dtypes)
            with as_flax_needs():
                y, variables = jax.eval_shape(theirs.init_with_output, KEY, x)
                assert jax.eval_shape(ours.init_with_output, KEY, x) == (y, variables)


class Network(nn.Module):
    """All four, between dense layers."""

    library: Any

    @nn.compact
    def __call__(self, x):
        for name in NORMS:
            options = {"num_groups": 2} if name == "GroupNorm" else {}
            x = nn.Dense(6, use_bias=False, **FLOAT64)(x)
            x = nn.tanh(getattr(self.library, name)(**options, **FLOAT64)(x))
        return x


@pytest.mark.slow
@pytest.mark.exhaustive
def test_checkpoints_of_each_continue_in_the_other():
    x, target = normal(0, (4, 5, 3), jnp.float64), normal(1, (4, 5, 6), jnp.float64)
    ours, theirs = Network(bnderiv.linen), Network(nn)

    def train(model, params):
        @fast_jit
        def step(params):
            return sgd(params, jax.grad(lambda p: jnp.square(model.apply({"params": p}, x) - target).mean())(params))

        return step(step(params))

    with as_flax_needs():
        start = theirs.init(KEY, x)["params"]
        expected = train(theirs, train(theirs, start))
        for first, second in ((ours, theirs), (theirs, ours)):
            halfway = serialization.to_bytes(train(first, start))
            alike(train(second, serialization.from_bytes(start, halfway)), expected)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in BIASED])
def test_means_far_above_the_deviation(name):
    x, delta = normal(0, (8, 6, 6, 32), mean=1e4, scale=1), normal(1, (8, 6, 6, 32))
    options, axes, groups = {
        "LayerNorm": ({}, -1, None),
        "GroupNorm": ({"num_groups": 4}, (1, 2, 4), 4),
        "InstanceNorm": ({}, (1, 2), None),
    }[name]

    def measured(library):
        model = getattr(library, name)(**options)

        @jax.jit
        def both(x):
            y, pull_back = jax.vjp(partial(model.apply, model.init(KEY, x)), x)
            return y, *pull_back(delta)

        return errors(both(x), x, delta, axes, groups=groups)

    with as_flax_needs():
        assert max(measured(bnderiv.linen)) < 4e-7
        assert min(measured(nn)) > 1e-2  # what the tests above would not see


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_nothing_behind_a_mask_reaches_anything(name):
    ours, _ = pair(name)
    mask = jnp.arange(6) < 4
    x, delta = jnp.where(mask, normal(0, (3, 6)), jnp.nan), jnp.where(mask, normal(1, (3, 6)), 0)
    variables = ours.init(KEY, x)

    @fast_jit
    def both(params, x):
        y, pull_back = jax.vjp(lambda params, x: ours.apply({"params": params}, x, mask=mask), params, x)
        return y, pull_back(delta)

    y, gradient = both(variables["params"], x)
    expected, expected_gradient = both(variables["params"], jnp.where(mask, x, 0.0))
    np.testing.assert_array_equal(y[:, :4], expected[:, :4])
    assert np.isnan(y[:, 4:]).all()  # normalized, as any other
    alike(gradient, expected_gradient, 0)
    nothing = ours.apply(variables, x, mask=jnp.zeros(6, bool))
    assert np.isfinite(nothing[:, :4]).all()


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NORMS)
def test_saves_x_alone(name):
    x = normal(0, (4, 8, 8, 64))
    model, _ = pair(name)
    params = model.init(KEY, x)["params"]
    saved = jax.eval_shape(lambda p, x: jax.vjp(lambda p, x: model.apply({"params": p}, x), p, x)[1], params, x)
    sizes = sorted(a.size for a in jax.tree.leaves(saved))
    assert sizes[-1] == x.size
    assert sum(sizes[:-1]) < x.size / 10


@pytest.mark.parametrize("name", NORMS)
def test_the_class_is_flax_s(name):
    ours, theirs = getattr(bnderiv.linen, name), getattr(nn, name)
    assert issubclass(ours, theirs)
    assert [f for f in ours.__dataclass_fields__ if f not in ("parent", "name")] == [
        f for f in theirs.__dataclass_fields__ if f not in ("parent", "name")
    ]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("LayerNorm", {"reduction_axes": 3}, ValueError, r"reduction_axes must lie in \[-3, 3\)"),
        ("RMSNorm", {"feature_axes": 3}, ValueError, r"feature_axes must lie in \[-3, 3\)"),
        ("GroupNorm", {"num_groups": 4}, ValueError, "num_groups must divide the 6 channels, got 4"),
        (
            "GroupNorm",
            {"num_groups": None, "group_size": 4},
            ValueError,
            "group_size must divide the 6 channels, got 4",
        ),
        (
            "GroupNorm",
            {"num_groups": None},
            ValueError,
            "either num_groups or group_size must be given, got None and No",
        ),
        ("GroupNorm", {"num_groups": 2, "reduction_axes": 1}, ValueError, "reduction_axes must include the last axis"),
        ("InstanceNorm", {"feature_axes": (0, 2)}, ValueError, r"batch axis. feature_axes: \(0, 2\)"),
    ],
)
def test_errors(name, options, error, message):
    with pytest.raises(error, match=message):
        getattr(bnderiv.linen, name)(**options).init(KEY, normal(0, (2, 3, 6)))


def over_a_mapped_axis(name: str, **options: Any) -> tuple[Any, Any, Any]:
    """The two modules, and a function that applies one of them under `vmap` to the parts of x, with gradients."""
    if name == "GroupNorm":
        options["num_groups"] = 2
    model, flax_model = pair(name, axis_name="parts", **FLOAT64, **options)
    params = model.init(KEY, normal(0, (4, 3, 6), jnp.float64))  # Flax's needs the map here already

    def run(model, x, mask=None):
        return jax.vmap(lambda x, mask: with_gradient(model, params, x, mask), axis_name="parts")(x, mask)

    return model, flax_model, run


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_over_a_mapped_axis_as_flax(name):
    model, flax_model, run = over_a_mapped_axis(name)
    x = normal(3, (5, 4, 3, 6), jnp.float64)
    with as_flax_needs():
        expected = run(flax_model, x)
    alike(run(model, x), expected)


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_over_a_mapped_axis_by_true_counts(name):
    """The parts side by side are the features of one norm."""
    model, _, run = over_a_mapped_axis(name, use_scale=False, **({"use_bias": False} if name in BIASED else {}))
    x, mask = normal(3, (5, 4, 3, 6), jnp.float64), mask_of((5, 4, 3, 6))
    whole = type(model)(
        **FLOAT64, reduction_axes=(0, -1), use_scale=False, **({"use_bias": False} if name in BIASED else {})
    )
    expected = whole.apply({}, x, mask=mask)
    alike(run(model, x, mask)[0], expected)
    assert np.abs(expected - whole.apply({}, x)).max() > 0.1


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_over_a_mapped_axis_at_any_mean_and_scale(name):
    options: Any = {"num_groups": 2} if name == "GroupNorm" else {}
    model = getattr(bnderiv.linen, name)(axis_name="parts", epsilon=1e-6, **options)
    x = np.asarray(normal(3, (4, 64, 8, 16), jnp.float64))
    for scale, mean in ((1.0, 1e4), (1e30, 0.0), (1e-30, 0.0)):
        values = (x * scale + mean).astype(np.float32)
        params = model.init(KEY, values[0])
        y = jax.vmap(lambda x: model.apply(params, x), axis_name="parts")(values)  # noqa: B023
        wide = values.astype(np.float64)
        axes = {"GroupNorm": (0, 2, 4), "InstanceNorm": (0, 2)}.get(name, (0, 3))
        wide = wide.reshape(4, 64, 8, 2, 8) if name == "GroupNorm" else wide
        centered = wide if name == "RMSNorm" else wide - wide.mean(axes, keepdims=True)
        expected = centered / np.sqrt((centered**2).mean(axes, keepdims=True) + 1e-6)
        error = np.linalg.norm(np.asarray(y, np.float64) - expected.reshape(y.shape)) / np.linalg.norm(expected)
        assert error < 2e-7, (scale, mean)


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("axis_name", [None, "parts"])
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_nan_under_a_mask_reaches_no_second_derivative(name, axis_name):
    """Nor a tangent: it counts for as much as a zero there."""
    model = getattr(bnderiv.linen, name)(axis_name=axis_name, use_scale=False, **FLOAT64)
    variables = {} if name == "RMSNorm" else {"params": {"bias": normal(5, (6,), jnp.float64)}}
    x, tangent, mask = normal(3, (4, 3, 6), jnp.float64), normal(4, (4, 3, 6), jnp.float64), mask_of((4, 3, 6))
    tangent = jnp.where(mask, tangent, 0)

    def loss(x):
        apply = lambda x, mask: model.apply(variables, x, mask=mask)  # noqa: E731
        y = apply(x, mask) if axis_name is None else jax.vmap(apply, axis_name=axis_name)(x, mask)
        return (jnp.where(mask, y, 0) ** 3).sum()

    def derivatives(x):
        gradient = jax.grad(loss)
        with forward_mode.enabled():
            forward = jax.jvp(loss, (x,), (tangent,))[1], jax.jvp(gradient, (x,), (tangent,))[1]
        return *forward, jax.grad(lambda x: jnp.vdot(gradient(x), tangent))(x)

    found, expected = (fast_jit(derivatives)(jnp.where(mask, x, masked)) for masked in (jnp.nan, 0))
    assert np.isfinite(found[0])
    alike([jnp.where(mask, a, 0) for a in found], [jnp.where(mask, a, 0) for a in expected])


@pytest.mark.slow
def test_over_devices_and_groups_of_them():
    """As maps over these devices' parts."""
    x, delta = normal(3, (4, 5, 6), jnp.float64), normal(4, (4, 5, 6), jnp.float64)
    params = bnderiv.linen.LayerNorm(**FLOAT64).init(KEY, x[0])
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(groups, x, delta):
        model = bnderiv.linen.LayerNorm(axis_name="i", axis_index_groups=groups, **FLOAT64)
        y, pull_back = jax.vjp(partial(model.apply, params), x)
        return y, *pull_back(delta)

    for groups in (None, ((0, 2), (1, 3))):
        over = partial(jax.shard_map, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=groups is None)
        found = fast_jit(over(partial(gradient, groups)))(x, delta)
        for devices in groups or ((0, 1, 2, 3),):
            parts = jnp.asarray(devices)
            expected = jax.vmap(partial(gradient, None), axis_name="i")(x[parts], delta[parts])
            alike([a[parts] for a in found], list(expected))
    with pytest.raises(ValueError, match="axis_index_groups must come with axis_name"):
        bnderiv.linen.LayerNorm(axis_index_groups=((0, 1),)).apply(params, x)


@pytest.mark.parametrize("name", NORMS)
def test_errors_at_the_call(name):
    model, _ = pair(name, **({"num_groups": 2} if name == "GroupNorm" else {}))
    with pytest.raises(TypeError, match="x must be real, got complex64"):
        model.init(KEY, jnp.ones((2, 3, 6), jnp.complex64))
    with pytest.raises(ValueError, match=r"mask must broadcast to the shape of x, \(2, 3, 6\), got shape \(4,\)"):
        model.init(KEY, normal(0, (2, 3, 6)), mask=jnp.ones(4, bool))
    assert model.init_with_output(KEY, jnp.zeros((0, 3, 6), jnp.float32))[0].shape == (0, 3, 6)


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize(
    ("name", "options"), [("LayerNorm", {"reduction_axes": (1, 2)}), ("GroupNorm", {"num_groups": 2})]
)
def test_over_devices(name, options, kind):
    x, delta = normal(0, (4, 6, 8), jnp.float64), normal(1, (4, 6, 8), jnp.float64)
    model, _ = pair(name, **options, **FLOAT64)
    params = model.init(KEY, x)["params"]

    def gradient(params, x, delta):
        return jax.grad(lambda p, x: (delta * model.apply({"params": p}, x)).sum(), (0, 1))(params, x)

    expected = fast_jit(gradient)(params, x, delta)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(getattr(jax.sharding.AxisType, kind),) * 2)
    over = P("a", "b" if kind == "Explicit" else None)
    if kind == "Auto":
        gradient = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), over, over), out_specs=(P(), over))
    with jax.set_mesh(mesh):
        sharded = (jax.device_put(a, jax.NamedSharding(mesh, over)) for a in (x, delta))
        alike(fast_jit(gradient)(jax.device_put(params, jax.NamedSharding(mesh, P())), *sharded), expected)
