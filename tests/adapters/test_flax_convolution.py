"""`Conv` of `bnderiv.linen` and `bnderiv.nnx` against Flax's, module against module."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

nn = pytest.importorskip("flax.linen", reason="needs the extra flax")
from flax import nnx

import bnderiv.linen
import bnderiv.nnx
from tests.adapters.alike import alike, normal
from tests.compiling import fast_jit

KEY = jax.random.key(0)
RANDOM: Any = {"bias_init": nn.initializers.normal(1.0)}
FLOAT64: Any = {"dtype": jnp.float64, "param_dtype": jnp.float64, **RANDOM}
MASK = jnp.asarray(np.random.default_rng(2).random((3, 2, 4, 6)) < 0.5)


@pytest.fixture(autouse=True)
def _as_flax_needs():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def value_and_gradients(f: Any, *arguments: Any) -> Any:
    """f, and a random cotangent of it pulled back to the arguments."""

    def run(*arguments):
        y, pull_back = jax.vjp(f, *arguments)
        return y, pull_back(normal(1, y.shape, y.dtype))

    return fast_jit(run)(*arguments)


def pair(window: Any, variables_of: jax.Array, **options: Any) -> tuple[Any, Any, Any]:
    """Our module and Flax's, of six features, and the variables of either."""
    ours, theirs = (library.Conv(6, window, **options) for library in (bnderiv.linen, nn))
    variables = theirs.init(KEY, variables_of)
    alike(ours.init(KEY, variables_of), variables, 0)
    return ours, theirs, variables


def rules(f: Any, *arguments: Any) -> int:
    return str(jax.make_jaxpr(f)(*arguments)).count("custom_vjp_call[")


CASES = [
    ((2, 7, 8, 4), (3, 2), {"strides": (2, 1), "kernel_dilation": (1, 2), "feature_group_count": 2}),
    ((2, 3, 7, 8, 4), (3, 2), {"padding": "CIRCULAR", "strides": 2, "mask": MASK}),  # two batch axes
    ((9, 4), 3, {"padding": "CAUSAL", "kernel_dilation": 2, "use_bias": False}),  # none
    ((2, 5, 6, 7, 2), (3, 1, 2), {"padding": [1, (0, 2), (3, 1)], "strides": (1, 2, 3)}),
    ((2, 7, 8, 4), (3, 2), {"padding": "VALID", "strides": (3, 2)}),
    ((2, 7, 8, 4), (3, 2), {"padding": "SAME_LOWER", "strides": None}),
    ((2, 7, 8, 4), (3, 2), {"padding": "REFLECT"}),
    ((2, 9, 6), (4,), {"padding": 2, "feature_group_count": 6}),
]
QUICK = 4


@pytest.mark.few(1, 4)
@pytest.mark.parametrize(
    ("shape", "window", "options"), [*CASES[:QUICK], *(pytest.param(*c, marks=pytest.mark.slow) for c in CASES[QUICK:])]
)
def test_parameters_values_and_gradients(shape, window, options):
    x = normal(0, shape, jnp.float64)
    ours, theirs, variables = pair(window, x, **options, **FLOAT64)
    assert (rules(ours.apply, variables, x), rules(theirs.apply, variables, x)) == (1, 0)
    alike(value_and_gradients(ours.apply, variables, x), value_and_gradients(theirs.apply, variables, x))


# What is left to `jax.lax.conv_general_dilated`.
REST = [
    ((2, 7, 8, 4), (3, 2), {"input_dilation": (1, 2), "padding": 1}),
    ((2, 7, 8, 4), (3, 2), {"padding": ((-1, 0), (2, -1))}),
    ((2, 7, 8, 4), (3, 2), {"precision": "highest"}),
    ((2, 2, 8, 4), (3, 2), {"padding": "VALID"}),  # an empty result
    ((0, 7, 8, 4), (3, 2), {}),
    ((2, 4), (), {}),  # a dense layer
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("shape", "window", "options"), REST)
def test_the_rest_is_flax_s(shape, window, options):
    x = normal(0, shape, jnp.float64)
    ours, theirs, variables = pair(window, x, **options, **FLOAT64)
    assert rules(ours.apply, variables, x) == 0
    alike(value_and_gradients(ours.apply, variables, x), value_and_gradients(theirs.apply, variables, x), 0)


def test_a_default_precision_is_that_of_the_gradient_too():
    """Which may be taken outside of where it is set."""
    x = normal(0, (2, 7, 8, 4))
    ours, theirs, variables = pair((3, 2), x)

    def program_of(model):
        def loss(variables, x):
            with jax.default_matmul_precision("float32"):
                return model.apply(variables, x).sum()

        return str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(variables, x))

    for model in (ours, theirs):
        program = program_of(model)
        assert program.count("precision=(Precision.HIGHEST") >= 3
        assert "precision=None" not in program


def test_every_dtype_is_flax_s():
    integers: Any = {"param_dtype": jnp.int32, "kernel_init": nn.initializers.ones, "use_bias": False}
    integers["promote_dtype"] = lambda *arrays, dtype: arrays
    dtypes: Any = {}, {"dtype": jnp.float16}, {"param_dtype": jnp.bfloat16}
    options: Any = {jnp.float32: dtypes, jnp.bfloat16: dtypes, jnp.int32: (*dtypes, integers), jnp.complex64: ({},)}
    options |= {jnp.float8_e4m3fn: [{"dtype": jnp.float16}, {"dtype": jnp.float8_e4m3fn}]}
    for x_dtype, several in options.items():
        x = jnp.ones((2, 5, 5, 4), x_dtype)
        for of in several:
            ours, theirs = (library.Conv(6, (3, 2), **of) for library in (bnderiv.linen, nn))
            shapes = [jax.eval_shape(model.init_with_output, KEY, x) for model in (ours, theirs)]
            assert shapes[0] == shapes[1]


def test_dtypes_that_nothing_promotes_raise_as_in_flax():
    for library in (bnderiv.linen, nn):
        model = library.Conv(6, 3, promote_dtype=lambda *arrays, dtype: arrays)
        with pytest.raises(TypeError, match="bfloat16"):
            jax.eval_shape(model.init, KEY, jnp.ones((2, 5, 4), jnp.bfloat16))


def test_an_input_of_too_small_a_rank_raises_as_in_flax():
    for library in (bnderiv.linen, nn):
        with pytest.raises(ValueError, match=r"must have the same number of dimensions, but got \(6, 4\)"):
            jax.eval_shape(library.Conv(8, (3, 3), padding="VALID").init, KEY, jnp.ones((6, 4), jnp.float32))


def test_half_precision_with_parameters_in_float32():
    x = normal(0, (2, 7, 8, 4), jnp.bfloat16)
    ours, theirs, variables = pair((3, 2), x, dtype=jnp.bfloat16, **RANDOM)
    alike(value_and_gradients(ours.apply, variables, x), value_and_gradients(theirs.apply, variables, x), 2e-2)


@pytest.mark.parametrize(("shape", "window", "options"), CASES[1:3])
def test_nnx(shape, window, options):
    x = normal(0, shape, jnp.float64)
    ours, theirs, assigned = (
        library.Conv(shape[-1], 6, window, **options, **FLOAT64, rngs=nnx.Rngs(0))
        for library in (bnderiv.nnx, nnx, nnx)
    )
    assigned.__class__ = bnderiv.nnx.Conv
    alike(nnx.to_pure_dict(nnx.state(ours)), nnx.to_pure_dict(nnx.state(theirs)), 0)

    def run(layer):
        graph, variables = nnx.split(layer)

        def call(variables, x):
            return nnx.merge(graph, variables)(x)

        y, gradients = value_and_gradients(call, variables, x)
        return rules(call, variables, x), (y, jax.tree.leaves(gradients))

    (none, expected), *found = run(theirs), run(ours), run(assigned)
    assert none == 0
    for count, results in found:
        assert count == 1
        alike(results, expected)


def test_nnx_asked_for_a_dtype_or_a_sharding():
    x = normal(0, (8, 5, 4), jnp.bfloat16)
    ours, theirs = (
        library.Conv(4, 6, 3, dtype=jnp.bfloat16, preferred_element_type=jnp.float32, rngs=nnx.Rngs(0))
        for library in (bnderiv.nnx, nnx)
    )
    alike(ours(x), theirs(x), 0)
    assert ours(x).dtype == jnp.float32
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
        y = ours(sharded, out_sharding=NamedSharding(mesh, P("data", None, "model")))
    alike(y, ours(x))
    assert jax.typeof(y).sharding.spec == P("data", None, "model")


def test_another_function_given():
    def halved(*args, **kwargs):
        return jax.lax.conv_general_dilated(*args, **kwargs) / 2

    x = normal(0, (2, 7, 4))
    ours, _, variables = pair((3,), x)
    options: Any = {"conv_general_dilated": halved}, {"conv_general_dilated_cls": lambda: halved}
    for given in options:
        model = bnderiv.linen.Conv(6, (3,), **given)
        alike(model.apply(variables, x) * 2, ours.apply(variables, x))
    plain, other = (bnderiv.nnx.Conv(4, 6, 3, rngs=nnx.Rngs(0), **given) for given in ({}, options[0]))
    alike(other(x) * 2, plain(x))
    assert bnderiv.linen.Conv(6, 3) == bnderiv.linen.Conv(6, 3).clone() == bnderiv.linen.convert(nn.Conv(6, 3))


def test_images_of_any_size_in_an_export():
    x = normal(0, (2, 7, 8, 4))
    ours, theirs, variables = pair((3, 2), x, padding="VALID")
    sizes = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, w, 4"), x.dtype)
    exported = jax.export.export(jax.jit(lambda x: ours.apply(variables, x)))(sizes)
    alike(exported.call(x), theirs.apply(variables, x))


def test_forward_mode_must_be_asked_for():
    x = normal(0, (2, 7, 4))
    layer = bnderiv.nnx.Conv(4, 6, 3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(layer, (x,), (x,))
