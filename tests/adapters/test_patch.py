"""`patch` and `convert`: ours in models that cannot be edited, or are built and trained already."""

import importlib
import sys
import types
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bnderiv.forward_mode
from tests.adapters.alike import alike, normal
from tests.compiling import fast_jit

NORMS = {"BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"}
POOLS = {"avg_pool", "max_pool"}
FLAX = NORMS | POOLS | {"Conv"}
# Each adapter, the module that users take the layers from, and the names in it that are ours within `patch`.
PLACES = {
    "linen": ("flax.linen", FLAX),
    "nnx": ("flax.nnx", FLAX),
    "equinox": (
        "equinox.nn",
        {"BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"}
        | {f"{kind}Pool{n}d" for kind in ("Avg", "Max", "AdaptiveAvg", "AdaptiveMax") for n in (1, 2, 3)},
    ),
    "haiku": ("haiku", NORMS | POOLS | {"AvgPool", "MaxPool"}),
}
each = pytest.mark.parametrize("adapter", PLACES)


@pytest.fixture(autouse=True)
def _implicit_promotion():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def both(adapter) -> tuple[Any, Any]:
    framework = pytest.importorskip(PLACES[adapter][0], reason="needs the frameworks")
    return importlib.import_module(f"bnderiv.{adapter}"), framework


@each
def test_every_name_until_it_is_undone(adapter):
    ours, framework = both(adapter)
    names = PLACES[adapter][1]
    theirs = {name: getattr(framework, name) for name in names}

    def replaced():
        return {name for name in names if getattr(framework, name) is getattr(ours, name)}

    assert names == {name for name in ours.__all__ if hasattr(framework, name)} - {"min_pool", "pool"}  # Flax's own
    with ours.patch() as patch:
        assert replaced() == names
        assert (framework, "BatchNorm") in patch.places
    assert {name: getattr(framework, name) for name in names} == theirs
    patch = ours.patch()
    with ours.patch():  # of two, the last one takes it back
        assert replaced() == names
    assert replaced() == names
    patch.undo()
    patch.undo()
    assert {name: getattr(framework, name) for name in names} == theirs
    with pytest.raises(ZeroDivisionError), ours.patch():
        raise ZeroDivisionError
    assert not replaced()


@each
def test_modules_that_have_bound_the_class_themselves(adapter, monkeypatch):
    ours, framework = both(adapter)
    user = types.ModuleType("user")
    exec("class Namespace: pass", user.__dict__)
    bound: Any = user
    bound.BatchNorm = bound.Namespace.norm = theirs = framework.BatchNorm
    with ours.patch():
        assert bound.BatchNorm is theirs
    with ours.patch(user):
        assert bound.BatchNorm is bound.Namespace.norm is ours.BatchNorm
    assert bound.BatchNorm is bound.Namespace.norm is theirs
    # A module of the framework that is imported within gets ours, and theirs when it is over.
    late: Any = types.ModuleType(f"{framework.__name__}.late")
    monkeypatch.setitem(sys.modules, late.__name__, late)
    with ours.patch():
        late.BatchNorm = framework.BatchNorm
        assert late.BatchNorm is ours.BatchNorm
    assert late.BatchNorm is theirs
    with pytest.raises(TypeError, match=r"patch takes modules .* got 'user'"):
        ours.patch("user")
    assert framework.BatchNorm is theirs


@each
def test_a_module_is_ours_until_its_last_patch_is_undone(adapter):
    ours, framework = both(adapter)
    user: Any = types.ModuleType("user")
    user.BatchNorm = theirs = framework.BatchNorm
    user.LayerNorm = ours.LayerNorm  # migrated by its author
    with ours.patch(user):
        with ours.patch(user), ours.patch(user, user):
            pass
        assert user.BatchNorm is ours.BatchNorm
        user.GroupNorm = framework.GroupNorm
        assert user.GroupNorm is ours.GroupNorm
    assert user.BatchNorm is theirs
    assert user.GroupNorm is framework.GroupNorm
    assert user.LayerNorm is ours.LayerNorm
    with ours.patch():
        with ours.patch(user):
            pass
        assert user.BatchNorm is theirs
        assert framework.BatchNorm is ours.BatchNorm
    assert framework.BatchNorm is theirs


@each
def test_a_patch_that_is_undone_is_not_entered(adapter):
    ours, framework = both(adapter)
    theirs = framework.BatchNorm
    with ours.patch() as patch:
        pass
    with pytest.raises(RuntimeError, match=r"this patch is undone: call patch\(\) again"), patch:
        pass
    assert framework.BatchNorm is theirs


def test_convert_linen_refuses_a_bound_model():
    bnderiv_linen, nn = both("linen")
    x = jnp.ones((2, 3))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return bnderiv_linen.convert(nn.Sequential([nn.LayerNorm()]))(x)

    model = nn.Sequential([nn.LayerNorm()])
    with pytest.raises(ValueError, match=r"^model must not be bound, .* got a bound Sequential"):
        bnderiv_linen.convert(model.bind(model.init(jax.random.key(0), x)))
    with pytest.raises(ValueError, match=r"^model must not be bound"):
        Network().init(jax.random.key(0), x)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_haikus_networks():
    """They take their names from a class in their module. Parameters and state are those of either."""
    bnderiv_haiku, hk = both("haiku")

    def forward(x):
        options = {"bottleneck": False, "channels_per_group": (4,) * 4, "use_projection": (True,) * 4}
        return hk.nets.ResNet((1,) * 4, 3, **options)(x, is_training=True)

    model = hk.without_apply_rng(hk.transform_with_state(forward))
    x = normal(0, (2, 32, 32, 1), jnp.float64)
    params, state = fast_jit(lambda: model.init(jax.random.key(0), x))()
    calls = []
    original = bnderiv_haiku.BatchNorm.__call__

    class Counted(bnderiv_haiku.BatchNorm):
        def __call__(self, *args, **kwargs):
            calls.append(self.module_name)
            return original(self, *args, **kwargs)

    converted = bnderiv_haiku.convert(model)
    assert type(converted) is type(model)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bnderiv_haiku._REPLACED, hk.BatchNorm, Counted)
        for m in (model, converted):
            results.append(fast_jit(lambda p, s, m=m: m.apply(p, s, x))(params, state))
            assert len(calls) == (13 if m is converted else 0)
    alike(results[1], results[0], 1e-9)
    with pytest.raises(TypeError, match=r"model must be one of Transformed, .*got function"):
        bnderiv_haiku.convert(forward)


def _stack(adapter) -> Any:
    """A model of whatever classes stand at the framework's names; in Flax with a convolution. It takes (4, 8, 8, 4)."""
    _, framework = both(adapter)
    if adapter == "haiku":

        def forward(x):
            for layer in (
                framework.InstanceNorm(True, True),
                framework.GroupNorm(2),
                framework.LayerNorm(-1, True, True),
                framework.RMSNorm(-1),
                framework.AvgPool((1, 2, 2, 1), 1, "SAME"),
                framework.MaxPool((1, 2, 2, 1), 1, "VALID"),
            ):
                x = layer(x)
            x = framework.avg_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
            return framework.max_pool(x, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")

        return framework.without_apply_rng(framework.transform(forward))
    if adapter == "equinox":
        of = {"dtype": jnp.float64}
        return framework.Sequential(
            [
                framework.LayerNorm((4, 8, 8), **of),
                framework.GroupNorm(2, 4, **of),
                framework.RMSNorm((4, 8, 8), use_bias=False, **of),
                framework.AvgPool2d(2, padding=1),
                framework.MaxPool2d(2, use_ceil=True),
                framework.AdaptiveMaxPool2d(3),
                framework.AdaptiveAvgPool2d((2, 1)),
            ]
        )
    of = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    pools = [partial(framework.avg_pool, window_shape=(2, 2)), partial(framework.max_pool, window_shape=(2, 2))]
    if adapter == "nnx":
        of["rngs"] = framework.Rngs(0)
        first = framework.Conv(4, 4, (3, 3), use_bias=False, **of), framework.InstanceNorm(4, **of)
        norms = framework.GroupNorm(4, num_groups=2, **of), framework.LayerNorm(4, **of)
        return framework.Sequential(*first, *norms, framework.RMSNorm(4, **of), *pools)
    first = framework.Conv(4, (3, 3), use_bias=False, **of), framework.InstanceNorm(**of)
    norms = framework.GroupNorm(2, **of), framework.LayerNorm(**of)
    return framework.Sequential([*first, *norms, framework.RMSNorm(**of), *pools])


def _function(adapter, model) -> tuple[Any, Any]:
    """A function of parameters and x, and parameters that are not the first ones."""
    _, framework = both(adapter)
    x = jnp.ones((4, 8, 8, 4))
    if adapter == "nnx":
        graph, params = framework.split(model)
        return lambda params, x: framework.merge(graph, params)(x), params
    if adapter == "equinox":
        arrays, rest = jax.tree.flatten(model)
        numbers = [jnp.asarray(a) for a in arrays if hasattr(a, "dtype")]

        def apply(numbers, x):
            given = iter(numbers)
            layer = jax.tree.unflatten(rest, [next(given) if hasattr(a, "dtype") else a for a in arrays])
            return jax.vmap(layer)(jnp.moveaxis(x, -1, 1))

        return apply, numbers
    return model.apply, model.init(jax.random.key(0), x.astype(jnp.float64))


@pytest.mark.few(0, 1)
@pytest.mark.slow
@each
def test_every_layer(adapter):
    """By `patch` and by `convert` they are ours, and in float64 output, gradients and jvp are the framework's."""
    ours, _ = both(adapter)
    x, dy = normal(0, (4, 8, 8, 4), jnp.float64), None

    def results(model):
        nonlocal dy
        apply, params = _function(adapter, model)
        params = jax.tree.map(lambda a: a + 0.1 * jnp.arange(a.size).reshape(a.shape), params)
        rules = str(jax.make_jaxpr(apply)(params, x)).count("custom_vjp_call[")
        y = jax.eval_shape(apply, params, x)
        dy = normal(1, y.shape, jnp.float64) if dy is None else dy
        out = fast_jit(lambda p, x, dy: (lambda y, pull: (y, pull(dy)))(*jax.vjp(apply, p, x)))(params, x, dy)
        return rules, [jnp.asarray(a) for a in jax.tree.leaves(out)]

    model = _stack(adapter)
    rules, expected = results(model)
    assert rules == 0
    with ours.patch():
        patched, found = results(_stack(adapter))
    assert patched >= (7 if adapter in ("linen", "nnx") else 6)
    alike(found, expected)
    converted, found = results(ours.convert(model))
    assert converted == patched  # the same of them are ours
    alike(found, expected)
    functions = [partial(*_function(adapter, m)) for m in (ours.convert(model), model)]  # the model is as it was
    with bnderiv.forward_mode.enabled():
        pushed = [fast_jit(lambda x, t, f=f: jax.jvp(f, (x,), (t,))[1])(x, jnp.cos(x)) for f in functions]
    alike(*pushed)


@pytest.mark.slow
def test_convert_linen():
    bnderiv_linen, nn = both("linen")
    frozen = importlib.import_module("flax.core").FrozenDict

    class Block(nn.Module):
        norm: Any
        pool: Any = nn.max_pool
        extra: Any = None

        @nn.compact
        def __call__(self, x):
            x = self.norm(use_running_average=False)(nn.Conv(4, (3, 3), param_dtype=jnp.float64)(x))
            return self.extra(self.pool(x, (2, 2)).mean((1, 2)))

    options = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    last = nn.Sequential([nn.Dense(3, **options), nn.BatchNorm(False, axis=-1, momentum=0.5, **options)])
    model = Block(partial(nn.BatchNorm, **options), extra=last)
    converted = bnderiv_linen.convert(model)
    assert converted.norm.func is bnderiv_linen.BatchNorm
    assert converted.norm.keywords == options
    assert converted.pool is bnderiv_linen.max_pool
    assert type(converted.extra.layers[1]) is bnderiv_linen.BatchNorm
    assert converted.extra.layers[1].momentum == 0.5
    assert converted.extra.layers[0] is last.layers[0]
    assert model.norm.func is nn.BatchNorm
    x = normal(0, (4, 8, 8, 2), jnp.float64)
    variables = fast_jit(lambda: model.init(jax.random.key(0), x))()
    results = [fast_jit(lambda m=m: m.apply(variables, x, mutable=["batch_stats"]))() for m in (converted, model)]
    alike(results[0], results[1], 1e-7)  # statistics are float32
    alike(fast_jit(lambda: converted.init(jax.random.key(0), x))(), variables)

    shared = nn.LayerNorm()
    tied = nn.Sequential([nn.Dense(4), shared, nn.Dense(4), shared])  # layers_3 is layers_1
    ours = bnderiv_linen.convert(tied)
    assert type(ours.layers[1]) is bnderiv_linen.LayerNorm
    assert ours.layers[3] is ours.layers[1]
    named = bnderiv_linen.convert(Block(nn.BatchNorm, extra=frozen(a=nn.LayerNorm())))
    assert type(named.extra["a"]) is bnderiv_linen.LayerNorm

    class Hidden(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(False)(x)

    with pytest.raises(ValueError, match=r"no field of Hidden holds a layer of Flax .*patch"):
        bnderiv_linen.convert(Hidden())
    with bnderiv_linen.patch(), pytest.raises(ValueError, match=r"no field of Hidden"):
        bnderiv_linen.convert(Hidden())


@pytest.mark.slow
def test_convert_nnx():
    bnderiv_nnx, nnx = both("nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(6, 8, rngs=rngs)
            self.norms = nnx.List([nnx.BatchNorm(8, momentum=0.9, rngs=rngs) for _ in range(2)])

        def __call__(self, x):
            for norm in self.norms:
                x = norm(self.first(x) if norm is self.norms[0] else nnx.relu(x))
            return x

    x = normal(0, (16, 6), jnp.float32)
    model = Network(nnx.Rngs(0))
    model(x)  # with statistics that are not the first ones
    converted = bnderiv_nnx.convert(model)
    assert {type(norm) for norm in converted.norms} == {bnderiv_nnx.BatchNorm}
    assert {type(norm) for norm in model.norms} == {nnx.BatchNorm}
    before = nnx.to_pure_dict(nnx.state(model))
    alike(nnx.to_pure_dict(nnx.state(converted)), before)
    y, expected = (nnx.jit(lambda m, x: m(x))(m, x) for m in (converted, model))
    alike(y, expected, 1e-4)
    alike(nnx.to_pure_dict(nnx.state(converted)), nnx.to_pure_dict(nnx.state(model)), 1e-4)
    nnx.update(converted, nnx.state(model))  # the states fit each other
    with pytest.raises(ValueError, match=r"Linear holds no layer of Flax that bnderiv.nnx has"):
        bnderiv_nnx.convert(model.first)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", sorted(NORMS))
def test_nnx_class_assignment(name):
    bnderiv_nnx, nnx = both("nnx")
    options = {"num_groups": 2} if name == "GroupNorm" else {}
    layer, theirs = (getattr(nnx, name)(4, **options, rngs=nnx.Rngs(0)) for _ in range(2))
    layer.__class__ = getattr(bnderiv_nnx, name)
    x = normal(0, (8, 5, 4))
    alike(layer(x), theirs(x))
    alike(nnx.to_pure_dict(nnx.state(layer)), nnx.to_pure_dict(nnx.state(theirs)))


def test_convert_nnx_where_attributes_hold_functions():
    bnderiv_nnx, nnx = both("nnx")

    class Network(nnx.Module):
        def __init__(self):
            self.pools = {"first": (nnx.max_pool, nnx.relu)}
            self.norm = nnx.LayerNorm

    model = Network()
    converted = bnderiv_nnx.convert(model)
    assert converted.pools == {"first": (bnderiv_nnx.max_pool, nnx.relu)}
    assert converted.norm is bnderiv_nnx.LayerNorm
    assert model.pools == {"first": (nnx.max_pool, nnx.relu)}
    assert model.norm is nnx.LayerNorm


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_convert_equinox(mode):
    bnderiv_equinox, _ = both("equinox")
    import equinox as eqx

    class Network(eqx.Module):
        layers: list
        norm: Any

        def __init__(self):
            self.layers = [eqx.nn.Linear(6, 8, key=jax.random.key(0), dtype=jnp.float64)]
            self.norm = eqx.nn.BatchNorm(8, "batch", mode=mode, momentum=0.9, dtype=jnp.float64)

        def __call__(self, x, state):
            return self.norm(self.layers[0](x), state)

    def step(model, state, x):
        return fast_jit(jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None)))(x, state)

    x = normal(0, (16, 6), jnp.float64)
    model, state = eqx.nn.make_with_state(Network)()
    model = eqx.tree_at(lambda m: m.norm.weight, model, jnp.arange(8.0))
    _, state = step(model, state, x)  # trained
    converted = bnderiv_equinox.convert(model)
    assert type(converted.norm) is bnderiv_equinox.BatchNorm
    by_hand = eqx.tree_at(lambda m: m.norm, model, bnderiv_equinox.BatchNorm.like(model.norm))
    for m in (converted, by_hand):
        for change in (lambda m: m, eqx.nn.inference_mode):
            ours, theirs = (jax.tree.leaves(step(change(n), state, x + 1)) for n in (m, model))
            alike([jnp.asarray(a) for a in ours], [jnp.asarray(a) for a in theirs])
    optimizer = optax.adam(0.1)  # whose state is a tree of the model's modules
    started = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    gradient = jax.tree.map(jnp.ones_like, eqx.filter(converted, eqx.is_inexact_array))
    _, continued = optimizer.update(gradient, bnderiv_equinox.convert(started))
    assert jax.tree.structure(continued) == jax.tree.structure(bnderiv_equinox.convert(started))
    with pytest.raises(ValueError, match=r"Linear has no layer of Equinox"):
        bnderiv_equinox.convert(model.layers[0])
    with pytest.raises(TypeError, match=r"old must be an equinox.nn.BatchNorm, got Linear"):
        bnderiv_equinox.BatchNorm.like(model.layers[0])
    fused = bnderiv_equinox.BatchNorm.like(model.norm, activation="relu")
    assert float(step(fused, state, normal(1, (16, 8), jnp.float64))[0].min()) == 0
    with bnderiv_equinox.patch():
        assert type(bnderiv_equinox.convert(model).norm) is bnderiv_equinox.BatchNorm


LIMITS = r"must lie in \[0, 1\], it weighs the old value; got"


@each
@pytest.mark.parametrize(
    ("momentum", "error", "message"),
    [
        (-0.1, ValueError, f"{LIMITS} -0.1"),
        (1.5, ValueError, f"{LIMITS} 1.5"),
        (float("nan"), ValueError, f"{LIMITS} nan"),
        (np.array([0.5, 0.9, 0.9]), ValueError, rf"{LIMITS} \[0.5 0.9 0.9\]"),
        (None, TypeError, r"must be a number in \[0, 1\], got None"),
    ],
    ids=str,
)
def test_momentum_outside_of_0_and_1(adapter, momentum, error, message):
    ours, framework = both(adapter)
    x = jnp.ones((4, 3))
    make = {
        "linen": lambda: ours.BatchNorm(True, momentum=momentum).init(jax.random.key(0), x),
        "nnx": lambda: ours.BatchNorm(3, momentum=momentum, rngs=framework.Rngs(0)),
        "equinox": lambda: ours.BatchNorm(3, "batch", momentum=momentum, mode="batch"),
        "haiku": lambda: framework.testing.transform_and_run(lambda: ours.BatchNorm(True, True, momentum))(),
    }[adapter]
    name = "decay_rate" if adapter == "haiku" else "momentum"
    with pytest.raises(error, match=f"^{name} {message}"):
        make()


@each
@pytest.mark.parametrize("train", [True, False])
def test_features_that_are_not_the_layer_s(adapter, train):
    """Haiku and Flax linen find it by the parameters, where there are any."""
    unaffine = {"linen": {"use_scale": False, "use_bias": False}, "haiku": {"affine": False}}
    call = _forward(adapter, train, **unaffine.get(adapter, {}))
    call(jnp.ones((6, 3)))
    with pytest.raises(ValueError, match=r"^the input must have the features of the layer, of shape .*3.*, got shape"):
        call(jnp.ones((6, 4)))


def _forward(adapter, train, affine=True, **options):
    """A function of x alone: the layer, training or not."""
    ours, framework = both(adapter)
    x = jnp.ones((6, 3))
    if adapter == "linen":
        model = ours.BatchNorm(not train, dtype=jnp.float64, **options)
        variables = model.init(jax.random.key(0), x)
        return lambda x: model.apply(variables, x, mutable=["batch_stats"])[0]
    if adapter == "nnx":
        graph, state = framework.split(ours.BatchNorm(3, rngs=framework.Rngs(0), dtype=jnp.float64, **options))
        return lambda x: framework.merge(graph, state, copy=True)(x, use_running_average=not train)
    if adapter == "equinox":
        model, state = framework.make_with_state(ours.BatchNorm)(3, "batch", mode="batch", **options)
        leaves, structure = jax.tree.flatten(state)  # a state is used once

        def one(a):
            return model(a, jax.tree.unflatten(structure, leaves), inference=not train)[0]

        return jax.vmap(one, axis_name="batch")
    model = framework.without_apply_rng(
        framework.transform_with_state(lambda x, train: ours.BatchNorm(affine, affine, 0.9, **options)(x, train))
    )
    start = model.init(jax.random.key(0), x, True)
    return lambda x: model.apply(*start, x, train)[0]


@pytest.mark.few(0, 1)
@pytest.mark.slow
@each
def test_forward_mode(adapter):
    """By itself in evaluation; in training by an argument or within the context."""
    x, t = normal(0, (6, 3), jnp.float64), normal(1, (6, 3), jnp.float64)

    def agrees(f):
        pushed = fast_jit(lambda x, t: jax.jvp(f, (x,), (t,))[1])(x, t)
        np.testing.assert_allclose(pushed, jnp.tensordot(fast_jit(jax.jacrev(f))(x), t, 2), rtol=1e-6, atol=1e-7)

    agrees(_forward(adapter, train=False))
    agrees(_forward(adapter, train=True, forward_mode=True))
    plain = _forward(adapter, train=True)
    with pytest.raises(TypeError, match=r"forward-mode"):
        jax.jvp(plain, (x,), (t,))
    with bnderiv.forward_mode.enabled():
        agrees(plain)
