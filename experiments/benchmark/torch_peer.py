"""PyTorch as contestants: processes of their own, one for each number of threads, that sleep until it is their turn."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax

from experiments.benchmark.clock import Absent, Contestant

THREADS = (1, 2)


class Torch:
    """PyTorch's processes; without PyTorch, contestants that say so."""

    def __init__(self) -> None:
        threads = THREADS if jax.default_backend() == "cpu" else THREADS[:1]
        program = [sys.executable, str(Path(__file__).with_name("torch_process.py"))]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._processes: dict[int, Any] = {n: subprocess.Popen([*program, str(n)], text=True, **pipes) for n in threads}
        self._installed = all([process.stdout.readline() for process in self._processes.values()])

    def contestants(self, task: str, compiled: bool = True, **options: Any) -> dict[str, Contestant]:
        """Eager and compiled, on each number of threads."""
        found = {}
        for n, process in self._processes.items():
            for compile in (False, True) if compiled else (False,):
                name = f"PyTorch {'compiled' if compile else 'eager'}, {n} thread{'s'[: n - 1]}"
                found[name] = partial(self._run, process, {"task": task, "options": options, "compile": compile})
        return found

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()

    def _run(self, process: Any, request: dict[str, Any], times: int) -> list[float]:
        if not self._installed:
            raise Absent("torch is not installed")
        print(json.dumps({**request, "runs": times}), file=process.stdin, flush=True)
        answer = json.loads(process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in answer:
            raise Absent(answer["error"])
        return answer["seconds"]
