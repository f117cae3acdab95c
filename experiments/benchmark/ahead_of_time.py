"""What the compilers for TPU and GPU make of bnderiv, Flax and plain autodiff. No device is needed, none is measured.

    python -m experiments.benchmark.ahead_of_time                       every case for v5e, v6e, v5p and h100
    python -m experiments.benchmark.ahead_of_time --targets h100        one target; the others keep their numbers
    python -m experiments.benchmark.ahead_of_time --only "max pool"     the cases whose names have this in them
    python -m experiments.benchmark.ahead_of_time --resume              what a run that was interrupted has left
    python -m experiments.benchmark.ahead_of_time --redraw              tables, picture and page again

Needs `pip install -e ".[experiments,flax,accelerators]"`. Each case is a forward and a backward pass as in training, or
a forward alone, compiled for one device. Its program is counted: kernels, bytes, cycles (the TPU compiler's own
estimate), temporary memory, stored masks, float32 convolutions. Caches, autotuning and cuDNN's choice of algorithm are
not in the counts. A target takes a few minutes on two cores.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.benchmark.ahead_of_time", extras="experiments,flax,accelerators")

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: no device is looked for
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import optax

import bnderiv
from experiments import _options, _programs, _report
from experiments._report import by
from experiments.benchmark import compiled_tables, peers, steps, targets

NORMS = ((256, 112, 112, 64), (256, 56, 56, 256), (256, 7, 7, 2048))  # the first, the largest, the last of ResNet-50
SMALL = (64, 56, 56, 256)  # a batch at which XLA may prefer to store the ReLU's mask
FEW = (1024, 28, 28, 6)  # as in LeNet-5
CONNECTED = (4096, 1024)  # a fully connected layer
TOKENS, FEATURES = (16, 4096, 1024), (64, 56, 56, 64)
UNET = (8, 64, 64, 320)  # as in a diffusion model
SHORT_ROWS = {"layer": (64, 56, 56, 96), "rms": (8, 2048, 16, 128)}  # as in ConvNeXt, and of an attention's heads
OTHER_NORMS = {"layer": TOKENS, "rms": TOKENS, "group": FEATURES, "instance": FEATURES}
IMAGES, _, LAST = NORMS
POOLS = (  # kind, window, stride, padding, shape
    ("max", 3, 2, 1, IMAGES),
    ("max", 2, 2, 0, IMAGES),
    ("max", 3, 1, 1, IMAGES),
    ("avg", 2, 2, 0, IMAGES),
    ("avg", 3, 1, 1, IMAGES),
    ("avg", 7, 1, 0, LAST),
)
ATTENTION = (8, 12, 512, 512)
LOGITS = ((4096, 1000), (4096, 32000))
BLOCK = (256, 56, 56, 256)
PATCHES = (32, 197, 768)
RESNET = (256, 224, 224, 3)
# LeNet-5's step: batches, and the targets for each. At 1024 a TPU's compiler takes half an hour and 24 GB.
STEPS = {128: targets.TARGETS, FEW[0]: ("h100",)}
LARGE = 0.2  # of x: from this part of it, booleans that are written are a stored mask
PACKAGES = ("flax", "libtpu", "jax-cuda13-plugin")


class Program(NamedTuple):
    """A function and its arguments, as shapes and dtypes."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Case(NamedTuple):
    """One row of the tables. `x` is what a pass is a read or write of."""

    name: str
    x: jax.ShapeDtypeStruct
    programs: Callable[[], dict[str, Program]]  # by library
    targets: tuple[str, ...] = targets.TARGETS


class Options(_options.Measured):
    """Which cases, for which targets, and where to."""

    OTHERWISE_THE_SAME = (*_options.Measured.OTHERWISE_THE_SAME, "targets", "only", "resume")

    targets: tuple[Literal["v5e", "v6e", "v5p", "h100"], ...] = targets.TARGETS
    """It compiles for these devices."""
    only: tuple[str, ...] = ()
    """Only the cases with one of these in their names are compiled."""
    resume: bool = False
    """Cases that the file of results already has are left out."""


def in_training(layer: Callable[..., Any]) -> Callable[..., Any]:
    """Value, state and gradients of `layer(state, *arguments) -> y, new state`.

    The backward starts when the forward is done. Without the barrier the two merge, as no other layer lies between
    them. What a compiler does move from one to the other in a network is seen in the whole steps.
    """

    def run(state: Any, arguments: Any, dy: jax.Array) -> Any:
        results: Any = jax.vjp(partial(layer, state), *arguments, has_aux=True)
        y, pull_back, new = results
        y, dy = jax.lax.optimization_barrier((y, dy))
        return y, new, pull_back(dy)

    return run


def cases() -> Iterator[Case]:
    """As in the tables, each in both dtypes."""
    for title, shape, programs, *where in _rows():
        for dtype in ("float32", "bfloat16"):
            x = spec(shape, dtype)
            yield Case(f"{title}, {dtype}", x, partial(programs, x), *where)


def _rows() -> Iterator[tuple[Any, ...]]:
    """(title, shape of x, programs of x), and the targets where they are not all."""
    for shape in NORMS:
        yield f"batch norm, {by(shape)}", shape, partial(layers, "batch_norm")
    for shape in (*NORMS, SMALL, FEW, CONNECTED):
        yield f"batch norm + relu, {by(shape)}", shape, partial(layers, "batch_norm_relu")
    for norm, shape in OTHER_NORMS.items():  # by Flax's defaults
        yield f"{norm} norm, {by(shape)}", shape, partial(layers, f"{norm}_norm", eps=1e-6, groups=32)
    yield f"group norm, {by(UNET)}", UNET, partial(layers, "group_norm", eps=1e-6, groups=32)
    for norm, shape in SHORT_ROWS.items():
        yield f"{norm} norm, {by(shape)}", shape, partial(layers, f"{norm}_norm", eps=1e-6)
    for norm in ("layer", "rms"):
        yield f"{norm} norm forward alone, {by(TOKENS)}", TOKENS, partial(forward_alone, f"{norm}_norm", eps=1e-6)
    for kind, window, stride, padding, shape in POOLS:
        title = f"{kind} pool {window}×{window}/{stride}{', padding 1' if padding else ''}, {by(shape)}"
        yield title, shape, partial(layers, f"{kind}_pool", window=window, strides=stride, padding=padding)
    yield f"softmax, {by(ATTENTION)}", ATTENTION, partial(layers, "softmax")
    for shape in LOGITS:
        loss = partial(layers, "softmax_cross_entropy_with_integer_labels")
        yield f"cross entropy of integer labels, {by(shape)}", shape, loss
    yield f"bottleneck block, {by(BLOCK)}", BLOCK, blocks
    yield f"bottleneck block in Flax, {by(BLOCK)}", BLOCK, flax_blocks
    # Where the closed form of the convolutions matters: see `_target.first_on_gpu`.
    mixed = partial(flax_blocks, convolutions_too=False)
    yield f"bottleneck block with Flax's convolutions, {by(BLOCK)}", BLOCK, mixed, ("h100",)
    yield f"ResNet-50's step, {by(RESNET)}", RESNET, resnets, ("v5e", "h100")  # minutes for each program
    yield f"transformer's step, {by(PATCHES)}", PATCHES, transformers
    for size, where in STEPS.items():
        yield f"LeNet-5's step, batch {size}", (size, *FEW[1:]), lenets, where


def spec(shape: tuple[int, ...], dtype: Any = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def layers(name: str, x: jax.ShapeDtypeStruct, **options: Any) -> dict[str, Program]:
    """The programs of a layer. Batch norm takes running statistics and returns the new ones; a loss takes labels."""
    programs, taken, state = forward_alone(name, x, **options), "", ()
    if name.startswith("batch_norm"):
        taken, state = "running", jax.eval_shape(partial(bnderiv.init_running_stats, x.shape[-1]))
    elif name.endswith("labels"):
        taken, state = "labels", spec(x.shape[:-1], "int32")

    def of_state(f: Callable[..., Any], state: Any, *arguments: Any) -> Any:
        y = f(*arguments, **{taken: state} if taken else {})
        return y if taken == "running" else (y, ())

    _, arguments = programs["bnderiv"]
    found = {who: partial(of_state, program.function) for who, program in programs.items()}
    dy, _ = jax.eval_shape(found["bnderiv"], state, *arguments)
    return {who: Program(in_training(f), (state, arguments, dy)) for who, f in found.items()}


def forward_alone(name: str, x: jax.ShapeDtypeStruct, **options: Any) -> dict[str, Program]:
    """As in inference."""
    arguments = (x, *[spec(x.shape[-1:])] * (0 if name.endswith(("pool", "softmax", "labels")) else 2))
    return {who: Program(f, arguments) for who, f in peers.layers(name, **options).items()}


def lenets(first: jax.ShapeDtypeStruct) -> dict[str, Program]:
    """A whole step: loss, gradients, SGD, running statistics; `first` is like the output of the first convolution."""
    found = {}
    for who, (step, arguments) in steps.networks(first.shape[0], "max", "relu", first.dtype.name).items():
        params, state, x, labels = jax.eval_shape(arguments)
        params, x = jax.tree.map(lambda a: spec(a.shape, first.dtype), (params, x))
        found[who] = Program(step, (params, state, x, labels))
    return found


def resnets(x: jax.ShapeDtypeStruct, **options: Any) -> dict[str, Program]:
    """A whole step of ResNet-50 as Flax modules: of `bnderiv.linen`'s layers, and of Flax's; `x` are the images.

    Within a step nothing keeps the compiler from moving work between forward and backward.
    """
    flax = peers.flax()
    return _steps(flax, partial(flax.ResNet, **options), x, x.shape[:1]) if flax else {}


def transformers(x: jax.ShapeDtypeStruct) -> dict[str, Program]:
    """A whole step of two blocks of a vision transformer as Flax modules, with a label for each patch."""
    flax = peers.flax()
    return _steps(flax, flax.Transformer, x, x.shape[:-1]) if flax else {}


def _steps(flax: Any, network: Any, x: jax.ShapeDtypeStruct, labeled: tuple[int, ...]) -> dict[str, Program]:
    """Of `network(ours=True)` with bnderiv's loss, and of Flax's layers with optax's."""
    found = {}
    for who, package in (("bnderiv", bnderiv), ("Flax", optax)):
        apply, init = flax.functions(network(ours=package is bnderiv))
        step = steps.train_step(apply, package.softmax_cross_entropy_with_integer_labels)
        found[who] = Program(step, (*jax.eval_shape(init, x), x, spec(labeled, "int32")))
    return found


def blocks(x: jax.ShapeDtypeStruct) -> dict[str, Program]:
    wide, narrow = x.shape[-1], 64
    params, running = {}, {}
    for name, window, inputs, outputs in (("1", 1, wide, narrow), ("2", 3, narrow, narrow), ("3", 1, narrow, wide)):
        params[name] = spec((window, window, inputs, outputs), x.dtype), spec((outputs,)), spec((outputs,))
        running[name] = jax.eval_shape(partial(bnderiv.init_running_stats, outputs))
    layers = {who: in_training(partial(bottleneck, package)) for who, package in peers.PACKAGES.items()}
    return flax_blocks(x) | {who: Program(f, (running, (params, x), x)) for who, f in layers.items()}


def flax_blocks(x: jax.ShapeDtypeStruct, convolutions_too: bool = True) -> dict[str, Program]:
    """Both as Flax modules: of `bnderiv.linen`'s batch norms, and of its convolutions if they are wanted; of Flax's."""
    found = {}
    if flax := peers.flax():
        ours = flax.Bottleneck(conv=flax.linen.Conv if convolutions_too else flax.nn.Conv, ours=True)
        for who, block in (("bnderiv", ours), ("Flax", flax.Bottleneck())):
            apply, init = flax.functions(block)
            params, state = jax.eval_shape(init, x)
            layer = in_training(lambda state, params, x, apply=apply: apply(params, state, x))
            found[who] = Program(layer, (state, (params, x), x))
    return found


def bottleneck(package: Any, running: Any, params: Any, x: jax.Array) -> Any:
    """As `flax_peer.Bottleneck`."""
    new, a = {}, x
    for name, (kernel, gamma, beta) in params.items():
        z = package.conv2d(a, kernel, padding="SAME")
        residual = {"residual": x} if name == "3" else {}
        a, new[name] = peers.ours(package, "batch_norm_relu", z, gamma, beta, running=running[name], **residual)
    return a, new


def count(target: str, program: Program, x: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """What the program for the target consists of; what is not on its usual path by itself, as `passes aside`."""
    compiled = targets.compile_for(target, program.function, *program.arguments)
    text = compiled.as_text()
    kernels = list(_programs.kernels(text))
    usual = [kernel for kernel in kernels if kernel.usual]
    masks = [a for k in usual for a in k.writes if a.dtype == "pred" and a.elements >= LARGE * x.size]
    whole = x.size * x.dtype.itemsize
    moved = sum(kernel.bytes for kernel in usual)
    cycles = sum(kernel.cycles for kernel in usual)
    return {
        "kernels": sum(kernel.times for kernel in usual),
        "passes": round(moved / whole, 2),
        "bytes": moved,
        "megacycles": round(cycles / 1e6, 3) if cycles else None,
        "temporary MB": round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1),
        "masks": len(masks),
        "float32 convolutions": sum("f32" in operands for operands in _programs.convolutions(text)),
        "passes aside": round(sum(kernel.bytes for kernel in kernels if not kernel.usual) / whole, 2),
    }


def compiler(target: str) -> str:
    """Of which versions, and when."""
    plugin = "jax-cuda13-plugin" if target == "h100" else "libtpu"
    found = _report.versions(*PACKAGES)
    return ", ".join(f"{name} {found.get(name)}" for name in ("jax", plugin, "flax")) + f", {_report.today()}"


def in_order(found: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}


def compile_all(options: Options, numbers: Path) -> None:
    """Every program that was asked for, each written as soon as it is counted."""
    content = _report.numbers(numbers) if numbers.exists() else {"targets": {}}
    every = {target: [case.name for case in cases() if target in case.targets] for target in targets.TARGETS}
    chosen = [case for case in cases() if not options.only or any(part in case.name for part in options.only)]
    work = [(target, case) for target in options.targets for case in chosen if target in case.targets]
    if not work:
        raise _command.Refused(f"no case has any of {options.only} in its name for {options.targets}")
    with _command.bar(total=len(work), unit="case") as bar:
        for target, case in work:
            bar.set_postfix_str(f"{target}: {case.name}")
            found = content["targets"].setdefault(target, {}).setdefault(case.name, {})
            for who, program in case.programs().items():
                if options.resume and who in found:
                    continue
                start = time.perf_counter()
                try:
                    found[who] = count(target, program, case.x)
                except jax.errors.JaxRuntimeError as error:  # as where it needs more memory than there is
                    found[who] = {"absent": str(error).splitlines()[0][:200]}
                found[who] |= {"seconds": round(time.perf_counter() - start, 1), "by": compiler(target)}
                ordered = {t: in_order(counted, every[t]) for t, counted in content["targets"].items()}
                content["targets"] = in_order(ordered, targets.TARGETS)
                _report.keep(numbers, content, options, *PACKAGES)
            bar.update()


@_command.command
def main(arguments: list[str] | None = None) -> None:
    options = _options.parse(Options, arguments)
    file = options.folder() / "ahead_of_time.json"
    if not options.redraw:
        _command.make(file.parent)
        compile_all(options, file)
    _report.show(file, compiled_tables.present)
