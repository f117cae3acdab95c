"""What synchronized batch norm sends in a training step, counted in compiled programs, and what that costs at scale.

    python -m experiments.distributed.scale                                    compiles for 8 and 256 CPU devices
    python -m experiments.distributed.scale --tpu v4:2x2x2 v4:4x8x8 v4:16x16x16  and for TPUs, by libtpu alone

The page on it is scale.md beside this file; the sources of the interconnects' figures are there.
"""

from experiments import _command

if __name__ == "__main__":
    _command.start("experiments.distributed.scale")

import importlib.util
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bnderiv
from bnderiv.models import lenet5
from experiments import _options, _programs, _report
from experiments._options import AtLeastOne
from experiments.distributed import training

PER_DEVICE = 8  # images; the messages do not depend on it
SIZES = (8, 256, 4096)
MESSAGES = 2  # of one batch norm about its running mean: forward and backward
BYTES = 8  # of a channel in one message of the statistics


# Counting.


class Message(NamedTuple):
    """One collective of a compiled program."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]  # of the arrays that travel in it
    bytes: int
    members: int  # devices that take part in each of its groups


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


def messages(program: str, devices: int) -> list[Message]:
    """The collectives in the text of a compiled program that runs on so many devices, in its order.

    Those within groups of one device, which send nothing, are left out.
    """
    found = []
    for operation in _programs.operations(program).values():
        kind = operation.opcode.removesuffix("-start")
        if kind in COLLECTIVES and (members := group_size(operation.attributes, devices)) > 1:
            arrays = [
                (dtype, tuple(map(int, re.findall(r"\d+", n))))
                for dtype, n, _ in _programs.ARRAY.findall(operation.shape)
            ]
            size = sum(_programs.Array(dtype, math.prod(shape)).bytes for dtype, shape in arrays)
            found.append(Message(kind, tuple(shape for _, shape in arrays), size, members))
    return found


def group_size(attributes: str, devices: int) -> int:
    """Devices in each group of a collective, in any of the ways XLA writes groups."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] {([^}]*)}", attributes):  # axes of a mesh
        sizes = dict(axis.split("=") for axis in match[1].split(","))
        return math.prod(int(sizes[axis.strip()]) for axis in match[2].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):  # [groups, members] of an iota
        return int(match[1])
    if match := re.search(r"replica_groups={{([\d,]*)}", attributes):
        return len(match[1].split(","))
    if "replica_groups={}" in attributes:
        return devices
    raise ValueError(f"cannot tell the groups of: {attributes.strip()[:200]}")


def sent(lowered: jax.stages.Lowered, devices: int) -> list[Message]:
    """Those of the program, without what a batch norm sends only where it has to measure again."""
    program = lowered.compile().as_text()
    assert program is not None
    return messages(_programs.usual_path(program), devices)


def total(found: list[Message]) -> dict[str, int]:
    """How many they are, and their bytes."""
    return {"messages": len(found), "bytes": sum(m.bytes for m in found)}


def step_counts(devices: Sequence[Any], group: int) -> dict[str, Any]:
    """Messages and bytes of the statistics, and of the gradients with all that travels in the same message."""
    config = lenet5.Config()
    params, state = jax.eval_shape(lambda: lenet5.init(jax.random.key(0), config))
    images = len(devices) * PER_DEVICE
    batch = (jax.ShapeDtypeStruct((images, *config.image_shape), jnp.float32), jax.ShapeDtypeStruct((images,), "int32"))
    step = training.make_step(config, training.mesh_of(list(devices), group), 0.1)
    found = sent(step.lower((params, state, params), *batch), len(devices))
    of_parameters = {a.shape for name, layer in params.items() if "bn" not in name for a in layer.values()}
    gradients = [m for m in found if of_parameters & set(m.shapes)]
    statistics = [m for m in found if m not in gradients]
    return {
        "statistics": total(statistics),
        "gradients": total(gradients),
        "kinds": sorted({m.kind for m in found}),
        "each": [[m.bytes, m.members] for m in found],
    }


def layer_counts(devices: Sequence[Any], channels: int, named: bool) -> dict[str, Any]:
    """Messages and bytes of one batch norm over all devices: in `shard_map` with `axis_name`, or by sharding alone."""
    mesh, specs = Mesh(np.array(devices), ("batch",)), (P("batch"), P(), P(), P("batch"))
    x = jax.ShapeDtypeStruct((len(devices) * PER_DEVICE, 4, 4, channels), jnp.float32)
    vector = jax.ShapeDtypeStruct((channels,), jnp.float32)

    def forward(x, gamma, beta):
        return bnderiv.batch_norm(x, gamma, beta, axis_name="batch" if named else None)[0]

    def and_backward(x, gamma, beta, dy):
        return jax.vjp(lambda x: forward(x, gamma, beta), x)[1](dy)[0]

    def counted(f: Callable[..., jax.Array], arguments: int) -> dict[str, int]:
        given = specs[:arguments]
        if named:
            f = jax.shard_map(f, mesh=mesh, in_specs=given, out_specs=specs[0])
        shardings = tuple(NamedSharding(mesh, spec) for spec in given)
        jitted = jax.jit(f, in_shardings=shardings, out_shardings=shardings[0])
        return total(sent(jitted.lower(*(x, vector, vector, x)[:arguments]), len(devices)))

    alone, both = counted(forward, 3), counted(and_backward, 4)
    return {"forward": alone, "backward": {name: both[name] - alone[name] for name in both}}


# Costs. All in microseconds and bytes; α is a latency, B bytes in a microsecond (a GB/s is 1,000 of them).


class Nodes(NamedTuple):
    """GPUs in nodes: NVLink within, InfiniBand between. NCCL's own model of its tree, whose figures these are."""

    members: int = 8
    start: float = 6.8
    inside: float = 0.6
    between: float = 5.0
    inside_bandwidth: float = 450_000
    between_bandwidth: float = 50_000

    def small(self, p: int, n: float) -> float:
        """A chain within each node and a tree between them: start + 2 ((m − 1) α₁ + log₂(nodes) α₂) + 2 n / B."""
        m = min(p, self.members)
        nodes = p // m
        bandwidth = self.between_bandwidth if nodes > 1 else self.inside_bandwidth
        return self.start + 2 * ((m - 1) * self.inside + math.log2(nodes) * self.between) + 2 * n / bandwidth

    def large(self, p: int, n: float) -> float:
        """The bytes of a ring, at the bandwidth of its narrowest link, and the latency of the tree."""
        bandwidth = self.between_bandwidth if p > self.members else self.inside_bandwidth
        return self.small(p, 0) + 2 * (p - 1) / p * n / bandwidth


class Torus(NamedTuple):
    """TPU chips in a torus: every hop takes so long, and every axis carries so much (both directions together)."""

    shapes: dict[int, tuple[int, ...]]
    hop: float = 1.0
    axis_bandwidth: float = 90_000

    def hops(self, p: int) -> float:
        """To the farthest chip: half of each axis that closes to a ring (a multiple of 4), all of one that does not."""
        return sum(size / 2 if size % 4 == 0 else size - 1 for size in self.shapes[p])

    def small(self, p: int, n: float) -> float:
        """There and back, or the bytes, whichever takes longer: 2 max(Σ hops, n / (B axes))."""
        closed = 1 if all(size % 4 == 0 for size in self.shapes[p]) else 2  # an open axis has half the bandwidth
        return 2 * max(self.hop * self.hops(p), closed * n / (self.axis_bandwidth * len(self.shapes[p])))

    large = small


NETWORKS: dict[str, Nodes | Torus] = {
    "H100: NVLink, NDR InfiniBand": Nodes(),
    "TPU v4: ICI, 3D torus": Torus({8: (2, 2, 2), 256: (4, 8, 8), 4096: (16, 16, 16)}),
}


class Network(NamedTuple):
    """What of a neural network matters here."""

    norms: int
    channels: int  # of all batch norms together
    parameters: int


RESNET50 = Network(norms=53, channels=26_560, parameters=25_557_032)
LENET5 = Network(norms=4, channels=6 + 16 + 120 + 84, parameters=61_932)


def costs(of: Network, per_layer: int, bytes_per_channel: int, network: Nodes | Torus, p: int) -> dict[str, float]:
    """Microseconds of one step: the statistics' messages, one after the other, and the gradients' as one message."""
    each = of.channels / of.norms * bytes_per_channel
    statistics = of.norms * per_layer * network.small(p, each)
    return {"statistics": round(statistics, 1), "gradients": round(network.large(p, 4 * of.parameters), 1)}


# The run.


class Settings(_options.Measured):
    """What to compile for."""

    devices: tuple[AtLeastOne, ...] = (8, 256)
    """It compiles for these numbers of CPU devices."""
    tpu: tuple[str, ...] = ()
    """It compiles for these TPU topologies, such as v4:4x8x8. No TPU is needed, but `pip install libtpu` is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tpu and importlib.util.find_spec("libtpu") is None:
            raise _command.Refused("tpu needs the compiler of TPUs: pip install libtpu")


def tpu_devices(topology: str) -> list[Any]:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no machine to ask about itself
    from jax.experimental import topologies

    # One device for each chip, as on the machines themselves.
    options = {"chip_config_name": "megacore"} if topology.startswith(("v4", "v5:")) else {}
    return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)


def draw(table: list[dict[str, Any]]) -> bytes:
    """Milliseconds that a step of ResNet-50 waits for its statistics, against the number of devices."""
    figure, axes = plt.subplots(figsize=(_report.WIDTH, 5))
    for color, network in zip(("C2", "C4"), NETWORKS, strict=True):
        rows = [row for row in table if row["network"] == network and row["of"] == "ResNet-50"]
        sizes = [row["devices"] for row in rows]
        axes.plot(sizes, [row["statistics"] / 1e3 for row in rows], "o-", color=color, label=f"statistics, {network}")
        axes.plot(sizes, [row["gradients"] / 1e3 for row in rows], "s:", color=color, label=f"gradients, {network}")
    for images, milliseconds in ((32, 32 / 3.5), (256, 256 / 3.5)):
        axes.axhline(milliseconds, color="gray", lw=1, ls="--")
        words = f"computing {images} images on an A100"
        axes.annotate(words, (8, milliseconds), (0, 4), textcoords="offset points", color="dimgray")
    axes.set(xscale="log", yscale="log", xlabel="devices", ylabel="ms in a step of ResNet-50", ylim=(None, 200))
    axes.set_xticks(SIZES, [f"{p:,}" for p in SIZES])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda milliseconds, _: f"{milliseconds:g}")
    axes.set_title("Modeled from published latencies, not measured; lower is better")
    figure.legend(loc="outside lower center", ncols=1)
    return _report.png(figure)


def measure(settings: Settings) -> dict[str, Any]:
    """The counts in programs for each number of devices, and the costs that follow."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(settings.devices, default=1))
    machines = {f"{p} CPU devices": jax.devices()[:p] for p in settings.devices}
    machines |= {f"TPU {topology}": tpu_devices(topology) for topology in settings.tpu}
    counted = {}
    for name, there in machines.items():
        print(f"compiling for {name} …", flush=True)
        counted[name] = {
            "devices": len(there),
            "lenet5": {
                "all devices": step_counts(there, 0),
                "groups of 8": step_counts(there, 8) if len(there) > 8 else None,
                "each device alone": step_counts(there, 1),
            },
            "one batch norm of 64 channels": {
                "jit, sharded arrays": layer_counts(there, 64, named=False),
                "shard_map, axis_name": layer_counts(there, 64, named=True),
            },
        }
    table = [
        {"of": of, "network": name, "devices": p} | costs(sizes, MESSAGES, BYTES, network, p)
        for of, sizes in (("LeNet-5", LENET5), ("ResNet-50", RESNET50))
        for name, network in NETWORKS.items()
        for p in SIZES
    ]
    return {"counted": counted, "costs_us": table}


def present(content: dict[str, Any]) -> _report.Report:
    """The page with tables and picture."""
    costs_us = content["costs_us"]
    counts = [
        [name, statistics, *(part[key] for part in (c["statistics"], c["gradients"]) for key in ("messages", "bytes"))]
        for name, machine in content["counted"].items()
        for statistics, c in machine["lenet5"].items()
        if c
    ]
    columns = ("compiled for", "statistics of", "their messages", "their bytes", "gradients' messages", "their bytes")
    tables = [
        _report.Table("A step of LeNet-5", columns, counts),
        _report.Table("Costs", tuple(costs_us[0]), [list(row.values()) for row in costs_us], "Microseconds in a step."),
    ]
    caption = (
        "Milliseconds of a step against the number of devices. The statistics of all devices are 106 short messages, "
        "one after the other. An A100 computes 3,500 images a second."
    )
    return _report.Report(
        "What synchronized batch norm sends",
        "Counted in compiled programs: for each batch norm one message forward, one backward; one for all gradients.",
        [*tables, _report.Picture("ResNet-50", "scale.png", draw(costs_us), caption)],
        said=_report.markdown(tables),
    )


main = _report.experiment(Settings, "scale.json", measure, present)
