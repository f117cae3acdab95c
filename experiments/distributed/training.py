"""LeNet-5 with its batch spread over devices: one step of training, with the statistics of all devices or of groups.

With the statistics of the whole batch there is nothing to write: `jit` with sharded arguments computes what one device
would, and XLA puts the messages in. Groups need `shard_map`, in which a device sees its own images: batch norm then
takes the statistics of these (ghost batches), or of the devices along the mesh axis that it is given.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bnderiv
from bnderiv.models import lenet5
from experiments import _command, _data

AXES = ("group", "member")  # the devices: groups that share statistics, and the members of each
BY_BATCH, EVERYWHERE = P(AXES), P()
MOMENTUM = 0.9
CHUNK = 1000  # images evaluated at once


def mesh_of(devices: list[Any], group: int = 0) -> Mesh:
    """A mesh of groups with `group` devices each; 0 makes one group of all."""
    members = group or len(devices)
    if len(devices) % members:
        raise _command.Refused(f"group must divide the number of devices, {len(devices)}, got {group}")
    return Mesh(np.array(devices).reshape(-1, members), AXES)


def init(key: jax.Array, config: lenet5.Config, mesh: Mesh) -> Any:
    """(params, state, velocity), the same on every device."""
    params, state = lenet5.init(key, config)
    network = jax.device_get((params, state, jax.tree.map(jnp.zeros_like, params)))
    return jax.tree.map(lambda a: spread(a, mesh, EVERYWHERE), network)


def spread(array: np.ndarray, mesh: Mesh, spec: P = BY_BATCH) -> jax.Array:
    """An array over the devices of all processes, of which each process holds what its own devices need."""
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


def make_step(config: lenet5.Config, mesh: Mesh, rate: float) -> Any:
    """The compiled step: (network, images, labels) -> (network, loss).

    Images and labels are spread over all axes of `mesh`, network and loss are the same on every device.
    """

    def whole_batch(params, state, images, labels, axis_name=None):
        logits, state = lenet5.apply(params, state, images, config, train=True, axis_name=axis_name)
        return bnderiv.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    def in_groups(params, state, images, labels):
        """Each group normalizes by its own images; loss and running statistics are the mean of the groups'."""
        loss, new = whole_batch(params, state, images, labels, axis_name="member")
        for name, (mean, var, _) in new.items():  # each group has counted this batch; that needs no message
            agreed = lax.pmean(mean, "group"), lax.pmean(var, "group"), state[name].count + 1
            new[name] = bnderiv.RunningStats(*agreed)
        return lax.pmean(loss, AXES), new

    loss = whole_batch
    if mesh.shape["group"] > 1:
        specs = (EVERYWHERE, EVERYWHERE, BY_BATCH, BY_BATCH)
        loss = jax.shard_map(in_groups, mesh=mesh, in_specs=specs, out_specs=EVERYWHERE)

    def step(network, images, labels):
        params, state, velocity = network
        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(params, state, images, labels)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
        params = jax.tree.map(lambda p, v: p - rate * v, params, velocity)
        return (params, state, velocity), value

    by_batch, everywhere = (NamedSharding(mesh, spec) for spec in (BY_BATCH, EVERYWHERE))
    return jax.jit(step, in_shardings=(everywhere, by_batch, by_batch), out_shardings=everywhere)


def evaluate(network: Any, config: lenet5.Config, data: _data.Data) -> float:
    """Accuracy on the test images by the running statistics; every process computes it by itself."""
    params, state, _ = jax.device_get(network)

    @jax.jit
    def right(images, labels):
        logits, _ = lenet5.apply(params, state, images, config, train=False)
        return (logits.argmax(-1) == labels).sum()

    parts = (slice(first, first + CHUNK) for first in range(0, len(data.test_labels), CHUNK))
    right_ones = (right(data.standardized(data.test_images[part]), data.test_labels[part]) for part in parts)
    return sum(map(int, right_ones)) / len(data.test_labels)
