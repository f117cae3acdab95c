"""Tracing as on a machine with another number of devices than the suite's eight."""

import contextlib
from collections.abc import Iterator

import jax
import pytest


@contextlib.contextmanager
def traced_for(devices: int) -> Iterator[None]:
    """Within it, layers are traced as where there are so many; what was traced before and within is forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: devices)
        jax.clear_caches()
        try:
            yield
        finally:
            jax.clear_caches()
