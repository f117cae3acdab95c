"""PyTorch's side, in a process of its own: beside JAX in one process the threads of both fight for the cores.

    python torch_process.py THREADS

Reads one JSON object a line, {"task", "options", "compile", "runs"}, and answers each with {"seconds": [...]} or
{"error"}; the first line it writes says what it is. Between two lines it sleeps.
"""

# PyTorch is in the extra `peers`, which the type checker does without.
# pyright: reportMissingImports=false

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

# Its workers would go on starting up while others are being timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class LeNet5(nn.Module):
    """As `bnderiv.models.lenet5` and `flax_peer.LeNet5`: no bias where batch norm would cancel it."""

    def __init__(self, pool: str, activation: str) -> None:
        super().__init__()
        self.pool = {"max": F.max_pool2d, "avg": F.avg_pool2d}[pool]
        self.activation = {"relu": F.relu, "tanh": torch.tanh}[activation]
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 5, padding=2, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 16, 5, bias=False), nn.BatchNorm2d(16)
        self.dense3, self.bn3 = nn.Linear(400, 120, bias=False), nn.BatchNorm1d(120)
        self.dense4, self.bn4 = nn.Linear(120, 84, bias=False), nn.BatchNorm1d(84)
        self.output = nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.activation(self.bn1(self.conv1(x))), 2)
        x = self.pool(self.activation(self.bn2(self.conv2(x))), 2)
        x = self.activation(self.bn3(self.dense3(x.flatten(1))))
        x = self.activation(self.bn4(self.dense4(x)))
        return self.output(x)


def lenet(compiled: Callable[[Any], Any], batch: int, pool: str, activation: str) -> Callable[[], Any]:
    """A step: value, gradient and SGD."""
    network: Any = LeNet5(pool, activation)
    network = network.to(DEVICE, memory_format=torch.channels_last)  # an argument that PyTorch's types leave out
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    x = torch.randn(batch, 1, 28, 28, device=DEVICE).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=DEVICE)
    forward = compiled(network)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(x), labels)
        loss.backward()
        optimizer.step()

    return step


def pool(
    compiled: Callable[[Any], Any], shape: list[int], kind: str, window: int, stride: int, padding: int
) -> Callable[[], Any]:
    """Forward and backward of x in (N, H, W, C)."""
    function = {"max": F.max_pool2d, "avg": F.avg_pool2d}[kind]
    x = _images(shape, torch.float32)
    return _both_ways(compiled(lambda x: function(x, window, stride, padding)), x)


def batch_norm(compiled: Callable[[Any], Any], shape: list[int], relu: bool, dtype: str) -> Callable[[], Any]:
    """Forward and backward in training mode, of x in (N, H, W, C) or (N, C), with the running statistics."""
    x = _images(shape, getattr(torch, dtype))
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[-1]).to(DEVICE)
    forward = compiled(lambda x: F.relu(layer(x)) if relu else layer(x))
    return _both_ways(forward, x, *layer.parameters())


def _images(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(shape, device=DEVICE).to(dtype)
    return (x.permute(0, 3, 1, 2) if x.ndim == 4 else x).requires_grad_()  # channels_last, as it is called here


def _both_ways(forward: Callable[..., torch.Tensor], x: torch.Tensor, *parameters: torch.Tensor) -> Callable[[], Any]:
    dy = torch.randn_like(forward(x))
    return lambda: torch.autograd.grad(forward(x), (x, *parameters), dy)


def compiler_missing() -> str:
    """Why `torch.compile` cannot work here, or nothing."""
    if DEVICE.type == "cpu" and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        return "torch.compile needs a C++ compiler"
    return ""


def serve() -> None:
    threads = int(sys.argv[1])
    torch.set_num_threads(threads)
    say, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    print(json.dumps({"torch": torch.__version__, "threads": threads}), file=say, flush=True)
    ready: dict[bool, Callable[[], Any]] = {}
    current = None
    for line in sys.stdin:
        request = json.loads(line)
        case = request["task"], request["options"]
        if case != current:  # the last case's arrays are large, and its compiled programs are for other shapes
            ready.clear()
            torch.compiler.reset()
            current = case
        try:
            answer = {"seconds": _run(ready, **request)}
        except Exception as error:  # whatever it is, it is this contestant's result
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(answer), file=say, flush=True)


def _run(
    ready: dict[bool, Callable[[], Any]], task: str, options: dict[str, Any], compile: bool, runs: int
) -> list[float]:
    if compile not in ready:
        if compile and compiler_missing():
            raise RuntimeError(compiler_missing())
        make = {"lenet": lenet, "pool": pool, "batch_norm": batch_norm}[task]
        ready[compile] = make(torch.compile if compile else lambda f: f, **options)
        for _ in range(3):
            ready[compile]()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        ready[compile]()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    serve()
