"""Which form of a pool a program has is its target's choice; every form keeps the contract."""

import functools
import os
import re
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P
from jax.sharding import SingleDeviceSharding

import bnderiv
from bnderiv import forward_mode
from bnderiv.pooling import _xla
from bnderiv.pooling._windows import windows
from tests import contract, forms
from tests.devices import traced_for
from tests.pooling.cases import CASES
from tests.programs import opcodes

POOLS = [
    (pool, options)
    for pool in ("avg_pool", "max_pool")
    for options in ({"window": 3, "strides": 2, "padding": 1}, {"window": (2, 3), "strides": 1}, {"window": 2})
]
pools = pytest.mark.parametrize(("pool", "options"), POOLS, ids=str)


# The tiles and what overlaps with padding have the forms' differences, and three axes; the others take minutes.
ALWAYS = ("tiles", "overlap-padded", "three-axes")


def _every_form():
    for case in CASES:
        for platform in ("cuda", "tpu"):
            always = str(case).endswith(ALWAYS)
            marks = [pytest.mark.slow] if always else [pytest.mark.slow, pytest.mark.exhaustive]
            yield pytest.param(platform, case, marks=marks, id=f"{case}-{platform}")


@pytest.mark.few(0, 2)
@pytest.mark.parametrize(("platform", "case"), list(_every_form()))
def test_every_form_keeps_the_contract(platform, case):
    with forms.of(platform):
        for promise in (*contract.PROMISES, *contract.TRANSFORMS):
            promise(bnderiv, case)
        for promise in contract.EVERYTHING:
            if promise not in contract.COMMON:
                promise(forward_mode, case)


@pytest.mark.few(0, 2)
@pytest.mark.slow
@pytest.mark.parametrize("platform", forms.PLATFORMS)
@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
@pools
def test_every_form_under_shard_map(pool, options, check_vma, platform):
    def loss(layers):
        return lambda x: (getattr(layers, pool)(x, **options) ** 3).sum()

    x = jnp.asarray(np.random.default_rng(0).permutation(4 * 6 * 6 * 2).reshape(4, 6, 6, 2) / 7.0)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    shard_map = functools.partial(jax.shard_map, mesh=mesh, in_specs=P("d"), check_vma=check_vma)
    expected = jax.grad(loss(bnderiv.reference))(x)
    with forms.of(platform):
        for layers in (bnderiv, forward_mode):
            inside = shard_map(jax.grad(loss(layers)), out_specs=P("d"))
            f = loss(layers)
            around = jax.grad(shard_map(lambda x, f=f: jax.lax.psum(f(x), "d"), out_specs=P()))
            for gradient in (inside, around):
                np.testing.assert_allclose(jax.jit(gradient)(x), expected, rtol=1e-12)


def both_ways(pool, options):
    def f(x, dy):
        y, pull_back = jax.vjp(functools.partial(getattr(bnderiv, pool), **options), x)
        return y, pull_back(dy)[0]

    return f


@pytest.mark.few(0, 3)
@pytest.mark.slow
@pools
def test_one_export_for_all_platforms(pool, options):
    """It holds a choice between the forms, and is right where it runs."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 4, (2, 6, 7, 3)), jnp.float32)  # with ties
    y, pull_back = jax.vjp(functools.partial(getattr(bnderiv.reference, pool), **options), x)
    dy = jnp.asarray(rng.standard_normal(y.shape), jnp.float32)
    program = jax.export.export(jax.jit(both_ways(pool, options)), platforms=["cpu", "cuda", "rocm", "tpu"])(x, dy)
    assert "stablehlo.case" in program.mlir_module()
    for actual, expected in zip(jax.jit(program.call)(x, dy), (y, pull_back(dy)[0]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.few(1)
@pytest.mark.as_users_compile
@pools
def test_compiled_for_a_cpu_nothing_is_left_of_the_choice(pool, options):
    x = jax.ShapeDtypeStruct((2, 6, 7, 3), jnp.float32)
    dy = jax.eval_shape(functools.partial(getattr(bnderiv, pool), **options), x)
    program = jax.jit(both_ways(pool, options)).lower(x, dy).compile()
    assert not opcodes(program) & {"conditional", "select-and-scatter"}


@functools.cache
def tpu(name):
    """Where to compile for; without a TPU its library must not look for one, and is loaded by several test workers."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    try:
        return SingleDeviceSharding(topologies.get_topology_desc(f"{name}:2x2", "tpu").devices[0])
    except Exception as error:
        pytest.skip(f"no compiler for a TPU here (pip install libtpu): {error}")


def compiled(f, sharding, *shapes) -> Any:
    placed = (jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in shapes)
    return jax.jit(f).lower(*placed).compile()


def flax_like(pool, options, shape):
    """What flax.linen's pools are, differentiated by JAX."""
    window, strides = options["window"], options["strides"]
    geometry = (1, window, window, 1), (1, strides, strides, 1), options.get("padding", "VALID")

    def f(x):
        if pool == "max_pool":
            return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *geometry)
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, *geometry) / window**2

    return f


@pytest.mark.as_users_compile
@pytest.mark.parametrize("target", ["v5e", pytest.param("v6e", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("pool", "options", "shape"),
    [
        ("max_pool", {"window": 3, "strides": 2, "padding": "SAME"}, (256, 112, 112, 64)),
        ("max_pool", {"window": 2, "strides": 2}, (256, 112, 112, 64)),
        ("max_pool", {"window": 3, "strides": 1, "padding": "SAME"}, (256, 112, 112, 64)),
        ("max_pool", {"window": 7, "strides": 1}, (256, 7, 7, 2048)),
        ("avg_pool", {"window": 2, "strides": 2}, (256, 112, 112, 64)),
        ("avg_pool", {"window": 3, "strides": 1, "padding": "SAME"}, (256, 112, 112, 64)),
        ("avg_pool", {"window": 7, "strides": 1}, (256, 7, 7, 2048)),
    ],
    ids=str,
)
def test_on_a_tpu_no_more_than_flax(target, pool, options, shape, dtype):
    """Cycles by the compiler's own estimate, bytes and temporary memory; and no conditional is left of the choice."""
    sharding = tpu(target)
    x = jax.ShapeDtypeStruct(shape, dtype)
    dy = jax.eval_shape(flax_like(pool, options, shape), x)

    def cost(f: Any) -> tuple[float, ...]:
        def both(x, dy):
            y, pull_back = jax.vjp(f, x)
            y, dy = jax.lax.optimization_barrier((y, dy))
            return y, pull_back(dy)[0]

        program = compiled(both, sharding, x, dy)
        text, analysis = program.as_text(), program.cost_analysis()
        assert not re.search(r" conditional\(", text)
        cycles = sum(int(c) for c in re.findall(r'"estimated_cycles":"(\d+)"', text))
        return cycles, analysis["bytes accessed"], program.memory_analysis().temp_size_in_bytes

    with traced_for(1):  # a max pool for several devices takes another array, see `_xla.py`
        ours = cost(functools.partial(getattr(bnderiv, pool), **options))
    flax = cost(flax_like(pool, options, shape))
    # Half precision summed in float32 is converted: 34 cycles of 4.7 million.
    assert all(a <= 1.0001 * b for a, b in zip(ours, flax, strict=True)), (ours, flax)


@pytest.mark.slow
def test_windows_of_one_cell_under_shard_map():
    """The number of the only cell is a constant, which the forms of all platforms give the varying axes of x."""
    x = jnp.arange(4 * 3 * 3 * 2, dtype=jnp.float32).reshape(4, 3, 3, 2)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    gradient = jax.grad(lambda x: (bnderiv.max_pool(x, 1) ** 2).sum())
    np.testing.assert_array_equal(jax.shard_map(gradient, mesh=mesh, in_specs=P("d"), out_specs=P("d"))(x), 2 * x)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_tpu_hands_to_the_first_maximum_and_to_the_first_nan(devices):
    x = jnp.array([2, 2, np.nan, 1, np.inf, np.nan, np.nan, np.nan, 1, 2], jnp.float32).reshape(1, 10, 1)
    sides = windows(x, 2, None, "VALID", 1, False, -1, 0)
    delta = jnp.arange(1.0, 6).reshape(1, 5, 1)
    with traced_for(devices):
        dx = _xla.hand_to_first_maxima(sides, x, delta)
    np.testing.assert_array_equal(dx.ravel(), [1, 0, 2, 0, 0, 3, 4, 0, 0, 5])


def test_the_maxima_of_a_tpu_in_a_dtype_without_infinity():
    x = -jnp.ones((1, 2, 1), jnp.float8_e4m3fn)
    sides = windows(x, 2, None, "VALID", 1, False, -1, 0)
    np.testing.assert_array_equal(_xla.maxima(sides, x).astype(jnp.float32), [[[-1]]])
