"""Single layers on a GPU against their peers: ``python -m benchmarks.cuda --json FILE``."""

import argparse
import json
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.timing import captured, eager, rotated
from ksurgeon.kernels import chosen_backend, reference
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.merge import merge_chain

SIZES = ((1024, 1024), (2048, 2048), (4096, 4096), (8192, 8192), (768, 3072))
ROWS = (1, 64, 1024, 4096, 25088)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
TRAINED = ((1024, 1024), (4096, 4096), (768, 3072))


Call = Callable[[Tensor], object]


class Monarch(nn.Module):
    """Two block-diagonal products, a permutation between them, by batched matrix products."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        blocks = 1 << (in_features.bit_length() // 2)
        while in_features % blocks or out_features % blocks:
            blocks //= 2
        width = in_features // blocks
        self.first = nn.Parameter(torch.randn(blocks, width, width) / width**0.5)
        self.second = nn.Parameter(torch.randn(width, out_features // width, blocks) / blocks**0.5)
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        blocks, width = self.first.shape[:2]
        y = torch.bmm(x.view(len(x), blocks, width).transpose(0, 1), self.first)
        y = torch.bmm(y.permute(2, 1, 0), self.second.mT)
        return y.permute(1, 2, 0).reshape(len(x), -1) + self.bias


def contestants(sizes: tuple[int, int], dtype: torch.dtype, compiled: bool) -> dict[str, Call]:
    """The layers by name, each a function of its input."""
    layer = KLinear(*sizes, device="cuda", dtype=dtype)
    merged = [step.detach() for step in merge_chain(list(layer.matrix.factors), 64)]
    bias = layer.bias
    out = torch.compile(lambda x: reference.apply_chain(x, merged, -1, bias), dynamic=True)
    found: dict[str, Call] = {
        "ksurgeon": layer,
        "dense": nn.Linear(*sizes, device="cuda", dtype=dtype),
        "monarch": Monarch(*sizes).to("cuda", dtype),
    }
    return found | {"reference, compiled": out} if compiled else found


def copying(sizes: tuple[int, int], rows: int, dtype: torch.dtype, cache: int) -> float:
    """Time of moving as many bytes as go into the layer and come out of it."""
    sources = rotated(lambda: torch.randn(rows, sum(sizes) // 2, device="cuda", dtype=dtype), cache)
    targets = {source.data_ptr(): torch.empty_like(source) for source in sources}
    return captured(lambda source: targets[source.data_ptr()].copy_(source), sources)


def forward(
    sizes: tuple[int, int], rows: int, dtype: torch.dtype, compiled: bool, cache: int
) -> dict[str, object]:
    """Times in microseconds of one layer on so many rows."""
    row: dict[str, object] = {"in": sizes[0], "out": sizes[1], "rows": rows}
    inputs = rotated(lambda: torch.randn(rows, sizes[0], device="cuda", dtype=dtype), cache)
    row["copy"] = copying(sizes, rows, dtype, cache)
    with torch.no_grad():
        for name, call in contestants(sizes, dtype, compiled).items():
            row[name] = captured(call, inputs)
            if name in ("ksurgeon", "dense"):
                row[f"{name}, eager"] = eager(call, inputs)
    return row


def training(sizes: tuple[int, int], rows: int, dtype: torch.dtype, cache: int) -> dict[str, object]:
    """Times in microseconds of a forward and a backward pass."""
    row: dict[str, object] = {"in": sizes[0], "out": sizes[1], "rows": rows}
    g = torch.randn(rows, sizes[1], device="cuda", dtype=dtype)
    inputs = rotated(lambda: torch.randn(rows, sizes[0], device="cuda", dtype=dtype).requires_grad_(), cache)
    for name, layer in contestants(sizes, dtype, False).items():
        assert isinstance(layer, nn.Module)
        parameters = list(layer.parameters())

        def step(x: Tensor, layer: nn.Module = layer, parameters: list[nn.Parameter] = parameters) -> object:
            return torch.autograd.grad(layer(x), [x, *parameters], g)

        row[name] = captured(step, inputs)
        row[f"{name}, eager"] = eager(step, inputs)
    return row


def show(title: str, rows: list[dict[str, object]]) -> None:
    """Print times, and how often the layer's time goes into those of the others."""
    names = [name for name in rows[0] if isinstance(rows[0][name], float)]
    table = Table(title=title, box=None)
    for column in ("dtype", "in → out", "rows", *names, "over copy", "dense over it", "best peer over it"):
        table.add_column(column, justify="right")
    for row in rows:
        own = float(row["ksurgeon"])  # type: ignore[arg-type]
        peers = [float(row[name]) for name in ("monarch", "reference, compiled") if name in row]  # type: ignore[arg-type]
        table.add_row(
            str(row["dtype"]),
            f"{row['in']} → {row['out']}",
            str(row["rows"]),
            *(f"{row[name]:.1f}" for name in names),
            f"{own / float(row['copy']):.2f}" if "copy" in row else "",  # type: ignore[arg-type]
            f"{float(row['dense']) / own:.2f}",  # type: ignore[arg-type]
            f"{min(peers) / own:.2f}",
        )
    Console(width=180).print(table)


def main() -> None:
    os.environ.setdefault("KSURGEON_BACKEND", "cuda")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--sizes", type=int, nargs="*", help="only layers with so many inputs")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile of the reference")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device to measure on")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    sizes = [pair for pair in SIZES if not arguments.sizes or pair[0] in arguments.sizes]
    setting = {"device": properties.name, "torch": torch.__version__, "backend": chosen_backend(device)}
    print(json.dumps(setting), flush=True)
    results: dict[str, list[dict[str, object]]] = {"forward": [], "training": []}

    def note(kind: str, name: str, row: dict[str, object]) -> None:
        results[kind].append({"dtype": name, **row})
        print(kind, json.dumps(results[kind][-1]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(setting | results, indent=1) + "\n")

    compiled, cache = not arguments.no_compile, properties.L2_cache_size
    for name, pair, rows in product(arguments.dtypes, sizes, arguments.rows):
        note("forward", name, forward(pair, rows, DTYPES[name], compiled, cache))
    for name, pair in product(arguments.dtypes, sizes):
        if pair in TRAINED:
            note("training", name, training(pair, 4096, DTYPES[name], cache))
    show("forward, µs in a CUDA graph", results["forward"])
    if results["training"]:
        show("forward and backward, µs in a CUDA graph", results["training"])


if __name__ == "__main__":
    main()
