"""What several files of this room need."""

import jax
import pytest

from bnderiv.normalization import measure


@pytest.fixture
def measured_again(monkeypatch):
    """How often x was measured again, and the result."""
    measured = []
    of_range = measure.of_range

    def counted(*args):
        jax.debug.callback(lambda: measured.append(1))
        return of_range(*args)

    monkeypatch.setattr(measure, "of_range", counted)
    jax.clear_caches()

    def count(f, *args):
        measured.clear()
        result = jax.block_until_ready(f(*args))
        jax.effects_barrier()
        return len(measured), result

    yield count
    jax.clear_caches()
