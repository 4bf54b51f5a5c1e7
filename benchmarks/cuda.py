"""Single layers on a GPU against their peers: ``python -m benchmarks.cuda --json FILE``.

Times are those of the device, in a CUDA graph, on inputs rotated past its cache; ours is the way that
ksurgeon chooses there. ``--json`` adds to a file, so that a long run can be had in pieces.
"""

import argparse
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.peers import monarch, structured
from benchmarks.results import COPY, PEAK
from benchmarks.timing import captured, eager, rotated
from benchmarks.turns import compared
from ksurgeon.kernels import reference
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.patterns.merge import merge_chain

TITLE = "K-matrices on a GPU"
DEVICE = "cuda"
SIZES = ((1024, 1024), (2048, 2048), (4096, 4096), (8192, 8192), (768, 3072))
ROWS = (1, 64, 1024, 4096, 25088)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
TRAINED = ((1024, 1024), (4096, 4096), (768, 3072))
_SQUARE = 8192  # of the product that the peak is measured with

Call = Callable[[Tensor], object]
Times = dict[str, dict[str, float]]


def contestants(sizes: tuple[int, int], dtype: torch.dtype, compiled: bool) -> dict[str, Call]:
    """The layers by name, each a function of its input; all but the dense one hold the same matrix."""
    layer = KLinear(*sizes, bias=False, device=DEVICE, dtype=dtype)
    other = structured(layer)  # first: it changes the matrix to one that it can hold
    found: dict[str, Call] = {
        "KLinear": layer,
        "nn.Linear": nn.Linear(*sizes, bias=False, device=DEVICE, dtype=dtype),
        "batched Monarch": monarch(layer.matrix),
    }
    if other is not None and dtype == torch.float32:  # it has no other numbers
        found[other[0]] = other[1]
    if compiled:
        merged = [step.detach() for step in merge_chain(list(layer.matrix.factors), 64)]
        found["reference, compiled"] = torch.compile(
            lambda x: reference.apply_chain(x, merged, -1), dynamic=True
        )
    return found


@lru_cache
def peak(dtype: torch.dtype) -> float:
    """Operations in a microsecond of the largest product that the library is fast at."""
    sides = [torch.randn(_SQUARE, _SQUARE, device=DEVICE, dtype=dtype) for _ in range(2)]
    return 2 * _SQUARE**3 / captured(lambda x: x @ sides[1], sides[:1])["best"]


def copying(sizes: tuple[int, int], rows: int, dtype: torch.dtype, cache: int) -> dict[str, float]:
    """Time of moving as many bytes as go into the layer and come out of it."""
    sources = rotated(lambda: torch.randn(rows, sum(sizes) // 2, device=DEVICE, dtype=dtype), cache)
    targets = {source.data_ptr(): torch.empty_like(source) for source in sources}
    return captured(lambda source: targets[source.data_ptr()].copy_(source), sources)


def wanted(sizes: tuple[int, int], rows: int, dtype: torch.dtype, names: list[str]) -> dict[str, float]:
    """Ratios asked for at least."""
    found: dict[str, float] = {}
    if rows >= 4096 and min(sizes) >= 2048:
        found[COPY] = 1 / 1.5
    if sizes == (4096, 4096) and rows >= 4096:
        found["nn.Linear"] = 4 if dtype == torch.bfloat16 else 8
    if rows == 1 and sizes in ((1024, 1024), (4096, 4096)):
        found["nn.Linear"] = 1 if sizes[0] == 1024 else 2
    if min(sizes) >= 1024:
        found |= {name: 2 for name in names if name not in ("KLinear", "nn.Linear", COPY, PEAK)}
    return found


def forward(
    sizes: tuple[int, int], rows: int, dtype: torch.dtype, compiled: bool, cache: int
) -> list[dict[str, Any]]:
    """One layer on so many rows, in a CUDA graph and as a program calls it."""
    inputs = rotated(lambda: torch.randn(rows, sizes[0], device=DEVICE, dtype=dtype), cache)
    times: Times = {}
    called: Times = {}
    with torch.no_grad():
        calls = contestants(sizes, dtype, compiled)
        layer = calls["KLinear"]
        assert isinstance(layer, KLinear)
        for name, call in calls.items():
            times[name] = captured(call, inputs)
            if name in ("KLinear", "nn.Linear"):
                called[name] = eager(call, inputs)
        weights = sum(step.numel() for step in layer.matrix.merged(64))
    flop, moved = 2 * weights * rows, rows * sum(sizes) * dtype.itemsize
    times[COPY] = copying(sizes, rows, dtype, cache)
    times[PEAK] = {name: flop / peak(dtype) for name in times[COPY]}
    case = f"{sizes[0]}→{sizes[1]}, {_name(dtype)}"
    asked = wanted(sizes, rows, dtype, list(times))
    row = compared("linear", case, rows, times, asked)
    row |= {"flop": flop, "bytes": moved + weights * dtype.itemsize, "moved": moved, "kind": _name(dtype)}
    return [row, compared("linear, eager", case, rows, called, {})]


def training(sizes: tuple[int, int], rows: int, dtype: torch.dtype, cache: int) -> dict[str, Any]:
    """A forward and a backward pass, gradients of input and parameters."""
    g = torch.randn(rows, sizes[1], device=DEVICE, dtype=dtype)
    inputs = rotated(lambda: torch.randn(rows, sizes[0], device=DEVICE, dtype=dtype).requires_grad_(), cache)
    times: Times = {}
    for name, layer in contestants(sizes, dtype, False).items():
        if not isinstance(layer, nn.Module):
            continue
        parameters = list(layer.parameters())

        def step(x: Tensor, layer: nn.Module = layer, parameters: list[nn.Parameter] = parameters) -> object:
            return torch.autograd.grad(layer(x), [x, *parameters], g)

        times[name] = captured(step, inputs)
    case = f"{sizes[0]}→{sizes[1]}, {_name(dtype)}"
    return compared("training step", case, rows, times, {"nn.Linear": 2.5} if sizes[0] == 4096 else {})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also add the figures to this file")
    parser.add_argument("--sizes", type=int, nargs="*", help="only layers with so many inputs")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile of the reference")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device to measure on")
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    sizes = [pair for pair in SIZES if not arguments.sizes or pair[0] in arguments.sizes]
    done: list[dict[str, Any]] = []

    def note(found: list[dict[str, Any]]) -> None:
        done.extend(found)
        print("·", found[-1]["part"], found[-1]["case"], found[-1]["rows"], flush=True)
        if arguments.json:
            results.add(arguments.json, TITLE, results.gpu_setting(), found)

    for name, pair, rows in product(arguments.dtypes, sizes, arguments.rows):
        note(forward(pair, rows, DTYPES[name], not arguments.no_compile, cache))
    for name, pair in product(arguments.dtypes, sizes):
        if pair in TRAINED:
            note([training(pair, 4096, DTYPES[name], cache)])
    results.show(TITLE, done)


if __name__ == "__main__":
    main()
