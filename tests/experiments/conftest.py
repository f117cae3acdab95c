"""What several tests of the experiments need."""

import contextlib
import os
import signal

import pytest


@pytest.fixture
def another_user():
    """`with another_user(folder)`: as one who must not look into it. Root may, so root becomes another."""

    @contextlib.contextmanager
    def locked_out(folder):
        folder.chmod(0)
        if os.geteuid() == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(os.getuid())
            folder.chmod(0o700)

    return locked_out


@pytest.fixture
def interruptible():
    """Ctrl-C as a terminal has it, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
