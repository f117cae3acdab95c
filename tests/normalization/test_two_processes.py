"""Two processes, joined by jax.distributed on the loopback address, train to the same numbers as one."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.compiling import of_a_user

WORKER = Path(__file__).with_name("two_processes_worker.py")
ROOT = Path(__file__).parents[2]


def _run(processes, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = of_a_user() | {"PYTHONPATH": str(ROOT)}
    outs = [folder / f"{processes}-{i}.npz" for i in range(processes)]
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, str(processes), str(i), str(port), out],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i, out in enumerate(outs)
    ]
    try:
        printed = [worker.communicate(timeout=150)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(printed)
    return [dict(np.load(out)) for out in outs]


@pytest.mark.slow
def test_two_processes_train_to_the_numbers_of_one(tmp_path):
    (alone,) = _run(1, tmp_path)
    for together in _run(2, tmp_path):
        assert together.keys() == alone.keys()
        for name, expected in alone.items():
            np.testing.assert_allclose(together[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)
    losses = alone["jit/losses"]
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(alone["map/losses"], losses, rtol=1e-9)
