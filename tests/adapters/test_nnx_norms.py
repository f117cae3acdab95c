"""Layer, RMS, group and instance norm of `bnderiv.nnx` against those of `flax.nnx`, module against module."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

nnx = pytest.importorskip("flax.nnx", reason="needs the extra flax")

import bnderiv.nnx
from tests.adapters.alike import alike, normal
from tests.adapters.norm_truth import errors
from tests.compiling import fast_jit

NORMS = ["LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]
FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


@pytest.fixture(autouse=True)
def _as_flax_needs():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def pair(name: str, features: int, **options: Any) -> tuple[Any, Any]:
    """Our layer and Flax's, with variables drawn at random."""
    random = {"scale_init": nnx.initializers.normal(1.0), "bias_init": nnx.initializers.normal(1.0)}
    if name == "RMSNorm":
        del random["bias_init"]
    return tuple(
        getattr(module, name)(features, rngs=nnx.Rngs(0), **{**random, **options}) for module in (bnderiv.nnx, nnx)
    )


def with_gradient(layer, x, mask=None):
    """y, and the gradients of ⟨delta, y⟩ by variables and x."""
    graph, variables = nnx.split(layer)

    def product(variables, x):
        y = nnx.merge(graph, variables)(x, mask=mask)
        return jnp.vdot(normal(1, x.shape, y.dtype), y), y

    (_, y), gradient = fast_jit(jax.value_and_grad(product, (0, 1), has_aux=True))(variables, x)
    return y, nnx.to_pure_dict(gradient[0]), gradient[1]


CASES = [
    ("LayerNorm", (4, 3, 6), 6, {}, True),
    ("LayerNorm", (3, 4, 6), 24, {"reduction_axes": (-2, 0), "feature_axes": (1, 2), "use_bias": False}, False),
    ("RMSNorm", (4, 3, 6), 6, {"epsilon": 0.1}, True),
    ("RMSNorm", (3, 4, 6), 4, {"reduction_axes": (1, 2), "feature_axes": 1}, False),
    ("GroupNorm", (3, 4, 5, 6), 6, {"num_groups": 2}, True),
    ("GroupNorm", (3, 4, 6), 6, {"num_groups": None, "group_size": 3, "use_scale": False}, False),
    ("InstanceNorm", (3, 4, 5, 6), 6, {"use_fast_variance": False}, True),
    ("InstanceNorm", (3, 4, 5, 6), 24, {"feature_axes": (1, -1), "use_bias": False}, False),
]
QUICK = {0, 2}


@pytest.mark.few(1, 2)
@pytest.mark.parametrize(
    ("name", "shape", "features", "options", "masked"),
    [pytest.param(*case, marks=[] if i in QUICK else pytest.mark.slow) for i, case in enumerate(CASES)],
)
def test_variables_values_and_gradients(name, shape, features, options, masked):
    x = normal(0, shape, jnp.float64)
    ours, theirs = pair(name, features, **options, **FLOAT64)
    assert isinstance(ours, type(theirs))
    alike(nnx.to_pure_dict(nnx.state(ours)), nnx.to_pure_dict(nnx.state(theirs)), 0)
    mask = jnp.asarray(np.random.default_rng(2).random(shape) < 0.7).at[..., ::3].set(True).at[..., 1::3].set(True)
    for m in (None, mask) if masked else (None,):
        alike(with_gradient(ours, x, m), with_gradient(theirs, x, m))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["RMSNorm", "GroupNorm", "InstanceNorm"])
def test_what_is_masked_out_is_as_if_it_were_not_there(name):
    options = {"GroupNorm": {"num_groups": 2}, "RMSNorm": {"reduction_axes": (1, 2)}}.get(name, {})
    x, mask = normal(0, (2, 4, 6)), (jnp.arange(4) < 3)[:, None]
    layer, _ = pair(name, 6, **options)

    @jax.value_and_grad
    def product(x, mask=None):
        return jnp.vdot(normal(1, (2, 3, 6)), layer(x, mask=mask)[:, :3])

    masked, (value, dx) = fast_jit(lambda x: (product(x, mask), product(x[:, :3])))(x)
    alike(masked, (value, np.pad(dx, ((0, 0), (0, 1), (0, 0)))), 1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NORMS)
def test_every_dtype_is_flax_s(name):
    options = {"num_groups": 2} if name == "GroupNorm" else {}
    for x_dtype in (jnp.float32, jnp.bfloat16, jnp.int32):
        x = normal(0, (4, 5, 6), scale=4).astype(x_dtype)
        for dtypes in ({}, {"dtype": jnp.float16}, {"param_dtype": jnp.bfloat16}):
            ours, theirs = pair(name, 6, **options, **dtypes)
            assert jax.eval_shape(ours, x) == jax.eval_shape(theirs, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_the_state_of_either_fits_the_other(name):
    x = normal(0, (4, 5, 6), jnp.float64)
    options = {"num_groups": 2} if name == "GroupNorm" else {}
    ours, theirs = pair(name, 6, **options, **FLOAT64)
    for first, second in ((ours, theirs), (theirs, ours)):
        other = type(second)(6, rngs=nnx.Rngs(1), **options, **FLOAT64)
        nnx.update(other, nnx.state(first))
        alike(other(x), first(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "axes", "groups"),
    [("LayerNorm", {}, -1, None), ("GroupNorm", {"num_groups": 4}, (1, 2, 4), 4), ("InstanceNorm", {}, (1, 2), None)],
)
def test_means_far_above_the_deviation(name, options, axes, groups):
    x, delta = normal(0, (8, 6, 6, 32), mean=1e4, scale=1), normal(1, (8, 6, 6, 32))

    def measured(library):
        layer = getattr(library, name)(32, rngs=nnx.Rngs(0), **options)

        @jax.jit
        def both(x):
            y, pull_back = jax.vjp(layer, x)
            return y, *pull_back(delta)

        return errors(both(x), x, delta, axes, groups=groups)

    assert max(measured(bnderiv.nnx)) < 4e-7
    assert min(measured(nnx)) > 1e-2  # what the tests above would not see


@pytest.mark.slow
def test_group_norm_over_the_last_axis_alone_is_linen_s():
    x = normal(0, (3, 4, 5, 6))
    ours = bnderiv.nnx.GroupNorm(6, 2, reduction_axes=-1, rngs=nnx.Rngs(0))
    groups = x.reshape(3, 4, 5, 2, 3)
    expected = (groups - groups.mean(-1, keepdims=True)) / jnp.sqrt(groups.var(-1, keepdims=True) + 1e-6)
    alike(ours(x), expected.reshape(x.shape))


def test_parameters_keep_their_precision():
    x = normal(0, (64, 6), jnp.bfloat16)
    layer: Any = bnderiv.nnx.LayerNorm(6, dtype=jnp.bfloat16, use_bias=False, rngs=nnx.Rngs(0))
    layer.scale[...] = jnp.full(6, 1.003, jnp.float32)  # 1 in bfloat16
    expected = bnderiv.layer_norm(x.astype(jnp.float32), layer.scale[...], None, eps=1e-6)
    np.testing.assert_array_equal(layer(x), expected.astype(jnp.bfloat16))
    assert (layer(x) != (expected / 1.003).astype(jnp.bfloat16)).any()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("LayerNorm", {"reduction_axes": 3}, ValueError, r"reduction_axes must lie in \[-3, 3\)"),
        (
            "LayerNorm",
            {"feature_axes": 1},
            ValueError,
            r"num_features must fit the features of x, of shape \(3,\), got \(6,",
        ),
        ("GroupNorm", {"reduction_axes": 1}, ValueError, "reduction_axes must include the last axis"),
        ("InstanceNorm", {"feature_axes": (0, 2)}, ValueError, r"batch axis. feature_axes: \(0, 2\)"),
    ],
)
def test_errors(name, options, error, message):
    groups = {"num_groups": 2} if name == "GroupNorm" else {}
    with pytest.raises(error, match=message):
        getattr(bnderiv.nnx, name)(6, rngs=nnx.Rngs(0), **groups, **options)(normal(0, (2, 3, 6)))


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_over_a_mapped_axis(name):
    options = {"axis_name": "parts", **({"num_groups": 2} if name == "GroupNorm" else {})}
    x = normal(0, (5, 4, 3, 6), jnp.float64)
    ours, theirs = (
        jax.vmap(getattr(package, name)(6, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options), axis_name="parts")(x)
        for package in (bnderiv.nnx, nnx)
    )
    alike(ours, theirs)


def test_errors_of_channels():
    layer = bnderiv.nnx.GroupNorm(6, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x must have 6 channels last, got shape \(2, 4\)"):
        layer(normal(0, (2, 4)))
