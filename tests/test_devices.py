"""Where XLA may shard an array, and where it may not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bnderiv import _target
from tests.devices import traced_for


@pytest.fixture
def found():
    """What a function finds that is run under a transform."""
    answers = []

    def run(transform, *args):
        def asks(x):
            answers.append(_target.in_one_part())
            return 2 * x

        answers.clear()
        jax.block_until_ready(transform(jax.jit(asks))(*args))
        return set(answers)

    return run


def mesh(*shape):
    return jax.make_mesh(shape, ("d", "e")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))


def test_eight_devices(found):
    assert jax.device_count() == 8
    x = jnp.arange(8.0)
    assert found(lambda f: f, x) == {False}
    assert found(jax.vmap, x) == {False}
    assert found(jax.jit, jax.device_put(x, NamedSharding(mesh(8), P("d")))) == {False}


def test_within_shard_map(found):
    x, spec = jnp.arange(8.0), P("d")
    assert found(lambda f: jax.shard_map(f, mesh=mesh(8), in_specs=spec, out_specs=spec), x) == {True}
    assert found(lambda f: jax.shard_map(jax.vmap(f), mesh=mesh(8), in_specs=spec, out_specs=spec), x) == {True}
    assert found(jax.pmap, x) == {True}


def test_within_shard_map_over_some_axes(found):
    """The others are still XLA's to shard over."""
    options = {"mesh": mesh(2, 4), "in_specs": P("d"), "out_specs": P("d"), "axis_names": {"d"}}
    assert found(lambda f: jax.jit(jax.shard_map(f, **options)), jnp.arange(8.0)) == {False}


def test_one_device(found):
    with traced_for(1):
        assert found(lambda f: f, jnp.arange(8.0)) == {True}


def test_an_axis_may_be_sharded_over_some_of_the_devices():
    with traced_for(12):
        assert _target.numbers_of_devices() == [1, 2, 3, 4, 6, 12]
