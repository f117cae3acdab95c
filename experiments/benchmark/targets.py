"""Compilers for accelerators, without one: what they make of a function."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from experiments import _command

TARGETS = ("v5e", "v6e", "v5p", "h100")
INSTALL = 'pip install -e ".[accelerators]"'
# The TPU's library is not to look for one, nor to complain that there is none, and several processes may load it.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
H100 = Path(__file__).with_name("h100.txtpb")


class Absent(_command.Refused):
    """There is no compiler for the target here; the message says why."""


@functools.cache
def devices(target: str) -> list[Any]:
    """The target's devices, to compile for."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        if target == "h100":
            found = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=H100.read_text())
        else:
            found = topologies.get_topology_desc(f"{target}:2x2" + "x1" * (target == "v5p"), "tpu")
    except Exception as error:  # of several kinds, by plugin and version
        raise Absent(f"no compiler for {target} ({INSTALL}): {str(error).splitlines()[0]}") from None
    return list(found.devices)


def compile_for(target: str, f: Callable[..., Any], *arguments: Any) -> Any:
    """The program of `f` for one device of the target; `arguments` are arrays or their shapes and dtypes."""
    sharding = SingleDeviceSharding(devices(target)[0])
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments)
    return jax.jit(f).lower(*placed).compile()
