"""Counts behind the times of `experiments/benchmark`: bytes kept, arrays written, kernels, flops and bytes moved.

Compiled for the CPU, where they do not depend on how busy the machine is. Each bound is what it is today and a few per
cent more; where one is broken on purpose, measure before moving it.
"""

import re
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bnderiv
from bnderiv.normalization import batch_norm
from experiments.benchmark import steps
from experiments.benchmark.memory import saved
from tests.devices import traced_for
from tests.programs import launched, opcodes, traffic

SHAPE = (16, 20, 20, 24)
X, VECTOR = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (SHAPE, SHAPE[-1:]))
VECTOR_BYTES = 4 * SHAPE[-1]


def size_in_bytes(array):
    return array.size * array.dtype.itemsize


def normalized(layer):
    return lambda *args: getattr(bnderiv, layer)(*args)[0]


@lru_cache
def batch_norm_program(layer, shape=SHAPE) -> Any:
    x, vector = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, shape[-1:]))

    def both_ways(x, gamma, beta, dy):
        y, pull_back = jax.vjp(normalized(layer), x, gamma, beta)
        return y, pull_back(dy)

    return jax.jit(both_ways).lower(x, vector, vector, x).compile()


@lru_cache
def lenet_program(devices: int) -> Any:
    """As traced where there are so many devices; the suite has eight."""
    step, arguments = steps.networks(32, "max", "relu")["bnderiv"]
    with traced_for(devices):
        return step.lower(*jax.eval_shape(arguments)).compile()


SLOW = {"gather", "scatter", "select-and-scatter", "reduce-window", "sort", "while", "conditional", "convolution"}


# Batch norm. Arrays of the size of x: y and dx, and with a ReLU its masked δ, which two sums and dx share.


@pytest.mark.few(1)
@pytest.mark.parametrize(("layer", "full"), [("batch_norm", 2), ("batch_norm_relu", 3)])
def test_batch_norm_writes_nothing_of_the_size_of_x_but_its_results(layer, full):
    written = [n for _, sizes in launched(batch_norm_program(layer)) for n in sizes if n >= X.size]
    assert written == [X.size] * full
    assert batch_norm_program(layer).memory_analysis().temp_size_in_bytes < 0.01 * size_in_bytes(X)


@pytest.mark.few(0, 2)
@pytest.mark.parametrize(("layer", "passes", "flops"), [("batch_norm", 11, 41.1), ("batch_norm_relu", 14, 49.1)])
@pytest.mark.parametrize("channels", [24, 6])  # as they are, and in rows of 20·6
def test_batch_norm_passes_and_arithmetic(layer, passes, flops, channels):
    """Bytes moved in units of x, a CPU reading once for each sum; operations for each element, of both branches."""
    program = batch_norm_program(layer, (*SHAPE[:-1], channels))
    size = X.size // SHAPE[-1] * channels
    assert traffic(program) < 1.02 * passes * 4 * size
    assert program.cost_analysis()["flops"] < 1.03 * flops * size


@pytest.mark.parametrize("layer", ["batch_norm", "batch_norm_relu"])
def test_batch_norm_runs_none_of_the_slow_operations(layer):
    assert not opcodes(batch_norm_program(layer), at_least=X.size) & SLOW


@pytest.mark.few(0, 2)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layer", ["batch_norm", "batch_norm_relu"])
def test_batch_norm_keeps_x_and_ten_vectors(layer, dtype):
    x = jax.ShapeDtypeStruct(SHAPE, dtype)
    assert saved(normalized(layer), x, VECTOR, VECTOR) <= size_in_bytes(x) + 10 * VECTOR_BYTES + 8


def equations(jaxpr):
    """Those of a jaxpr and of all that it calls."""
    inner = [v for e in jaxpr.eqns for p in e.params.values() for v in (p if isinstance(p, tuple) else (p,))]
    return len(jaxpr.eqns) + sum(
        equations(getattr(v, "jaxpr", v)) for v in inner if hasattr(getattr(v, "jaxpr", v), "eqns")
    )


def test_equations_of_a_gradient():
    """Of one batch norm: what JAX traces, and XLA compiles. Flax's has 66, without a second measurement."""
    gradient = jax.grad(lambda *args: normalized("batch_norm")(*args).sum(), (0, 1, 2))
    assert 100 < equations(jax.make_jaxpr(gradient)(X, VECTOR, VECTOR).jaxpr) <= 220


def test_equations_of_a_gradient_over_devices():
    """The counts and units of the devices have no derivatives."""
    layer = jax.vmap(partial(bnderiv.batch_norm, axis_name="d"), (0, None, None), axis_name="d")
    gradient = jax.grad(lambda *args: layer(*args)[0].sum(), (0, 1, 2))
    x = jax.ShapeDtypeStruct((4, *X.shape), X.dtype)
    assert 300 < equations(jax.make_jaxpr(gradient)(x, VECTOR, VECTOR).jaxpr) <= 415


def test_equal_layers_are_traced_once(monkeypatch):
    traced, moments_of = [], batch_norm.moments_of
    monkeypatch.setattr(batch_norm, "moments_of", lambda *args: traced.append(1) or moments_of(*args))

    def network(x, gamma, beta):
        for _ in range(5):
            x = bnderiv.batch_norm_relu(x, gamma, beta)[0]
        return x.sum()

    x = jax.ShapeDtypeStruct((3, 7, 5, 11), jnp.float32)  # a shape of no other test
    vector = jax.ShapeDtypeStruct((11,), jnp.float32)
    jax.jit(jax.grad(network)).trace(x, vector, vector)
    assert len(traced) == 1


# Other norms and losses: how many arrays of the size of x a CPU's program writes.
#     a norm: y, dx, the terms of ∂J/∂γ
#     a loss of integer labels: exp(z), dlogits
#     a loss of distributions: these, the terms of the loss, dlabels


ROWS, GAMMA = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 40, 96), (96,)))
LABELS = jax.ShapeDtypeStruct((8, 40), jnp.int32)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("layer", "arguments", "full"),
    [
        (bnderiv.layer_norm, (ROWS, GAMMA, GAMMA), 3),
        (bnderiv.rms_norm, (ROWS, GAMMA), 3),
        (bnderiv.softmax_cross_entropy, (ROWS, ROWS), 4),
        (bnderiv.softmax_cross_entropy_with_integer_labels, (ROWS, LABELS), 2),
    ],
    ids=["layer_norm", "rms_norm", "cross_entropy", "integer_labels"],
)
def test_arrays_of_the_size_of_x(layer, arguments, full):
    delta = jax.eval_shape(layer, *arguments)

    def both_ways(arguments, delta):
        y, pull_back = jax.vjp(layer, *arguments)
        return y, pull_back(delta)

    program: Any = jax.jit(both_ways).lower(arguments, delta).compile()
    written = [n for _, sizes in launched(program) for n in sizes if n >= ROWS.size]
    assert written == [ROWS.size] * full


@pytest.mark.slow
def test_batch_renorm_keeps_x_and_vectors():
    layer = lambda x, *vectors: bnderiv.batch_renorm(x, *vectors)[0]  # noqa: E731
    assert saved(layer, X, *[VECTOR] * 4) <= size_in_bytes(X) + 12 * VECTOR_BYTES + 8


def test_with_a_residual_the_output_is_kept():
    """Not the residual, which is larger here, and which nothing else may keep."""
    x = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)
    kept = saved(normalized("batch_norm_relu"), x, VECTOR, VECTOR, X)
    assert kept <= 2 * size_in_bytes(x) + 10 * VECTOR_BYTES + 8


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("layer", "share"),
    [
        (partial(bnderiv.max_pool, window=2), 1 / 16),  # a byte for each output
        (partial(bnderiv.max_pool, window=3, strides=2), 1 / 16),
        (partial(bnderiv.avg_pool, window=2), 0),
        (partial(bnderiv.avg_pool, window=3, strides=2), 0),
        (bnderiv.relu, 1),  # y
        (bnderiv.tanh, 1),
    ],
    ids=["max_pool 2×2", "max_pool 3×3", "avg_pool 2×2", "avg_pool 3×3", "relu", "tanh"],
)
def test_other_layers_keep(layer, share):
    assert saved(layer, X) <= share * size_in_bytes(X)


@pytest.mark.few(1)
@pytest.mark.parametrize("padding", [0, 1])
def test_max_pool_compiled_for_a_cpu_keeps_one_byte_for_each_output(padding):
    """And no padded copy of x, which is new memory in every call; nor x for the backward of a TPU."""
    pool = partial(bnderiv.max_pool, window=3, strides=2, padding=padding)
    dy = jax.eval_shape(pool, X)

    def step(x, dy):  # x is not needed any more when the backward starts
        y, pull_back = jax.vjp(pool, x * 2)
        y, dy = jax.lax.optimization_barrier((y, dy))
        return y, pull_back(dy)

    program: Any = jax.jit(step).lower(X, dy).compile()
    assert program.memory_analysis().temp_size_in_bytes < size_in_bytes(X) + 1.1 * dy.size  # 2 x, in the forward


# A step of training LeNet-5, batch 32.


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "kernels", "moved", "kept"),
    [(1, 151, 22.0e6, 3.12e6), pytest.param(8, 153, 25.0e6, 3.6e6, marks=pytest.mark.slow)],
)
def test_lenet_step(devices, kernels, moved, kept):
    program = lenet_program(devices)
    assert not opcodes(program, at_least=1000) & SLOW
    # Some ten for the second kernel's band, and the vectors of four batch norms, a microsecond each.
    assert len(list(launched(program))) <= kernels
    assert len(re.findall(r" dot\(", program.as_text())) <= 13
    cost = program.cost_analysis()
    assert cost["flops"] < 2.85 * steps.flops(32)  # the zeros of banded kernels, and all that is no product
    assert traffic(program) < moved
    assert program.memory_analysis().temp_size_in_bytes < kept


@pytest.mark.slow
def test_the_counts_see():
    """A step of plain autodiff has what the closed forms are free of."""
    pool = partial(bnderiv.reference.max_pool, window=3, strides=2)
    program = jax.jit(jax.grad(lambda x: pool(x).sum())).lower(X).compile()
    assert opcodes(program) & SLOW
    plain = lambda *args: bnderiv.reference.batch_norm_relu(*args)[0]  # noqa: E731
    assert saved(plain, X, VECTOR, VECTOR) > 1.5 * size_in_bytes(X)
