"""Layer, instance, group and RMS norm of `bnderiv.haiku` against those of `haiku`, module against module."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

hk = pytest.importorskip("haiku", reason="needs the extra haiku")

import bnderiv.haiku
from tests.adapters.alike import alike, normal, sgd
from tests.adapters.norm_truth import errors
from tests.compiling import fast_jit

NORMS = ["LayerNorm", "InstanceNorm", "GroupNorm", "RMSNorm"]
NEEDED: dict[str, dict[str, Any]] = {
    "LayerNorm": {"axis": -1, "create_scale": True, "create_offset": True},
    "InstanceNorm": {"create_scale": True, "create_offset": True},
    "GroupNorm": {"groups": 2},
    "RMSNorm": {"axis": -1},
}
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _implicit_promotion():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def pair(name: str, **options: Any) -> list[Any]:
    """Our layer and Haiku's as functions of parameters and arrays; parameters are drawn at random."""
    options = {**NEEDED[name], **options}
    initializer = hk.initializers.RandomNormal()
    if options.get("create_scale", True):
        options["scale_init"] = initializer
    if options.get("create_offset", name != "RMSNorm"):
        options["offset_init"] = initializer

    def model(library):
        return hk.without_apply_rng(hk.transform(lambda *arrays: getattr(library, name)(**options)(*arrays)))

    return [model(library) for library in (bnderiv.haiku, hk)]


def with_gradient(model, params, *arrays):
    """y, and the gradients of ⟨delta, y⟩ by parameters and arrays."""

    def product(params, arrays):
        y = model.apply(params, *arrays)
        return jnp.vdot(normal(1, y.shape, y.dtype), y), y

    (_, y), gradient = fast_jit(jax.value_and_grad(product, (0, 1), has_aux=True))(params, arrays)
    return y, gradient


GIVEN = {"create_scale": False, "create_offset": False}
CASES = [
    ("LayerNorm", {}, ()),
    ("LayerNorm", {"axis": (0, 1), "param_axis": (1, -1), "create_offset": False, "use_fast_variance": True}, ()),
    ("LayerNorm", {"axis": slice(1, -1), "param_axis": 0, "eps": 0.1, "create_scale": False}, ()),
    ("LayerNorm", GIVEN, ((3, 1, 1, 6), (5, 1))),
    ("LayerNorm", {"axis": (0, 1, 2), **GIVEN}, ((),)),
    ("InstanceNorm", {}, ()),
    ("InstanceNorm", {"data_format": "NCHW", "create_offset": False}, ()),
    ("GroupNorm", {}, ()),
    ("GroupNorm", {"data_format": "channels_first", "axis": slice(1, 3)}, ()),
    ("GroupNorm", GIVEN, ((3, 4, 1, 6), (6,))),
    ("GroupNorm", {"axis": (0, 2), **GIVEN}, ((3, 1, 5, 6), (6,))),
    ("RMSNorm", {}, ()),
    ("RMSNorm", {"axis": (1, 2), "param_axis": (1, 3), "eps": 0.1}, ()),
    ("RMSNorm", {"axis": slice(1, None), "create_scale": False}, ()),
]
QUICK = {0, 7, 9}


@pytest.mark.few(1, 2)
@pytest.mark.parametrize(
    ("name", "options", "given"),
    [pytest.param(*case, marks=[] if i in QUICK else pytest.mark.slow) for i, case in enumerate(CASES)],
)
def test_parameters_values_and_gradients(name, options, given):
    arrays = [normal(i, shape, jnp.float64) for i, shape in enumerate(((3, 4, 5, 6), *given))]
    ours, theirs = pair(name, **options)
    params = theirs.init(KEY, *arrays)
    alike(ours.init(KEY, *arrays), params, 0)
    alike(with_gradient(ours, params, *arrays), with_gradient(theirs, params, *arrays))


@pytest.mark.slow
def test_without_space_an_instance_is_its_offset():
    x = normal(0, (3, 6), jnp.float64)
    ours, theirs = pair("InstanceNorm")
    params = theirs.init(KEY, x)
    alike(with_gradient(ours, params, x)[0], with_gradient(theirs, params, x)[0])
    np.testing.assert_array_equal(with_gradient(ours, params, x)[1][1][0], 0)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NORMS)
def test_every_dtype_is_haiku_s(name):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        x = normal(0, (3, 4, 5, 6), dtype)
        ours, theirs = pair(name)
        params = jax.eval_shape(theirs.init, KEY, x)
        assert jax.eval_shape(ours.init, KEY, x) == params
        wide = jax.tree.map(lambda a: a.update(dtype=jnp.float32), params)
        for p in (params, wide):
            assert jax.eval_shape(ours.apply, p, x) == jax.eval_shape(theirs.apply, p, x)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_checkpoints_of_each_continue_in_the_other():
    x, target = normal(0, (4, 5, 3), jnp.float64), normal(1, (4, 5, 6), jnp.float64)

    def network(library):
        def forward(x):
            for name in NORMS:
                x = hk.Linear(6, with_bias=False)(x)
                x = jnp.tanh(getattr(library, name)(**NEEDED[name])(x))
            return x

        return hk.without_apply_rng(hk.transform(forward))

    def train(model, params):
        @fast_jit
        def step(params):
            return sgd(params, jax.grad(lambda p: jnp.square(model.apply(p, x) - target).mean())(params))

        return step(step(params))

    ours, theirs = network(bnderiv.haiku), network(hk)
    start = theirs.init(KEY, x)
    expected = train(theirs, train(theirs, start))
    for first, second in ((ours, theirs), (theirs, ours)):
        alike(train(second, train(first, start)), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axes", "groups"), [("LayerNorm", -1, None), ("GroupNorm", (1, 2, 4), 2), ("InstanceNorm", (1, 2), None)]
)
def test_means_far_above_the_deviation(name, axes, groups):
    x, delta = normal(0, (8, 6, 6, 32), mean=1e4, scale=1), normal(1, (8, 6, 6, 32))
    ours, theirs = pair(name, **(GIVEN if name == "GroupNorm" else {**NEEDED[name], **GIVEN}))

    def measured(model):
        @jax.jit
        def both(x):
            y, pull_back = jax.vjp(lambda x: model.apply({}, x), x)
            return y, *pull_back(delta)

        return errors(both(x), x, delta, axes, groups=groups, eps=1e-5)

    assert max(measured(ours)) < 4e-7
    assert max(measured(theirs)) > 1e-4  # what the tests above would not see


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_half_precision_is_computed_in_float32(name):
    """float16 squares overflow above 255."""
    x = normal(0, (3, 4, 5, 6), jnp.float16, 3e2, 3e2)
    ours, theirs = pair(name)
    params = theirs.init(KEY, x)
    wide = theirs.apply(jax.tree.map(lambda a: a.astype(jnp.float32), params), x.astype(jnp.float32))
    alike(ours.apply(params, x), wide.astype(jnp.float16), 2e-3)
    assert not np.allclose(theirs.apply(params, x), wide, atol=1e-2)


@pytest.mark.parametrize("name", NORMS)
def test_the_class_is_haiku_s(name):
    ours, theirs = getattr(bnderiv.haiku, name), getattr(hk, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert issubclass(bnderiv.haiku.InstanceNorm, bnderiv.haiku.LayerNorm)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NORMS)
def test_a_policy_for_haiku_s_class_applies(name):
    jmp = pytest.importorskip("jmp")
    ours, theirs = getattr(bnderiv.haiku, name), getattr(hk, name)
    x = normal(0, (3, 4, 5, 6), jnp.float16)

    def dtypes():
        model = pair(name)[0]
        params = model.init(KEY, x)
        return {a.dtype.name for a in jax.tree.leaves(params)}, model.apply(params, x).dtype.name

    assert dtypes() == ({"float16"}, "float16")
    with hk.mixed_precision.push_policy(theirs, jmp.get_policy("params=float32,compute=float32,output=bfloat16")):
        assert dtypes() == ({"float32"}, "bfloat16")
        with hk.mixed_precision.push_policy(ours, jmp.get_policy("params=float16,compute=float32,output=float32")):
            assert dtypes() == ({"float16"}, "float32")  # its own comes first
        assert dtypes() == ({"float32"}, "bfloat16")
    assert dtypes() == ({"float16"}, "float16")
    assert hk.mixed_precision.get_policy(ours) is None


@pytest.mark.parametrize(
    ("name", "options", "arrays", "error", "message"),
    [
        ("LayerNorm", {}, (np.ones((2, 6), jnp.complex64),), TypeError, "inputs must be real, got complex64"),
        ("LayerNorm", {"axis": 2}, (np.ones((2, 6)),), ValueError, r"axis must lie in \[-2, 2\)"),
        ("RMSNorm", {"param_axis": 2}, (np.ones((2, 6)),), ValueError, r"param_axis must lie in \[-2, 2\)"),
        (
            "LayerNorm",
            {},
            (np.ones((2, 6)), np.ones(6)),
            ValueError,
            "Cannot pass `scale` at call time if `create_scale=",
        ),
        ("GroupNorm", {}, (np.ones((2, 6)), None, np.ones(6)), ValueError, "Cannot pass `offset` at call time if"),
        (
            "LayerNorm",
            GIVEN,
            (np.ones((2, 6)), np.ones(5)),
            ValueError,
            r"scale must broadcast to .*, \(2, 6\), got shape",
        ),
        ("GroupNorm", {"groups": 4}, (np.ones((2, 6)),), ValueError, "divisible by .*, got 6 channels and 4 groups"),
        ("GroupNorm", {"groups": 0}, (np.ones((2, 6)),), ValueError, "groups must be at least 1, got 0"),
    ],
)
def test_errors(name, options, arrays, error, message):
    model = hk.transform(lambda *a: getattr(bnderiv.haiku, name)(**{**NEEDED[name], **options})(*a))
    with pytest.raises(error, match=message):
        model.init(KEY, *arrays)


def test_negative_axes_count_from_the_end_of_the_input():
    x = normal(0, (3, 4, 5, 6), jnp.float64)
    backward, _ = pair("GroupNorm", axis=(-3, -2, -1), **GIVEN)
    _, forward = pair("GroupNorm", axis=(1, 2, 3), **GIVEN)
    alike(backward.apply({}, x), forward.apply({}, x))
