"""PyTorch as contestants: processes of their own, one for each number of threads, that sleep until it is their turn."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from experiments.benchmark.clock import Absent, Contestant

THREADS = (1, 2)


class Torch:
    """PyTorch's processes; without PyTorch, contestants that say so."""

    def __init__(self) -> None:
        threads = THREADS if jax.default_backend() == "cpu" else THREADS[:1]
        self.version = None
        self._processes: dict[int, subprocess.Popen[str]] = {}
        for n in threads:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("torch_process.py")), str(n)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._processes[n] = process
            assert process.stdout is not None
            hello = process.stdout.readline()
            self.version = json.loads(hello)["torch"] if hello else None

    def contestants(self, task: str, compiled: bool = True, **options: Any) -> dict[str, Contestant]:
        """Eager and compiled, on each number of threads."""
        found = {}
        for n in self._processes:
            for compile in (False, True) if compiled else (False,):
                name = f"PyTorch {'compiled' if compile else 'eager'}, {n} thread{'s'[: n - 1]}"
                request = {"task": task, "options": options, "compile": compile}
                found[name] = self._contestant(self._processes[n], request)
        return found

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()

    def _contestant(self, process: "subprocess.Popen[str]", request: dict[str, Any]) -> Contestant:
        def run(times: int) -> list[float]:
            if self.version is None:
                raise Absent("torch is not installed")
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps({**request, "runs": times}), file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline() or '{"error": "the process ended"}')
            if "error" in answer:
                raise Absent(answer["error"])
            return answer["seconds"]

        return run
