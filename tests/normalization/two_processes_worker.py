"""Trains a small batch-normalized network over all processes' devices, and saves what came out.

python two_processes_worker.py PROCESSES PROCESS PORT OUT
"""

import os
import sys

processes, process, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
DEVICES = 4  # over all processes
os.environ["JAX_PLATFORMS"] = "cpu"
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={DEVICES // processes}"

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

jax.config.update("jax_enable_x64", True)
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process, initialization_timeout=60)

import bnderiv

assert jax.device_count() == DEVICES, jax.devices()
assert jax.process_count() == processes
MESH = Mesh(np.array(jax.devices()), ("batch",))
STEPS, RATE = 5, 0.1

rng = np.random.default_rng(0)
images, labels = 100 + rng.standard_normal((16, 6, 6, 2)), rng.integers(0, 3, 16)
counted = rng.random((16, 6, 6, 1)) < 0.5
counted[:4] = False  # a device without any
parameters = {
    "conv": rng.standard_normal((3, 3, 2, 4)),
    "gamma": np.ones(4),
    "beta": np.zeros(4),
    "dense": rng.standard_normal((36 * 4, 3)),
}


def spread(array, spec):
    """A global array, of which each process holds what its devices need."""
    return jax.make_array_from_callback(array.shape, NamedSharding(MESH, spec), lambda index: array[index])


def loss(params, x, y, where, axis_name):
    z = bnderiv.conv2d(x, params["conv"], padding=1)
    a, _ = bnderiv.batch_norm_relu(z, params["gamma"], params["beta"], where=where, axis_name=axis_name)
    losses = bnderiv.softmax_cross_entropy_with_integer_labels(bnderiv.dense(bnderiv.flatten(a), params["dense"]), y)
    return losses.mean() if axis_name is None else jax.lax.pmean(losses.mean(), axis_name)


def step(params, *data, axis_name):
    value, gradient = jax.value_and_grad(loss)(params, *data, axis_name)
    return jax.tree.map(lambda p, g: p - RATE * g, params, gradient), value


def train(one_step):
    params = jax.tree.map(lambda a: spread(a, P()), parameters)
    data = [spread(a, P("batch")) for a in (images, labels, counted)]
    values = []
    for _ in range(STEPS):
        params, value = one_step(params, *data)
        values.append(np.asarray(value))
    return {"losses": np.array(values)} | {name: np.asarray(a) for name, a in params.items()}


by_sharding = jax.jit(lambda params, *data: step(params, *data, axis_name=None))
by_name = jax.jit(
    jax.shard_map(
        lambda params, *data: step(params, *data, axis_name="batch"),
        mesh=MESH,
        in_specs=(P(), P("batch"), P("batch"), P("batch")),
        out_specs=(P(), P()),
    )
)
results = {f"{name}/{key}": a for name, f in (("jit", by_sharding), ("map", by_name)) for key, a in train(f).items()}
np.savez(out, allow_pickle=False, **results)
