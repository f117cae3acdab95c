"""What several files of this room need."""

import jax
import pytest

from bnderiv.normalization import units


@pytest.fixture
def measured_again(monkeypatch):
    """How often x was read again, and the result."""
    measured = []
    moved = units.moved

    def counted(*args):
        jax.debug.callback(lambda: measured.append(1))
        return moved(*args)

    monkeypatch.setattr(units, "moved", counted)
    jax.clear_caches()

    def count(f, *args):
        measured.clear()
        result = jax.block_until_ready(f(*args))
        jax.effects_barrier()
        return len(measured) - 1, result

    yield count
    jax.clear_caches()
