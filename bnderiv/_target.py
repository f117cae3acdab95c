"""The choice of a computation's form, by the platform that a program is compiled for and the number of devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from bnderiv._rule import CustomJvp

GPU, TPU = ("cuda", "rocm"), ("tpu",)


def by_target(*args: Any, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
    """`forms[platform](*args)` in a program for one of these platforms, `default(*args)` in any other.

    The platform is known when the program is lowered, and the other forms are then dropped. The backend of the host
    (`jax.default_backend()`) says nothing: a program may be compiled or exported there for another platform.
    """
    return lax.platform_dependent(*args, default=default, **forms)


def first_on_gpu(first: jax.Array, then: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both unchanged. In a GPU's program, what uses `then` waits for `first`."""
    return by_target(first, then, **dict.fromkeys(GPU, _in_order), default=lambda *arrays: arrays)


@CustomJvp
def _in_order(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(lax.optimization_barrier(arrays))


@_in_order.defjvp
def _(arrays: Any, tangents: Any) -> Any:
    # In no order: JAX 0.12 cannot transpose a barrier of which a part is constant.
    return _in_order(*arrays), tangents


def apart(a: Any, on: tuple[str, ...] | None = None) -> Any:
    """A copy of the tree `a`. XLA does not know that it equals `a`, nor that two of its leaves are equal.

    So each kernel recomputes what it needs of `a`. Otherwise XLA would materialize what two kernels share, and writing
    and reading it takes longer. `on`: only on these platforms; by default on all.
    """
    if on is None:
        return lax.optimization_barrier(a)
    return by_target(a, **dict.fromkeys(on, lax.optimization_barrier), default=lambda a: a)


def widened(a: jax.Array, dtype: Any) -> jax.Array:
    """`a` in a wider dtype, on a GPU from the stored, rounded array.

    XLA drops a rounding before a widening. For a residual in bfloat16 it would also store the float32 array before the
    rounding, and a step of ResNet-50 on an H100 would take 1.4 times the temporary memory.
    """
    return a if a.dtype == dtype else apart(a, on=GPU).astype(dtype)


def in_one_part() -> bool:
    """Whether XLA shards no array here.

    There is only one device, or the code runs within `shard_map` (or `pmap`) over all axes of the mesh.
    """
    return numbers_of_devices() == [1]


def numbers_of_devices() -> list[int]:
    """Over how many devices XLA may shard an axis evenly here: the divisors of their number, or 1 alone."""
    number = 1 if jax.sharding.get_abstract_mesh().are_all_axes_manual else jax.device_count()
    return [n for n in range(1, number + 1) if number % n == 0]
