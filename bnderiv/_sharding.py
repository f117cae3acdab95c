"""Explicit meshes, on which an array's sharding is part of its type; `jax.make_mesh` makes such meshes by default.

On mesh axes of `AxisType.Explicit`, JAX infers the sharding of every intermediate result, and raises where it is not
determined by the operands, as in reshapes and sums over the batch. For a layer as a whole it is determined: the output
is sharded like the input, and each gradient like its primal. So inside a layer the axes are of `AxisType.Auto`, and XLA
decides.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes


def automatic(layer: Callable[..., Any], result: Callable[..., Any], **arrays: Any) -> Any:
    """`layer(*arrays.values())`; if any of the arrays is on an explicit mesh, so is the result.

    Args:
      layer: a function of arrays that does not depend on their sharding.
      result: the `PartitionSpec` of the output, or a tree of them, from those of the arrays, given by name. A spec has
        an entry for each axis; it is None for None.
      arrays: each an array or None.

    Raises:
      ValueError: two axes of an output would be sharded over one axis of the mesh, or an axis over a number of devices
        that does not divide it, or an array is `unreduced` or `reduced` (it, or its gradient, is a sum over devices
        that is still to be taken).
    """
    meshes = [jax.typeof(a).sharding.mesh for a in arrays.values() if a is not None]
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return layer(*arrays.values())

    given = {name: a for name, a in arrays.items() if a is not None}
    specs = {name: jax.typeof(a).sharding.spec for name, a in given.items()}
    for name, spec in specs.items():
        if spec.unreduced or spec.reduced:
            raise ValueError(f"{name} must be neither unreduced nor reduced, got {spec}: jax.sharding.reshard it first")
    outputs = result(**{name: specs.get(name) for name in arrays})
    outputs = jax.tree.map(lambda spec: _on(mesh, spec, specs), outputs, is_leaf=lambda a: isinstance(a, PartitionSpec))

    def within(values: dict[str, Any]) -> Any:
        return layer(*(values.get(name) for name in arrays))

    explicit = tuple(n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t == AxisType.Explicit)
    try:
        return auto_axes(within, axes=explicit, out_sharding=outputs)(given)
    except ValueError as error:
        if "evenly divide" not in str(error):
            raise
        raise ValueError(
            f"the result cannot be sharded like {_listed(specs)} ({error}): jax.sharding.reshard an argument first"
        ) from None


def like_rows(first: PartitionSpec, second: PartitionSpec) -> PartitionSpec:
    """For losses, one value per row of `first`: its axes but the last, sharded as either array is."""
    return PartitionSpec(*(a or b for a, b in zip(first[: len(first) - 1], second, strict=False)))


def _on(mesh: Any, spec: PartitionSpec, specs: dict[str, PartitionSpec]) -> NamedSharding:
    names = [name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,)) if name is not None]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two axes of the result cannot both be sharded over mesh axis {twice[0]!r}, got {spec} from "
            f"{_listed(specs)}: jax.sharding.reshard an argument first"
        )
    return NamedSharding(mesh, spec)


def _listed(specs: dict[str, PartitionSpec]) -> str:
    return ", ".join(f"{name} {spec}" for name, spec in specs.items())
