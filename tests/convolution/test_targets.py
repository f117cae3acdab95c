"""Which form of a convolution a program has is its target's choice: matrix products and float32 on a CPU alone."""

import functools
import re
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import bnderiv
from bnderiv import forward_mode
from tests import contract, forms
from tests.convolution.cases import CASES
from tests.programs import opcodes

ACCELERATORS = ("cuda", "rocm", "tpu")
BATCH_LAST = {"channel_axis": 0, "batch_axis": 3}
# Of few channels: as bands on a CPU, and the last forward as a sum of shifted inputs.
FEW: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((3, 9, 8, 2), (3, 3, 2, 4), {"padding": ((1, 2), (0, 3))}),
    ((6, 14, 14, 5), (5, 5, 6, 16), BATCH_LAST),
    ((1, 12, 12, 5), (5, 5, 1, 6), {"padding": ((2, 1), (0, 3)), **BATCH_LAST}),
]


def both_ways(options):
    def f(x, kernel, dz):
        z, pull_back = jax.vjp(functools.partial(bnderiv.conv2d, **options), x, kernel)
        return z, pull_back(dz)

    return f


def shapes(x, kernel, options, dtype: Any = jnp.float32):
    x, kernel = jax.ShapeDtypeStruct(x, dtype), jax.ShapeDtypeStruct(kernel, dtype)
    return x, kernel, jax.eval_shape(functools.partial(bnderiv.conv2d, **options), x, kernel)


def convolved_in(program: jax.export.Exported) -> list[str]:
    """The dtypes of operands and results of each convolution."""
    lines = [line for line in program.mlir_module().splitlines() if "stablehlo.convolution" in line]
    return [",".join(re.findall(r"x(b?f\d+)>", line[line.rindex(" : ") :])) for line in lines]


# Of these the form has nothing that the others do not have.
SIMPLE = ("plain", "same-no-bias", "one-by-one-chwn", "kernel-as-large-as-the-input", "stride-larger-than-kernel")


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.exhaustive if c.label in SIMPLE else (), id=str(c)) for c in CASES],
)
def test_the_form_of_accelerators_keeps_the_contract(case):
    """It is one form for all of them; that of CPUs is in `test_every_layer.py`."""
    with forms.of("cuda"):
        for promise in (*contract.PROMISES, *contract.TRANSFORMS):
            promise(bnderiv, case)
        for promise in contract.EVERYTHING:
            if promise not in contract.COMMON:
                promise(forward_mode, case)


@pytest.mark.parametrize("convolution", FEW, ids=str)
def test_exported_for_accelerators_it_is_three_convolutions(convolution):
    f, arguments = jax.jit(both_ways(convolution[2])), shapes(*convolution)
    for platform in ACCELERATORS:
        program = jax.export.export(f, platforms=[platform])(*arguments)
        assert convolved_in(program) == ["f32,f32,f32"] * 3
        text = program.mlir_module()
        assert "stablehlo.dot_general" not in text
        # On a GPU the gradient of the input waits for that of the kernel, by the δ that the barrier returns.
        waits = re.search(r"(%\w+):2 = stablehlo.optimization_barrier", text)
        assert (waits is not None and f"{waits[1]}#1" in text) == (platform != "tpu")
    assert not convolved_in(jax.export.export(f, platforms=["cpu"])(*arguments))


@pytest.mark.parametrize("layout", [{}, BATCH_LAST], ids=["nhwc", "chwn"])
def test_exported_for_images_of_any_size_it_is_a_convolution(layout):
    """The rows of a band are built one by one, so their number must be known."""
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("2, h, w, n" if layout else "n, h, w, 2"), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32)
    program = jax.export.export(jax.jit(functools.partial(bnderiv.conv2d, padding=1, **layout)), platforms=["cpu"])
    assert convolved_in(program(x, kernel)) == ["f32,f32,f32"]


@pytest.mark.few(1)
@pytest.mark.parametrize("convolution", FEW, ids=str)
def test_one_export_for_all_platforms(convolution):
    """It holds the choice, and is right where it runs."""
    rng = np.random.default_rng(0)
    arguments = [jnp.asarray(rng.standard_normal(a.shape)) for a in shapes(*convolution)]
    program = jax.export.export(jax.jit(both_ways(convolution[2])), platforms=["cpu", *ACCELERATORS])(*arguments)
    assert convolved_in(program)
    assert "stablehlo.dot_general" in program.mlir_module()
    x, kernel, dz = arguments
    z, pull_back = jax.vjp(functools.partial(bnderiv.reference.conv2d, **convolution[2]), x, kernel)
    contract.close(jax.jit(program.call)(*arguments), (z, pull_back(dz)))


@pytest.mark.slow
@pytest.mark.as_users_compile
@pytest.mark.parametrize("convolution", FEW, ids=str)
def test_compiled_for_a_cpu_nothing_is_left_of_the_choice(convolution):
    program = jax.jit(both_ways(convolution[2])).lower(*shapes(*convolution)).compile()
    assert not opcodes(program) & {"conditional", "convolution"}


@pytest.mark.parametrize(
    ("dtype", "name", "groups"),
    [(jnp.bfloat16, "bf16", 1), (jnp.float16, "f16", 4), (jnp.float8_e5m2, "f32", 1)],
    ids=["bfloat16", "float16", "float8"],
)
def test_half_precision_stays_it_on_accelerators(dtype, name, groups):
    """Forward and both gradients: a GPU convolves in float32 where any operand or result is float32. Not so float8."""
    f = jax.jit(both_ways({"groups": groups}))
    arguments = shapes((2, 20, 20, 64), (3, 3, 64 // groups, 64), {"groups": groups}, dtype)
    for platform in ACCELERATORS:
        assert convolved_in(jax.export.export(f, platforms=[platform])(*arguments)) == [",".join([name] * 3)] * 3
    assert convolved_in(jax.export.export(f, platforms=["cpu"])(*arguments)) == ["f32,f32,f32"] * 3


@pytest.mark.slow
@pytest.mark.as_users_compile
@pytest.mark.parametrize(("batch", "size", "channels"), [(2, 56, 64), pytest.param(4, 7, 512, marks=pytest.mark.slow)])
def test_half_precision_at_the_sizes_of_a_resnet(batch, size, channels):
    """Value and gradients are off by one rounding, of the result, whatever the length of the sum.

    A rounding to bfloat16 is up to 2⁻⁸ of a number, and by root mean square 0.42 of that; two would be 0.6.
    """
    rng = np.random.default_rng(0)
    shape = batch, size, size, channels
    x, dz = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(2))
    kernel = jnp.asarray(rng.standard_normal((3, 3, channels, channels)) / np.sqrt(9 * channels), jnp.bfloat16)
    truth = by_products(*(np.asarray(a, np.float64) for a in (x, kernel, dz)))
    for platform in ("cpu", "cuda"):
        with forms.of(platform):
            z, (dx, dkernel) = jax.jit(both_ways({"padding": 1}))(x, kernel, dz)
        for ours, true in zip((z, dx, dkernel), truth, strict=True):
            assert ours.dtype == jnp.bfloat16
            error = np.asarray(ours, np.float64) - true
            assert np.linalg.norm(error) < 0.5 * 2**-8 * np.linalg.norm(true)
            assert np.abs(error).max() < 2**-8 * np.abs(true).max()


def by_products(x, kernel, dz):
    """(C6), (C9) and (C7) for 3×3 and padding 1, a product of matrices for each weight."""
    rows, columns = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    z, d_padded, d_kernel = np.zeros(dz.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(3, 3):
        cells = np.s_[:, i : i + rows, j : j + columns]
        z += padded[cells] @ kernel[i, j]
        d_padded[cells] += dz @ kernel[i, j].T
        d_kernel[i, j] = padded[cells].reshape(-1, x.shape[3]).T @ dz.reshape(-1, dz.shape[3])
    return z, d_padded[:, 1:-1, 1:-1], d_kernel


@pytest.mark.few(1)
@pytest.mark.as_users_compile
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("batch_last", [False, True], ids=["as bands", "as shifted inputs"])
def test_half_precision_of_few_channels_is_summed_in_float32(dtype, batch_last):
    """Where the spacing of numbers is 2, a sum of ones would stop."""
    large, count = 2 / float(jnp.finfo(dtype).eps), 25
    x = jnp.ones((1, 5, 5, 1), dtype).at[0, 0, 0, 0].set(large)
    options: dict[str, Any] = BATCH_LAST if batch_last else {}
    x = x.transpose(3, 1, 2, 0) if batch_last else x
    z = bnderiv.conv2d(x, jnp.ones((5, 5, 1, 1), dtype), **options)
    assert float(z.ravel()[0]) == float(jnp.asarray(large + count - 1, dtype))
