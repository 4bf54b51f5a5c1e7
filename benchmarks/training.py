"""Training steps: their time, and their peak memory as the operating system sees it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.turns import Call, compared, measure
from ksurgeon.kmatrix.linear import KLinear

__all__ = ["memory", "training"]

_LAYERS: dict[str, Callable[[int, int], nn.Module]] = {"KLinear": KLinear, "nn.Linear": nn.Linear}


def _step(layer: nn.Module, x: Tensor, g: Tensor) -> Call:
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-6)

    def call() -> None:
        x.grad = None
        optimiser.zero_grad()
        layer(x).backward(g)
        optimiser.step()

    return call


def training(n: int, rows: int, seconds: float) -> dict[str, Any]:
    """Forward, backward with both gradients, and a step of SGD."""
    x, g = torch.randn(rows, n, requires_grad=True), torch.randn(rows, n)
    times = measure({name: _step(make(n, n), x, g) for name, make in _LAYERS.items()}, seconds)
    return compared("training step", f"{n}→{n}", rows, times, {"nn.Linear": 4})


def memory(n: int, rows: int) -> dict[str, Any]:
    """Peak resident memory that a layer and its training steps add to a process, in MiB.

    Each figure is from processes of their own that have warmed up on a small layer before.
    """
    taken = {}
    for name in _LAYERS:
        command = [sys.executable, "-m", "benchmarks.training", name, str(n), str(rows)]
        found = [float(json.loads(subprocess.check_output(command))) for _ in range(3)]
        taken[name] = {"median": median(found), "low": min(found), "high": max(found), "best": min(found)}
    row = compared("training memory", f"{n}→{n}", rows, taken, {"nn.Linear": 1})
    row["MiB"] = row.pop("us")
    return row


def _peak(kind: str, n: int, rows: int) -> float:
    for make in _LAYERS.values():  # what libraries and the allocator take once
        _step(make(64, 64), torch.randn(4, 64, requires_grad=True), torch.randn(4, 64))()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    x, g = torch.randn(rows, n, requires_grad=True), torch.randn(rows, n)
    step = _step(_LAYERS[kind](n, n), x, g)
    for _ in range(3):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A figure of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
