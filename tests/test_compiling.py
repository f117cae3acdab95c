"""Arrays that the tests make without a program are those that JAX makes with one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiling

HOST = np.array([[1 / 3, -2.5, np.inf], [np.nan, 1e30, 0]])
MADE = {
    "asarray": lambda: jnp.asarray(HOST),
    "as float32": lambda: jnp.asarray(HOST, jnp.float32),
    "as float64": lambda: jnp.asarray(np.float32(1 / 3), float),
    "as bfloat16": lambda: jnp.asarray(HOST, jnp.bfloat16),
    "as integers": lambda: jnp.asarray(np.arange(4), jnp.int32),
    "of a list": lambda: jnp.array([1.0, 2.0]),
    "of a number": lambda: jnp.asarray(1.5),
    "booleans": lambda: jnp.asarray([True, False]),
    "ones": lambda: jnp.ones((2, 3)),
    "zeros": lambda: jnp.zeros(3, jnp.bfloat16),
    "full": lambda: jnp.full((2, 2), 7, jnp.float32),
    "full of a weak number": lambda: jnp.full(2, np.nan),
    "like": lambda: jnp.ones_like(jnp.asarray(HOST)),
    "on a device": lambda: jnp.zeros_like(jax.device_put(HOST, jax.devices()[3])),
}


@pytest.mark.parametrize("x64", [True, False], ids=["x64", "x32"])
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_without_a_program(monkeypatch, make, x64):
    with jax.enable_x64(x64):
        monkeypatch.setattr(compiling, "_all_quickly", True)
        quick = make()
        monkeypatch.setattr(compiling, "_all_quickly", False)
        slow = make()
    assert (quick.aval, quick.sharding, quick.committed) == (slow.aval, slow.sharding, slow.committed)
    np.testing.assert_array_equal(np.asarray(quick, np.float64), np.asarray(slow, np.float64))


def test_it_is_a_copy(monkeypatch):
    """Where JAX's own is one. `device_put` keeps an array that lies well in memory."""
    monkeypatch.setattr(compiling, "_all_quickly", True)
    hosts = [np.ones(1024) for _ in range(8)]
    arrays = [jnp.asarray(host) for host in hosts]
    for host, array in zip(hosts, arrays, strict=True):
        host[:] = 2
        np.testing.assert_array_equal(array, 1)
