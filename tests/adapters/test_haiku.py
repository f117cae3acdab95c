"""`bnderiv.haiku.BatchNorm` against `haiku.BatchNorm`, module against module."""

import pickle
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

hk = pytest.importorskip("haiku", reason="needs the extra haiku")

import bnderiv.haiku
from tests.adapters.alike import NEAR_1, TOLERANCE, alike, normal, sgd
from tests.compiling import fast_jit
from tests.normalization.truth import batch_norm as truth
from tests.normalization.truth import relative_error

OURS: Any = bnderiv.haiku.BatchNorm
THEIRS: Any = hk.BatchNorm
KEY = jax.random.key(0)
RANDOM = {"scale_init": hk.initializers.RandomNormal(), "offset_init": hk.initializers.RandomNormal()}


@pytest.fixture(autouse=True)
def _implicit_promotion():
    """Haiku's averages multiply a float by an integer counter."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def network(batch_norm, cross_replica_axis=None, remat=False):
    """Two layers of a linear map, batch norm and ReLU, and another linear map."""

    def layer(x, is_training):
        x = hk.Linear(8, with_bias=False)(x)
        norm = batch_norm(True, True, 0.9, cross_replica_axis=cross_replica_axis, **RANDOM)
        return jax.nn.relu(norm(x, is_training))

    def forward(x, is_training):
        for _ in range(2):
            x = (hk.remat(layer, static_argnums=1) if remat else layer)(x, is_training)
        return hk.Linear(5)(x)

    return hk.without_apply_rng(hk.transform_with_state(forward))


def data():
    return normal(0, (16, 6), jnp.float64), normal(1, (16, 5), jnp.float64)


def init(model, *args):
    return fast_jit(lambda: model.init(KEY, *args))()


def gradient(model, params, state, x, target):
    def loss(params):
        y, new = model.apply(params, state, x, True)
        return jnp.square(y - target).mean(), new

    return jax.grad(loss, has_aux=True)(params)


def train(model, start, x, target, steps):
    params, state = start

    @fast_jit
    def step(params, state):
        d_params, state = gradient(model, params, state, x, target)
        return sgd(params, d_params), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.slow
def test_ten_steps_of_training_then_inference():
    x, target = data()
    results = []
    for module in (OURS, THEIRS):
        model = network(module)
        start = init(model, x, True)
        params, state = train(model, start, x, target, 10)
        assert not np.allclose(params["batch_norm"]["scale"], start[0]["batch_norm"]["scale"])
        results.append((start, params, state, fast_jit(lambda p, s, m=model: m.apply(p, s, x, False))(params, state)))
    alike(*results)


@pytest.mark.slow
def test_checkpoints_of_each_continue_in_the_other():
    x, target = data()
    for first, second in ((OURS, THEIRS), (THEIRS, OURS)):
        start = init(network(second), x, True)
        saved = pickle.dumps(jax.device_get(train(network(first), start, x, target, 3)))
        continued = train(network(second), pickle.loads(saved), x, target, 2)
        alike(continued, train(network(second), start, x, target, 5))


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((6, 4, 3), {}),
        ((6, 3, 4, 2), {"data_format": "NCHW", "eps": 0.1}),
        ((6, 3, 4), {"axis": [0, 2]}),
        ((6, 3, 4), {"axis": (0,)}),  # two axes of features
        ((6, 3, 4), {"create_scale": False}),
        ((6, 3, 4), {"create_scale": False, "create_offset": False}),
        ((), {}),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_variables_values_and_averages(shape, options, dtype):
    x = normal(0, shape, dtype)
    options = {"create_scale": True, "create_offset": True, "decay_rate": 0.9, **options}
    results = []
    for module in (OURS, THEIRS):
        model = hk.without_apply_rng(
            hk.transform_with_state(lambda x, is_training, local=False, m=module: m(**options)(x, is_training, local))
        )
        params, state = init(model, x, True)
        y, state = model.apply(params, state, x, True)
        local, _ = model.apply(params, state, x + 1, False, True)
        results.append((params, state, y, local, model.apply(params, state, x, False)[0]))
    # With a single element in bfloat16 Haiku's variance is a rounding.
    ours, theirs = results
    alike(ours, theirs, None if dtype == jnp.float64 else 0.1)


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("shape", [(3,), (1, 1, 3), (), (6, 1, 3)])
def test_scale_and_offset_from_outside(shape, activation):
    x, scale, offset = normal(0, (6, 4, 3), jnp.float64), normal(1, shape, jnp.float64), normal(2, shape, jnp.float64)
    results = []
    for module, options in ((OURS, {"activation": activation}), (THEIRS, {})):

        def forward(x, is_training, scale, offset, module=module, options=options):
            return module(False, False, 0.9, **options)(x, is_training, scale=scale, offset=offset)

        model = hk.without_apply_rng(hk.transform_with_state(forward))
        params, state = model.init(KEY, x, True, scale, offset)

        def product(*a, model=model, params=params, state=state):
            y = model.apply(params, state, a[0], True, *a[1:])[0]
            y = jax.nn.relu(y) if activation else y
            return jnp.vdot(normal(3, y.shape, jnp.float64), y)

        results.append(fast_jit(jax.value_and_grad(product, (0, 1, 2)))(x, scale, offset))
    alike(*results)


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("shape", [None, pytest.param((6, 1, 3), marks=pytest.mark.slow)], ids=["own", "from-outside"])
def test_a_residual_within_the_rule(shape):
    x, z, delta = (normal(seed, (6, 4, 3), jnp.float64) for seed in range(3))
    given = {} if shape is None else {"scale": normal(3, shape, jnp.float64), "offset": normal(4, shape, jnp.float64)}

    def run(forward):
        model = hk.without_apply_rng(hk.transform_with_state(forward))
        params, state = model.init(KEY, x, z, True)

        def everything(training):
            y, pull_back, after = jax.vjp(lambda x, z: model.apply(params, state, x, z, training), x, z, has_aux=True)
            return y, pull_back(delta), after

        return fast_jit(lambda: (everything(True), everything(False)))()

    def fused(x, z, training):
        return OURS(not given, not given, 0.9, activation="relu")(x, training, **given, residual=z)

    def composed(x, z, training):
        return jax.nn.relu(THEIRS(not given, not given, 0.9)(x, training, **given) + z)

    alike(run(fused), run(composed))


@pytest.mark.slow
def test_means_far_above_the_deviation():
    x, delta = normal(0, (32, 9, 3), mean=1e4, scale=1), normal(1, (32, 9, 3))
    expected = truth(x, np.ones(3), np.zeros(3), delta)
    model = hk.without_apply_rng(hk.transform_with_state(lambda x: OURS(True, True, 0.9)(x, True)))
    params, state = model.init(KEY, x)
    y, pull_back = jax.vjp(lambda x: model.apply(params, state, x)[0], x)
    assert relative_error(y, expected[0]) < 4e-7
    assert relative_error(pull_back(delta)[0], expected[1]) < 4e-7


@pytest.mark.slow
def test_rematerialized_and_across_devices():
    x, target = data()
    params, state = init(network(OURS), x, True)
    expected = fast_jit(partial(gradient, network(OURS)))(params, state, x, target)
    alike(fast_jit(partial(gradient, network(OURS, remat=True)))(params, state, x, target), expected)

    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])

    def own_mean(params, state, x, target):
        d_params, state = gradient(network(OURS, "i"), jax.lax.pcast(params, "i", to="varying"), state, x, target)
        return jax.lax.pmean(d_params, "i"), state

    across = jax.shard_map(own_mean, mesh=mesh, in_specs=(P(), P(), P("i"), P("i")), out_specs=(P(), P()))
    alike(fast_jit(across)(params, state, x, target), expected)


@pytest.mark.slow
def test_groups_of_devices():
    x = normal(0, (8, 4, 3))
    groups = [[0, 1], [2, 3], [4, 5], [6, 7]]
    model = hk.without_apply_rng(
        hk.transform_with_state(
            lambda x: OURS(False, False, 0.9, cross_replica_axis="i", cross_replica_axis_index_groups=groups)(x, True)
        )
    )
    params, state = jax.pmap(lambda x: model.init(KEY, x), axis_name="i")(x)
    y, _ = jax.pmap(model.apply, axis_name="i")(params, state, x)
    alone = hk.without_apply_rng(hk.transform_with_state(lambda x: OURS(False, False, 0.9)(x, True)))
    pairs = x.reshape(4, 8, 3)
    expected = [alone.apply(*alone.init(KEY, pair), pair)[0] for pair in pairs]
    alike(y.reshape(4, 8, 3), jnp.stack(expected), 1e-6)


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "decay"), NEAR_1)
def test_a_decay_near_1_leaves_the_batch_its_weight(dtype, decay):
    x = jnp.full((4, 3), 2.0, dtype)
    model = hk.without_apply_rng(hk.transform_with_state(lambda x: OURS(True, True, decay)(x, True)))
    params, state = model.init(KEY, x)
    state = jax.tree.map(jnp.zeros_like, state)
    for steps in range(1, 4):
        _, state = model.apply(params, state, x)
        average = state["batch_norm/~/mean_ema"]
        assert average["counter"] == steps
        assert {average[name].dtype for name in ("hidden", "average")} == {jnp.dtype(dtype)}
        expected = np.full((1, 3), 2 * (1 - decay**steps))
        np.testing.assert_allclose(
            np.asarray(average["hidden"], np.float64), expected, rtol=float(steps * jnp.finfo(dtype).eps)
        )
        np.testing.assert_allclose(
            np.asarray(average["average"], np.float64), np.full((1, 3), 2.0), rtol=float(steps * jnp.finfo(dtype).eps)
        )


@pytest.mark.slow
def test_an_empty_batch_leaves_the_averages():
    model = hk.without_apply_rng(hk.transform_with_state(lambda x: OURS(True, True, 0.9)(x, True)))
    params, state = model.init(KEY, normal(0, (4, 3)))
    _, state = model.apply(params, state, normal(0, (4, 3)))
    _, after = model.apply(params, state, normal(0, (0, 3)))
    alike(after, state, 1e-6)


@pytest.mark.slow
def test_which_calls_update_the_averages():
    """Training does where there is anything to count. Other calls do not, by the batch's statistics neither."""
    x = normal(0, (4, 3))
    model = hk.without_apply_rng(hk.transform_with_state(lambda x, *how: OURS(False, False, 0.9)(x, *how)))
    params, state = model.init(KEY, x, True)
    y, after = model.apply(params, state, x, True)
    for name, of_one_batch in (("mean", np.mean), ("var", np.var)):
        np.testing.assert_allclose(after[f"batch_norm/~/{name}_ema"]["average"][0], of_one_batch(x, 0), rtol=1e-5)
    for batch, how in ((x + 1, (False,)), (x + 1, (False, True)), (x[:0], (True,))):
        z, same = model.apply(params, after, batch, *how)
        alike(same, after, 1e-6)
        if len(how) == 2:
            alike(z, y, 1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_state_is_read_only_where_haiku_reads_it(activation):
    """By the batch's statistics without training there is no state at all; training starts one where there is none."""
    x = normal(0, (6, 4, 3), jnp.float64)

    def local(batch_norm, **options):  # `hk.transform` refuses a state
        model = hk.without_apply_rng(hk.transform(lambda x: batch_norm(True, True, 0.9, **options)(x, False, True)))
        params = model.init(KEY, x)
        return params, model.apply(params, x)

    def training(batch_norm, **options):  # parameters were loaded, the state was not
        model = hk.transform_with_state(lambda x: batch_norm(True, True, 0.9, **options)(x, True))
        params, _ = model.init(KEY, x)
        return params, *model.apply(params, {}, None, x)

    for run in (local, training):
        params, y, *state = run(THEIRS)
        expected = (params, y if activation is None else jax.nn.relu(y), *state)
        alike(run(OURS, activation=activation), expected, 1e-10)


def test_errors():
    def run(x, *, activation=None, create=True, **options):
        model = hk.transform_with_state(lambda x: OURS(create, create, 0.9, activation=activation)(x, True, **options))
        model.init(KEY, x)

    with pytest.raises(ValueError, match='activation must be None or "relu"'):
        run(jnp.ones((4, 3), jnp.float32), activation="tanh")
    x = jnp.ones((4, 3), jnp.float32)
    model = hk.transform_with_state(lambda x: OURS(True, True, 0.9)(x, True, residual=x))
    with pytest.raises(ValueError, match='residual must come with activation="relu"'):
        model.init(KEY, x)
    with pytest.raises(TypeError, match="inputs must be real, got complex64"):
        run(jnp.ones((4, 3), jnp.complex64))
    for dtype in (">f4", "object"):
        with pytest.raises(TypeError, match=rf"^inputs must have .*got {dtype}\[4, 3\]"):
            run(np.ones((4, 3), dtype))
    with pytest.raises(ValueError, match="scale must not be given at call time where create_scale=True"):
        run(jnp.ones((4, 3), jnp.float32), scale=2.0)
    run(jnp.ones((4, 3), jnp.float32), scale=2.0, create=False)


@pytest.mark.slow
def test_a_policy_for_haikus_class_applies():
    """As in dm-haiku's ImageNet example: statistics in float32 within a network in float16, which they overflow."""
    jmp = pytest.importorskip("jmp")
    policy = jmp.get_policy("params=float32,compute=float32,output=float16")
    x = normal(0, (16, 3), jnp.float16, 3e2, 3e2)

    def run(module):
        model = hk.transform_with_state(lambda x, train: module(True, True, 0.9)(x, train))
        params, state = model.init(KEY, x, True)
        y, state = model.apply(params, state, KEY, x, True)
        return params, state, y, model.apply(params, state, KEY, x, False)[0]

    before = run(OURS)[2].dtype
    with hk.mixed_precision.push_policy(THEIRS, policy):
        ours, theirs = run(OURS), run(THEIRS)
        alike(ours, theirs)
        assert ours[2].dtype == jnp.float16
        assert ours[1]["batch_norm/~/var_ema"]["average"].dtype == jnp.float32
        assert np.isfinite(ours[3]).all()
        with hk.mixed_precision.push_policy(OURS, jmp.get_policy("params=float32,compute=float32,output=float32")):
            assert run(OURS)[2].dtype == jnp.float32  # its own comes first
        assert run(OURS)[2].dtype == jnp.float16
    assert run(OURS)[2].dtype == before
    assert run(OURS)[1]["batch_norm/~/var_ema"]["average"].dtype == jnp.float16
    assert hk.mixed_precision.get_policy(OURS) is None


@pytest.mark.parametrize("compute", ["float32", "float16"])
def test_a_policy_for_the_averages_applies(compute):
    """Averages in float32 of a network in float16, by a policy of Haiku's class of averages."""
    jmp = pytest.importorskip("jmp")
    average = hk.ExponentialMovingAverage
    policy = jmp.get_policy(f"params=float32,compute={compute},output=float32")
    other = "float32" if compute == "float16" else "float16"
    x = normal(0, (16, 3), other)

    def run(module):
        model = hk.transform_with_state(lambda x: module(True, True, 0.9)(x, True))
        params, state = model.init(KEY, x)
        return params, state, *model.apply(params, state, KEY, x)

    with hk.mixed_precision.push_policy(average, policy):
        ours, theirs = run(OURS), run(THEIRS)
        alike(ours, theirs, TOLERANCE["float16"])  # Haiku takes the statistics in float16
        assert {a["hidden"].dtype.name for a in ours[3].values()} == {compute}
    alike(run(OURS), run(THEIRS), TOLERANCE["float16"])
    assert {a["hidden"].dtype.name for a in run(OURS)[3].values()} == {other}


def test_averages_are_called_and_named_as_haiku_s():
    """What `intercept_methods` and `tabulate` see of them."""

    def seen(module):
        calls = []

        def note(call, args, kwargs, context):
            result = call(*args, **kwargs)
            if isinstance(context.module, hk.ExponentialMovingAverage) and context.method_name == "__call__":
                calls.append((context.module.module_name, repr(context.module), result))
            return result

        model = hk.transform_with_state(lambda x: module(True, True, 0.9)(x, True))
        x = normal(0, (16, 3), jnp.float64)
        params, state = model.init(KEY, x)
        with hk.intercept_methods(note):
            _, state = model.apply(params, state, KEY, x)
        return calls, state

    (ours, state), (theirs, expected) = seen(OURS), seen(THEIRS)
    alike(state, expected, 1e-10)
    assert [call[:2] for call in ours] == [call[:2] for call in theirs]
    alike([call[2] for call in ours], [call[2] for call in theirs], 1e-10)
    assert len(ours) == 2


def test_an_average_that_is_called_by_itself():
    def run(module):
        def f(x):
            norm = module(True, True, 0.9)
            norm(x, True)
            return norm.mean_ema(x[:1], update_stats=False), norm.mean_ema(2 * x[:1]), norm.mean_ema.average

        model = hk.transform_with_state(f)
        x = normal(0, (16, 3), jnp.float64)
        return model.apply(*model.init(KEY, x), KEY, x)

    alike(run(OURS), run(THEIRS), 1e-10)


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("axis", [(-1,), (0, -2), (-3, -1), (0, 1)])
def test_parameters_where_an_axis_is_negative(axis):
    """Haiku compares the axes as given: parameters keep the length of a negative one, statistics do not."""
    x = normal(0, (4, 5, 3), jnp.float64)
    results = []
    for module in (OURS, THEIRS):
        model = hk.transform_with_state(lambda x, m=module: m(True, True, 0.9, axis=axis, **RANDOM)(x, True))
        params, state = init(model, x)
        results.append((params, state, *fast_jit(lambda p, s, m=model: m.apply(p, s, KEY, x))(params, state)))
    alike(*results)
