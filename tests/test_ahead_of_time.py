"""What is counted in the programs for TPU and GPU, and that the layers stay lean there, by the compilers alone."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bnderiv
from bnderiv.activation import softmax
from bnderiv.normalization.tpu_layout import compact_order
from experiments import _report
from experiments._programs import Array, convolutions, kernels, usual_path
from tests.compiling import fast_jit
from tests.devices import traced_for

pytest.importorskip("tyro")
from experiments.benchmark import ahead_of_time, compiled_tables, peers, targets

ROOT = Path(__file__).parents[1]

# The counting, on a program in XLA's words.

PROGRAM = """HloModule step, is_scheduled=true

%fused_square (p0.1: f32[8,4], p1.1: f32[4]) -> (f32[8,4], pred[8,4]) {
  %p0.1 = f32[8,4]{1,0} parameter(0)
  %p1.1 = f32[4]{0} parameter(1)
  %square.1 = f32[8,4]{1,0} multiply(%p0.1, %p0.1)
  %positive.1 = pred[8,4]{1,0} compare(%p0.1, %square.1), direction=GT
  ROOT %both.1 = (f32[8,4]{1,0}, pred[8,4]{1,0}) tuple(%square.1, %positive.1)
}

%fused_rows (p0.2: f32[8,4]) -> f32[2,4] {
  %p0.2 = f32[8,4]{1,0} parameter(0)
  ROOT %rows.2 = f32[2,4]{1,0} slice(%p0.2), slice={[0:2], [0:4]}
}

%counted (carried.3: (f32[8,4])) -> (f32[8,4]) {
  %carried.3 = (f32[8,4]{1,0}) parameter(0)
  %x.3 = f32[8,4]{1,0} get-tuple-element(%carried.3), index=0
  %copied.3 = f32[8,4]{1,0} copy(%x.3)
  ROOT %next.3 = (f32[8,4]{1,0}) tuple(%copied.3)
}

%endless (carried.4: (f32[8,4])) -> (f32[8,4]) {
  %carried.4 = (f32[8,4]{1,0}) parameter(0)
  %x.4 = f32[8,4]{1,0} get-tuple-element(%carried.4), index=0
  %negated.4 = f32[8,4]{1,0} negate(%x.4)
  ROOT %next.4 = (f32[8,4]{1,0}) tuple(%negated.4)
}

%true (carried.5: (f32[8,4])) -> (f32[8,4]) {
  %carried.5 = (f32[8,4]{1,0}) parameter(0)
  ROOT %loop.5 = (f32[8,4]{1,0}) while(%carried.5), condition=%going, body=%endless
}

%false (carried.6: (f32[8,4])) -> (f32[8,4]) {
  ROOT %carried.6 = (f32[8,4]{1,0}) parameter(0)
}

%going (carried.7: (f32[8,4])) -> pred[] {
  %carried.7 = (f32[8,4]{1,0}) parameter(0)
  ROOT %yes.7 = pred[] constant(true)
}

ENTRY %main (x: f32[8,4], gamma: f32[4], half: bf16[8,4], kernel: bf16[4,4]) -> f32[2,4] {
  %x = f32[8,4]{1,0} parameter(0), metadata={op_name="args[0]"}
  %gamma = f32[4]{0:T(128)S(1)} parameter(1)
  %half = bf16[8,4]{1,0} parameter(2)
  %kernel = bf16[4,4]{1,0} parameter(3)
  %near = (f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %first = ((f32[8,4]{1,0}), f32[3,4]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:3], [0:4]}
  %arrived = f32[8,4]{1,0:T(8,128)S(1)} copy-done(%near)
  %view = f32[8,4]{1,0} bitcast(%x)
  %square = (f32[8,4]{1,0}, /*index=1*/pred[8,4]{1,0}) fusion(%view, %gamma), kind=kLoop, calls=%fused_square, \
metadata={op_name="jit(f)/mul"}, backend_config={"estimated_cycles":"70","iteration_bounds":[]}
  %squares = f32[8,4]{1,0} get-tuple-element(%square), index=0
  %carried = (f32[8,4]{1,0}) tuple(%squares)
  %three = (f32[8,4]{1,0}) while(%carried), condition=%going, body=%counted, \
backend_config={"known_trip_count":{"n":"3"}}
  %certain = pred[] constant(false)
  %again = (f32[8,4]{1,0}) conditional(%certain, %three, %three), true_computation=%true, false_computation=%false
  %most = f32[8,4]{1,0} get-tuple-element(%again), index=0
  %wide = f32[8,4]{1,0} convert(%half)
  %product = (f32[8,4]{1,0}, u8[0]{0}) custom-call(%wide, %kernel), custom_call_target="__cudnn$convForward"
  ROOT %rows = f32[2,4]{1,0} fusion(%most), kind=kLoop, calls=%fused_rows
}
"""
X = 8 * 4
F32 = Array("f32", X)


def test_each_kernel_with_what_it_reads_and_writes():
    found = {(k.opcode, k.times, k.usual): k for k in kernels(PROGRAM)}
    fusions = [k for k in kernels(PROGRAM) if k.opcode == "fusion"]
    assert len(list(kernels(PROGRAM))) == 8
    assert set(found) - {("fusion", 1, True)} == {
        ("copy-start", 1, True),
        ("slice-start", 1, True),
        ("copy", 3, True),
        ("negate", 1, False),
        ("convert", 1, True),
        ("custom-call", 1, True),
    }
    prefetch = found["copy-start", 1, True]
    assert (prefetch.reads, prefetch.writes) == ([F32], [])  # into vector memory
    rows = found["slice-start", 1, True]
    assert (rows.reads, rows.writes) == ([Array("f32", 12)], [])
    square, rows = fusions
    assert (square.reads, square.writes) == ([F32], [F32, Array("pred", X)])
    assert square.cycles == 70
    assert square.bytes == X * (4 + 4 + 1)
    assert (rows.reads, rows.writes) == ([Array("f32", 8)], [Array("f32", 8)])  # two rows of eight
    assert found["copy", 3, True].bytes == 3 * 2 * X * 4
    assert found["convert", 1, True].bytes == X * (2 + 4)


def test_what_is_aside_is_not_on_the_usual_path():
    assert "%counted " in usual_path(PROGRAM)
    assert "%endless " not in usual_path(PROGRAM)
    loop = PROGRAM.replace("body=%endless", 'body=%endless, backend_config={"known_trip_count":{"n":"5"}}')
    (negate,) = (k for k in kernels(loop) if k.opcode == "negate")
    assert (negate.times, negate.usual) == (5, False)  # still in a branch


def test_convolutions_by_the_dtypes_of_their_operands():
    assert list(convolutions(PROGRAM)) == [("f32", "bf16")]
    tpu = PROGRAM.replace('custom-call(%wide, %kernel), custom_call_target="__cudnn$convForward"', "convolution(%half)")
    assert list(convolutions(tpu)) == [("bf16",)]


def test_the_program_of_a_cpu_is_read_too():
    """By this jax, whatever the version writes: x is read, y written, and nothing else of that size."""
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    text = jax.jit(lambda x: jnp.tanh(x) + 1).lower(x).compile().as_text()
    assert text is not None
    assert sum(k.bytes for k in kernels(text) if k.usual) == 2 * x.size * 4


@pytest.mark.slow
def test_the_block_is_flax_s():
    pytest.importorskip("flax")
    from experiments.benchmark import flax_peer

    rng = np.random.default_rng(0)
    wide, narrow = 8, 2
    x = jnp.asarray(rng.standard_normal((3, 5, 5, wide)), jnp.float32)
    layers = {"1": (1, wide, narrow), "2": (3, narrow, narrow), "3": (1, narrow, wide)}
    params, running, theirs = {}, {}, {}
    for i, (name, (window, inputs, outputs)) in enumerate(layers.items()):
        kernel, gamma, beta = (
            jnp.asarray(rng.standard_normal(s), jnp.float32)
            for s in ((window, window, inputs, outputs), outputs, outputs)
        )
        params[name], running[name] = (kernel, gamma, beta), bnderiv.init_running_stats(outputs)
        theirs |= {f"Conv_{i}": {"kernel": kernel}, f"BatchNorm_{i}": {"scale": gamma, "bias": beta}}
    with jax.numpy_rank_promotion("allow"):
        blocks = flax_peer.Bottleneck(narrow), flax_peer.Bottleneck(narrow, conv=flax_peer.linen.Conv, ours=True)
        applied: Any = [fast_jit(partial(b.apply, mutable=["batch_stats"]))({"params": theirs}, x) for b in blocks]
    (peer, state), (in_flax, its_state) = applied
    chex.assert_trees_all_close((in_flax, its_state), (peer, state), rtol=1e-5, atol=1e-5)
    for package in (bnderiv, bnderiv.reference):
        y, _ = fast_jit(partial(ahead_of_time.bottleneck, package))(running, params, x)
        np.testing.assert_allclose(y, peer, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "blocks"), [("ResNet", (2, 32, 32, 3), [(2,)]), ("Transformer", (2, 7, 24), [])]
)
def test_the_peers_are_one_network(name, shape, blocks):
    pytest.importorskip("flax")
    from experiments.benchmark import flax_peer

    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    network = partial(getattr(flax_peer, name), *blocks)
    ours, theirs = (flax_peer.functions(network(ours=ours)) for ours in (True, False))
    with jax.numpy_rank_promotion("allow"):
        params, state = theirs[1](x)
        assert jax.tree.structure(jax.eval_shape(ours[1], x)) == jax.tree.structure((params, state))
        (y, new), (expected, its_new) = (fast_jit(apply)(params, state, x) for apply, _ in (ours, theirs))
    chex.assert_trees_all_close((y, new), (expected, its_new), rtol=1e-4, atol=1e-4)


# Tables and results.


def counts(passes, temporary=0.0, megacycles=None):
    found = dict.fromkeys(compiled_tables.COLUMNS, 0)
    return found | {"passes": passes, "temporary MB": temporary, "megacycles": megacycles, "by": "jax 1"}


def test_where_ours_is_worse_is_said():
    content = {
        "targets": {
            "v5e": {"norm": {"bnderiv": counts(8, megacycles=3.0), "Flax": counts(9, megacycles=2.0)}},
            "h100": {
                "norm": {"bnderiv": counts(8.0), "Flax": counts(8.0)},
                "block": {"bnderiv": counts(20.0, 30.0), "Flax": counts(21.0, 20.0)},
                "pool": {"bnderiv": counts(3.0), "plain autodiff": {"absent": "no memory", "by": "jax 2"}},
            },
        },
    }
    worse = [(c.target, c.case, c.what) for c in compiled_tables.comparisons(content) if c.worse]
    assert worse == [("v5e", "norm", "megacycles"), ("h100", "block", "temporary MB")]
    text = _report.markdown(compiled_tables.tables(content))
    assert "| TPU v5e | megacycles | 0 of 1 | 1 of 1 |" in text
    assert "| NVIDIA H100 | passes | 2 of 2 | 1 of 2 |" in text
    assert "| NVIDIA H100 | block | temporary MB | 30 | 20 | 1.50× |" in text
    assert "|  | plain autodiff | does not compile |" in text
    assert "jax 1; jax 2." in text


def test_the_committed_cases_are_those_of_the_code():
    numbers = Path(ahead_of_time.__file__).parent / "results" / "ahead_of_time" / "ahead_of_time.json"
    content = json.loads(numbers.read_text())
    assert set(content["targets"]) <= set(targets.TARGETS)
    names = {case.name for case in ahead_of_time.cases()}
    assert all(set(cases) <= names for cases in content["targets"].values())


def test_redraw_needs_numbers_and_a_case_a_name(tmp_path):
    with pytest.raises(SystemExit, match="no numbers of an earlier run there"):
        ahead_of_time.main(["--redraw", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no case has any of"):
        ahead_of_time.main(["--only", "nothing like it", "--out", str(tmp_path)])


# The guard.

NORM = (256, 56, 56, 256)
HALF = jnp.bfloat16
EXHAUSTIVE = [pytest.mark.slow, pytest.mark.exhaustive]


def counted(target, case, who="bnderiv"):
    """As a program without this suite's settings has it."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        try:
            return ahead_of_time.count(target, case.programs()[who], case.x)
        except targets.Absent as error:
            pytest.skip(str(error))


def norm_case(relu, dtype):
    x = jax.ShapeDtypeStruct(NORM, jnp.dtype(dtype))
    return ahead_of_time.Case("norm", x, partial(ahead_of_time.layers, "batch_norm_relu" if relu else "batch_norm", x))


# Four of the eight: on each target both norms and both dtypes, and each norm in both dtypes.
@pytest.mark.parametrize(
    ("target", "relu", "dtype"),
    [
        pytest.param(
            *(target, relu, dtype),
            marks=[] if relu == ((target == "v5e") == (dtype == "bfloat16")) else EXHAUSTIVE,
            id=f"{target}-batch norm{' + relu' * relu}-{dtype}",
        )
        for target in ("v5e", "h100")
        for relu in (False, True)
        for dtype in ("float32", "bfloat16")
    ],
)
def test_batch_norm_in_eight_passes(target, relu, dtype):
    """Statistics read x, the map reads it and writes y, the sums read x and dy, dx reads both and is written."""
    found = counted(target, norm_case(relu, dtype))
    assert 7.9 < found["passes"] <= 8.2
    assert found["masks"] == 0
    assert found["temporary MB"] < 2


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        ("batch_norm", (32, 8, 8, 512)),
        ("batch_norm_relu", (4096, 1024)),
        ("batch_norm_relu", (16, 28, 28, 64)),
        ("group_norm", (8, 64, 64, 320)),
    ],
)
def test_a_gpu_stores_no_terms_of_few_sums(norm, shape):
    """Of small batches, fully connected layers, a diffusion model's groups: Flax's takes 12 to 20 passes."""
    x = jax.ShapeDtypeStruct(shape, HALF)
    options = {"groups": 32} if norm == "group_norm" else {}
    case = ahead_of_time.Case("norm", x, partial(ahead_of_time.layers, norm, x, **options))
    with traced_for(1):
        found = counted("h100", case)
    assert 7.9 < found["passes"] <= 8.8
    assert found["masks"] == 0
    assert found["temporary MB"] < 0.5


@pytest.mark.parametrize("shape", [(16, 4096, 1024), (32, 197, 768)], ids=str)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_gpu_reads_rows_eight_times_and_waits_for_nothing(norm, shape):
    """Statistics, map, dx, and the sums for the parameters: Flax's takes 10 passes where rows are fewer."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    found = counted("h100", ahead_of_time.Case("norm", x, partial(ahead_of_time.layers, norm, x)))
    assert 7.9 < found["passes"] <= 8.1
    assert found["kernels"] <= 9
    assert found["passes aside"] == 0


@pytest.mark.parametrize("length", [1000, 16384])
@pytest.mark.parametrize(("layer", "passes"), [("log_softmax", 5), ("softmax_cross_entropy_with_integer_labels", 3)])
def test_a_gpu_makes_one_kernel_of_a_gradient_along_rows(layer, length, passes):
    """And one of the forward. Without the start of a row in the gradient there is one more, and one pass or two."""
    x = jax.ShapeDtypeStruct((4096, length), jnp.bfloat16)
    labels = [jax.ShapeDtypeStruct((4096,), jnp.int32)] if "labels" in layer else []
    dy = jax.ShapeDtypeStruct(labels[0].shape if labels else x.shape, x.dtype)

    def both_ways(x, dy, *labels):
        y, pull_back = jax.vjp(lambda x: getattr(bnderiv, layer)(x, *labels), x)
        y, dy = jax.lax.optimization_barrier((y, dy))
        return y, pull_back(dy)

    try:
        program = targets.compile_for("h100", both_ways, x, dy, *labels).as_text()
    except targets.Absent as error:
        pytest.skip(str(error))
    found = list(kernels(program))
    assert len(found) == 2
    assert passes - 0.01 <= sum(k.bytes for k in found) / (2 * x.size) < passes + 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_makes_one_kernel_of_softmax_s_gradient(dtype):
    """Of its saved result and δ, where the forward is far away: otherwise two, and five passes."""
    s = jax.ShapeDtypeStruct((4096, 1000), jnp.dtype(dtype))
    try:
        program = targets.compile_for("h100", partial(softmax._softmax.bwd, 1), s, s).as_text()
    except targets.Absent as error:
        pytest.skip(str(error))
    (kernel,) = kernels(program)
    assert kernel.bytes == 3 * s.size * s.dtype.itemsize


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(32, 197, 768), (16, 4096, 1024)], ids=str)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_without_a_gradient_a_gpu_keeps_rows_in_registers(norm, dtype, shape):
    """With one operation more that XLA cannot fuse with sums of rows, such as `is-finite`, it takes 3 to 7 kernels."""
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    found = counted("h100", ahead_of_time.Case("norm", x, partial(ahead_of_time.forward_alone, norm, x)))
    assert found["kernels"] == 1
    assert 1.9 < found["passes"] < 2.1
    assert found["passes aside"] == 0


def test_a_tpu_takes_the_sums_of_a_row_in_the_kernel_that_makes_it():
    """Two reads, of the matrix and the product, two writes, and the weights. About a sample of it, eight passes."""
    x, weights, vector = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((6144, 768), (768, 768), (768,)))
    layer = ahead_of_time.Program(
        lambda x, w, *affine: bnderiv.layer_norm(x @ w, *affine), (x, weights, vector, vector)
    )
    found = counted("v5p", ahead_of_time.Case("matrix and norm", x, lambda: {"bnderiv": layer}))
    assert 4 < found["passes"] < 5.3


@pytest.mark.parametrize(
    ("norm", "shape", "most"), [("layer", (16, 56, 56, 96), 1.2), ("rms", (2, 2048, 16, 128), 1.05)]
)
def test_a_tpu_has_few_numbers_for_each_row(norm, shape, most):
    """One more number for each of these short rows takes a tenth of the cycles: `row_unit.py`."""
    pytest.importorskip("flax")
    x = jax.ShapeDtypeStruct(shape, HALF)
    case = ahead_of_time.Case("rows", x, partial(ahead_of_time.layers, f"{norm}_norm", x, eps=1e-6))
    ours, flax = (counted("v6e", case, who)["megacycles"] for who in ("bnderiv", "Flax"))
    assert ours < most * flax


def test_a_norm_without_parameters_has_rows_too():
    """Flax's `use_scale=False`: which elements would share a scale does not matter."""
    linen = pytest.importorskip("bnderiv.linen")
    norm = linen.LayerNorm(use_scale=False, use_bias=False, dtype=HALF)
    x = jax.ShapeDtypeStruct((8192, 1024), HALF)
    layer = ahead_of_time.Program(ahead_of_time.in_training(lambda _, x: (norm.apply({}, x), ())), ((), (x,), x))
    found = counted("h100", ahead_of_time.Case("rows", x, lambda: {"bnderiv": layer}))
    assert found["passes"] < 6.2


def test_a_second_read_of_x_is_seen(monkeypatch):
    """So that the guard above can fail; as it does on a mask, which Flax's stores."""
    pytest.importorskip("flax")
    flax = counted("h100", norm_case(True, "float32"), "Flax")
    assert (flax["masks"], flax["temporary MB"] > 200) == (1, True)

    def twice(package, name, x, *parameters, **options):
        y, new = ours(package, name, x, *parameters, **options)
        return y, (new, jnp.square(jax.lax.optimization_barrier(x)).sum())

    ours = peers.ours
    monkeypatch.setattr(peers, "ours", twice)
    assert counted("h100", norm_case(False, "bfloat16"))["passes"] > 8.9


PROGRAM_OF_A_NORM = """
import jax, bnderiv
from experiments.benchmark import targets
x, vector = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((64, 28, 28, 64), (64,)))
gradient = jax.grad(lambda *arrays: (bnderiv.batch_norm_relu(*arrays)[0] ** 2).sum(), (0, 1, 2))
try:
    targets.compile_for("h100", gradient, x, vector, vector)
except targets.Absent as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("graphs", "waits"),
    [
        pytest.param("", False, id="default"),
        pytest.param("-CONDITIONAL", True, marks=EXHAUSTIVE, id="no branches"),  # so that the count is seen to see
    ],
)
def test_a_gpu_runs_a_norm_without_waiting_for_the_host(graphs, waits, tmp_path):
    """The branch is within a CUDA graph, unless these are to have none."""
    flags = f"--xla_dump_to={tmp_path}" + f" --xla_gpu_enable_command_buffer={graphs}" * bool(graphs)
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM_OF_A_NORM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    if done.stdout:
        pytest.skip(done.stdout)
    (launches,) = tmp_path.glob("*thunk_sequence_after_thunk_passes.txt")
    found = re.findall(r"^( *)\d+: (k\w+)", launches.read_text(), re.MULTILINE)
    assert "kConditional" in {kind for _, kind in found}
    assert ("kConditional" in {kind for indent, kind in found if not indent}) == waits


def test_a_gpu_convolves_half_precision_in_half_precision():
    x, kernel = jax.ShapeDtypeStruct((32, 56, 56, 64), HALF), jax.ShapeDtypeStruct((3, 3, 64, 64), HALF)

    def of(conv2d):
        layer = ahead_of_time.in_training(lambda state, *args: (conv2d(*args, padding="SAME"), state))
        program = ahead_of_time.Program(layer, ((), (x, kernel), x))
        return counted("h100", ahead_of_time.Case("convolution", x, lambda: {"bnderiv": program}))

    assert of(bnderiv.conv2d)["float32 convolutions"] == 0
    assert of(bnderiv.reference.conv2d)["float32 convolutions"] == 3  # which accumulates in float32, and says so


@pytest.mark.long
def test_on_a_gpu_a_block_keeps_what_flax_s_keeps():
    """Each convolution's kernel gradient comes before what needs its δ next; at the end, all of them would be kept.

    In modules of Flax, too. And moves less: with the residual in the rule nothing is stored that three sums can make
    again.
    """
    pytest.importorskip("flax")
    cases = [c for c in ahead_of_time.cases() if c.name.startswith("bottleneck block") and c.name.endswith("bfloat16")]
    of_flax = "bottleneck block with Flax's convolutions"
    assert [c.name.split(",")[0] for c in cases] == ["bottleneck block", "bottleneck block in Flax", of_flax]
    flax = counted("h100", cases[0], "Flax")
    for case in cases:
        ours = counted("h100", case)
        assert ours["bytes"] <= 0.97 * flax["bytes"], case.name
        keeps_more = ours["temporary MB"] > 1.001 * flax["temporary MB"]
        assert keeps_more == case.name.startswith(of_flax), case.name  # as the README says


@pytest.mark.long
def test_on_a_gpu_a_whole_step_is_leaner_than_flax_s():
    """Within a step nothing keeps the compiler from storing in the forward what the backward could make again.

    Of sums in bfloat16 it would store the float32 too: 1.4 times Flax's memory. It does store some masks, a byte each.
    """
    pytest.importorskip("flax")
    images = jax.ShapeDtypeStruct((64, 112, 112, 3), HALF)
    case = ahead_of_time.Case("step", images, partial(ahead_of_time.resnets, images, blocks=(3,)))
    ours, flax = (counted("h100", case, who) for who in ("bnderiv", "Flax"))
    assert ours["bytes"] <= 0.915 * flax["bytes"]  # 0.920 where that float32 is stored
    assert ours["temporary MB"] <= 1.05 * flax["temporary MB"]


def test_on_a_gpu_a_max_pool_moves_nothing_twice():
    """x, z and the winners, a byte each; then δ, the winners and dx: no row of a window is stored for the next."""
    x = jax.ShapeDtypeStruct((256, 112, 112, 64), jnp.float32)
    programs = partial(ahead_of_time.layers, "max_pool", x, window=3, strides=2, padding=1)
    found = counted("h100", ahead_of_time.Case("pool", x, programs))
    assert 2 < found["passes"] <= 1.01 * (2 + 2 * (1 + 1 / 4) / 4)


SHAPES = [
    (32, 28, 28, 6), (1024, 28, 28, 6), (1024, 14, 14, 16), (64, 56, 56, 64), (32, 112, 112, 64), (256, 32, 32, 160),
    (96, 32, 32, 64), (512, 100, 64), (512, 64), (64, 3, 224, 224), (128, 16, 16, 16, 64), (256, 1, 1, 64),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_order_of_axes_in_a_tpu_s_memory(shape):
    try:
        program = targets.compile_for("v5e", lambda x: 2 * x, jax.ShapeDtypeStruct(shape, jnp.float32))
    except targets.Absent as error:
        pytest.skip(str(error))
    found = re.search(r"entry_computation_layout=\{\(f32\[[\d,]*\]\{([\d,]*)", program.as_text())
    assert found
    assert tuple(int(axis) for axis in found[1].split(","))[::-1] == compact_order(shape)


@pytest.mark.parametrize(
    ("norm", "shape", "options"),
    [
        ("batch_norm", (256, 28, 28, 64), {}),
        ("group_norm", (256, 28, 28, 64), {"groups": 32}),
        ("instance_norm", (256, 28, 28, 64), {}),
        ("rms_norm", (512, 512, 64), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_on_a_tpu_no_copy_of_x_is_reserved(norm, shape, options):
    """For the branch that measures again. It is, if the axes are not moved: four chips may have 64 examples each."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    case = ahead_of_time.Case("norm", x, partial(ahead_of_time.layers, norm, x, **options))
    with traced_for(1):
        assert counted("v5e", case)["temporary MB"] < 2
    if norm == "batch_norm":
        with traced_for(4):
            assert counted("v5e", case)["temporary MB"] > 1.9 * x.size * 4 / 1e6  # as the README says


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_tpu_softmax_is_two_kernels(dtype):
    """And a copy. With a maximum in the place of the minimum there are four, and six passes."""
    x = jax.ShapeDtypeStruct((8, 12, 512, 512), jnp.dtype(dtype))
    found = counted("v6e", ahead_of_time.Case("softmax", x, partial(ahead_of_time.layers, "softmax", x)))
    assert found["kernels"] <= 3
    assert 4.9 < found["passes"] < 5.1


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_on_a_tpu_pools_cost_no_more_than_flax_s(kind):
    pytest.importorskip("flax")
    x = jax.ShapeDtypeStruct((256, 112, 112, 64), HALF)
    stride = {"max": 2, "avg": 1}[kind]
    programs = partial(ahead_of_time.layers, f"{kind}_pool", x, window=3, strides=stride, padding=1)
    case = ahead_of_time.Case("pool", x, programs)
    with traced_for(1):  # for several devices NaN is settled before, see `pooling/_xla.py`
        ours, flax = (counted("v5e", case, who) for who in ("bnderiv", "Flax"))
    for what in ("megacycles", "bytes", "temporary MB"):
        assert ours[what] <= 1.001 * flax[what], what


def test_on_a_tpu_a_sharded_max_pool_sends_nothing():
    """Over the chips of a pod: XLA's partitioner would gather the batch for a selection that is no comparison."""
    try:
        chips = targets.devices("v5e")
    except targets.Absent as error:
        pytest.skip(str(error))
    sharding = NamedSharding(Mesh(np.array(chips), ("batch",)), P("batch"))
    pool = partial(bnderiv.max_pool, window=3, strides=2, padding=1)
    x, dy = (jax.ShapeDtypeStruct(shape, HALF, sharding=sharding) for shape in ((16, 32, 32, 8), (16, 16, 16, 8)))

    def gathers(devices):
        with traced_for(devices):
            program = jax.jit(lambda x, dy: jax.vjp(pool, x)[1](dy)[0]).lower(x, dy).compile()
        return str(program.as_text()).count("all-gather(")

    assert gathers(4) == 0
    assert gathers(1) > 0  # of what the layer takes where nothing can be sharded


@pytest.mark.parametrize(
    ("layer", "batch", "side", "dtype", "under_jit_too"),
    [
        ("batch_norm", 1024, 56, jnp.float32, True),
        ("batch_norm", 128, 112, jnp.float32, False),
        ("max_pool", 1024, 56, HALF, False),
    ],
    ids=["norm-of-many", "norm-of-few", "pool"],
)
def test_on_a_tpu_within_shard_map_as_on_one_chip(layer, batch, side, dtype, under_jit_too):
    """There XLA partitions nothing: the norm's axes may be moved, and the pool may select as it likes.

    Under `jit` alone the norm's axes are moved too if the order in memory is the same for any number of chips.
    """
    try:
        chips = targets.devices("v5e")
    except targets.Absent as error:
        pytest.skip(str(error))
    mesh = Mesh(np.array(chips), ("batch",))
    calls: dict[str, Any] = {
        "batch_norm": lambda x: bnderiv.batch_norm(x, jnp.ones(64), jnp.zeros(64))[0],
        "max_pool": partial(bnderiv.max_pool, window=3, strides=2, padding=1),
    }

    def both_ways(x, dy):
        y, pull_back = jax.vjp(calls[layer], x)
        return y, *pull_back(dy)

    x = jax.ShapeDtypeStruct((batch, side, side, 64), dtype, sharding=NamedSharding(mesh, P("batch")))
    y = jax.eval_shape(calls[layer], x)
    dy = jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=x.sharding)

    def takes_a_copy(f):
        with jax.enable_x64(False), traced_for(len(chips)):
            compiled: Any = jax.jit(f).lower(x, dy).compile()
        of_a_chip = x.size * x.dtype.itemsize / len(chips)
        ratio = compiled.memory_analysis().temp_size_in_bytes / of_a_chip
        assert not 0.1 < ratio < 0.9
        return ratio > 0.9

    spec = P("batch")
    assert not takes_a_copy(jax.shard_map(both_ways, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec)))
    assert takes_a_copy(both_ways) != under_jit_too
