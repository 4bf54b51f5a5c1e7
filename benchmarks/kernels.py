"""K-matrix layers against dense layers and their peers: ``python -m benchmarks.kernels --json FILE``.

Everything is measured side by side in one process: the candidates of a shape run in turns of some
milliseconds, so that a change of the machine's clock or load meets all of them. Shown are medians, with
the spread from the first to the ninth decile, of the public modules under ``torch.inference_mode()``.
"""

import argparse
import importlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ksurgeon.kernels import chosen_backend, cpu
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.shuffle import KChannelShuffle, shuffle_permutation

Call = Callable[[], object]
PARTS = ("linear", "training", "convolution", "shuffle")
SIZES = (
    (256, 256),
    (512, 512),
    (768, 768),
    (1024, 1024),
    (2048, 2048),
    (4096, 4096),
    (768, 3072),
    (3072, 768),
)
ROWS = (1, 16, 197, 256, 4096)
CONVOLUTIONS = ((256, 256, 56, 1), (256, 256, 56, 32), (512, 2048, 14, 1), (512, 2048, 14, 32))
# How many times faster than nn.Linear, for in, out and rows.
WANTED = {
    (512, 512, 1): 4,
    (512, 512, 256): 9,
    (768, 3072, 1): 15,
    (768, 3072, 197): 8,
    (3072, 768, 1): 15,
    (3072, 768, 197): 8,
    (1024, 1024, 1): 8,
    (1024, 1024, 256): 15,
    (4096, 4096, 1): 150,
    (4096, 4096, 256): 50,
}


def measure(calls: dict[str, Call], seconds: float) -> dict[str, dict[str, float]]:
    """Microseconds per call of every candidate, taken in turns for about ``seconds`` each."""
    loops = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        start = perf_counter()
        call()
        loops[name] = max(1, int(4e-3 / max(perf_counter() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    end, turns = perf_counter() + seconds * len(calls), 0
    while perf_counter() < end or turns < 5:
        turns += 1
        for name, call in calls.items():
            start = perf_counter()
            for _ in range(loops[name]):
                call()
            times[name].append((perf_counter() - start) / loops[name] * 1e6)
    return {name: summary(taken) for name, taken in times.items()}


def summary(times: list[float]) -> dict[str, float]:
    """Median, first and ninth decile, and the best."""
    low, *_, high = quantiles(times, n=10)
    return {"median": median(times), "low": low, "high": high, "best": min(times)}


def monarch(matrix: KMatrix) -> Callable[[Tensor], Tensor]:
    """The same matrix with wide blocks and batched matrix products, as Monarch layers compute it."""
    with torch.no_grad():
        merged = matrix.merged(64)
        weights = [factor.mT.flatten(0, 1).contiguous() for factor in merged]
    shapes = [tuple(factor.shape) for factor in merged]

    def apply(x: Tensor) -> Tensor:
        rows = len(x)
        for weight, (a, d, b, c) in zip(weights, shapes, strict=True):
            blocks = x.view(rows, a, c, d).permute(1, 3, 0, 2).reshape(a * d, rows, c)
            x = torch.bmm(blocks, weight).view(a, d, rows, b).permute(2, 0, 3, 1).reshape(rows, a * b * d)
        return x

    return apply


def peers(matrix: KMatrix, x: Tensor) -> dict[str, Call]:
    """Packages that can do the same (extra ``bench``), as far as they are installed and take the shape."""
    found: dict[str, Call] = {}
    try:
        butterfly: Any = importlib.import_module("lazylinop.butterfly")
        values = [f.detach().permute(0, 2, 3, 1).contiguous() for f in reversed(list(matrix.factors))]
        operator, columns = butterfly.ksm(values), x.T.contiguous()
        torch.testing.assert_close((operator @ columns).T, matrix(x), rtol=1e-3, atol=1e-3)
        found["lazylinop ksm"] = lambda: operator @ columns
    except ImportError:
        pass
    n = matrix.in_features
    if n == matrix.out_features and n & (n - 1) == 0:
        try:
            structured: Any = importlib.import_module("torch_structured")
            layer = structured.Butterfly(n, n, bias=False, nblocks=1)  # B B*, in radix 2
            found["torch-structured"] = lambda: layer(x)
        except ImportError:
            pass
    return found


def limits() -> dict[str, float]:
    """What one core can do: float32 GFLOP/s in registers, GB/s read from blocks of the sizes given."""
    from ksurgeon.kernels.cpu.native import library

    native, best = library(), {"GFLOP/s": 0.0}
    for _ in range(30):
        start = perf_counter()
        done = native.ks_spin(20_000)
        best["GFLOP/s"] = max(best["GFLOP/s"], done / (perf_counter() - start) / 1e9)
    for kib in (512, 1024, 4096, 32768):
        data, times, repeats = torch.ones(kib * 256), [], max(1, 2048 // kib)
        for _ in range(30):
            start = perf_counter()
            for _ in range(repeats):
                native.ks_read(data.data_ptr(), data.numel())
            times.append((perf_counter() - start) / repeats)
        best[f"GB/s from {kib} KiB"] = kib * 1024 / min(times) / 1e9
    return best


def merged_weights(matrix: KMatrix, rows: int) -> int:
    """Weights of the merged chain, which is also its number of multiplications per vector."""
    if chosen_backend() != "cpu":
        return matrix.multiplications
    from ksurgeon.kernels.cpu.pack import find_pack

    factors = list(matrix.factors)
    return sum(a * d * b * c for a, d, b, c in find_pack(factors).rows(factors, rows).shapes)


def linear(inputs: int, outputs: int, rows: int, seconds: float, peak: float) -> dict[str, Any]:
    layer, dense, x = KLinear(inputs, outputs), nn.Linear(inputs, outputs), torch.randn(rows, inputs)
    calls: dict[str, Call] = {"KLinear": lambda: layer(x), "nn.Linear": lambda: dense(x)}
    wide = monarch(layer.matrix)
    with torch.inference_mode():
        torch.testing.assert_close(wide(x), layer.matrix(x), rtol=1e-3, atol=1e-3)
        calls["batched Monarch"] = lambda: wide(x)
        calls |= peers(layer.matrix, x)
        times = measure(calls, seconds)
        weights = merged_weights(layer.matrix, rows)
    ours = times["KLinear"]["median"]
    return {
        "case": f"{inputs}→{outputs}",
        "rows": rows,
        "us": times,
        "ratios": {name: taken["median"] / ours for name, taken in times.items() if name != "KLinear"},
        "wanted": WANTED.get((inputs, outputs, rows)),
        "of_peak": 2e-3 * weights * rows / ours / peak if peak else None,
        "weights_GB_per_s": 4e-3 * weights / ours if rows == 1 else None,
    }


def training(n: int, rows: int, seconds: float) -> dict[str, Any]:
    x, g = torch.randn(rows, n, requires_grad=True), torch.randn(rows, n)

    def step(layer: nn.Module) -> Call:
        optimiser = torch.optim.SGD(layer.parameters(), lr=1e-6)

        def call() -> None:
            x.grad = None
            optimiser.zero_grad()
            layer(x).backward(g)
            optimiser.step()

        return call

    times = measure({"KLinear": step(KLinear(n, n)), "nn.Linear": step(nn.Linear(n, n))}, seconds)
    return compared(f"training step {n}", rows, times, 4)


def convolution(
    inputs: int, outputs: int, size: int, batch: int, last: bool, seconds: float
) -> dict[str, Any]:
    layer, dense = KPointwiseConv(inputs, outputs), nn.Conv2d(inputs, outputs, 1)
    x = torch.randn(batch, inputs, size, size)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
        dense = dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        times = measure({"KPointwiseConv": lambda: layer(x), "nn.Conv2d": lambda: dense(x)}, seconds)
    case = f"conv {inputs}→{outputs}, {size}x{size}" + (", channels last" if last else "")
    return compared(case, batch, times, 3 if inputs == outputs else 6)


def shuffle(channels: int, size: int, seconds: float) -> dict[str, Any]:
    x, layer = torch.randn(1, channels, size, size), KChannelShuffle(channels, 2)
    learned = KMatrix(channels, channels, structure=layer.matrix.structure)

    def original() -> Tensor:
        return x.view(1, 2, channels // 2, size, size).transpose(1, 2).contiguous().view(x.shape)

    assert shuffle_permutation(channels, 2) == layer.permutation
    calls: dict[str, Call] = {
        "KChannelShuffle": lambda: layer(x),
        "shuffle": original,
        "K-matrix after training": lambda: learned(x, 1),
    }
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), original())
        times = measure(calls, seconds)
    return compared(f"shuffle {channels}", 1, times, 1 / 3)


def compared(case: str, rows: int, times: dict[str, dict[str, float]], wanted: float) -> dict[str, Any]:
    ours, *others = times
    ratios = {name: times[name]["median"] / times[ours]["median"] for name in others}
    return {"case": case, "rows": rows, "us": times, "ratios": ratios, "wanted": wanted}


def cells(row: dict[str, Any]) -> list[str]:
    ours = next(iter(row["us"].values()))
    ratios = ", ".join(f"{name} {ratio:.2f}×" for name, ratio in row["ratios"].items())
    part, bandwidth = row.get("of_peak"), row.get("weights_GB_per_s")
    return [
        row["case"],
        str(row["rows"]),
        f"{ours['median']:.1f}",
        f"{ours['low']:.1f}–{ours['high']:.1f}",
        ratios,
        f"{row['wanted']:.2g}×" if row["wanted"] else "",
        f"{part:.0%}" if part and row["rows"] > 1 else "",
        f"{bandwidth:.0f}" if bandwidth else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="per candidate and shape")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    seconds = arguments.seconds
    bounds = limits() if cpu.is_available() else {}
    peak = bounds.get("GFLOP/s", 0.0) * arguments.threads
    cases: list[Callable[[], dict[str, Any]]] = []
    if "linear" in arguments.only:
        cases += [lambda s=s, r=r: linear(*s, r, seconds, peak) for s in SIZES for r in arguments.rows]
    if "training" in arguments.only:
        cases.append(lambda: training(1024, 256, seconds))
    if "convolution" in arguments.only:
        cases += [lambda c=c, t=t: convolution(*c, t, seconds) for c in CONVOLUTIONS for t in (False, True)]
    if "shuffle" in arguments.only:
        cases += [lambda c=c, s=s: shuffle(c, s, seconds) for c, s in ((116, 28), (232, 14), (464, 7))]
    table = Table(title=f"{arguments.threads} thread(s), medians in µs", box=None)
    for column in ("case", "rows", "µs", "spread", "faster than", "wanted", "of peak", "weights GB/s"):
        table.add_column(column, justify="left" if column in ("case", "faster than") else "right")
    results = []
    for case in cases:
        results.append(case())
        table.add_row(*cells(results[-1]))
        print("  ".join(cells(results[-1])), flush=True)
    Console(width=160).print(table)
    print("one core:", ", ".join(f"{value:.0f} {name}" for name, value in bounds.items()))
    if arguments.json:
        setting = {
            "torch": torch.__version__,
            "threads": arguments.threads,
            "machine": platform.machine(),
            "backend": chosen_backend(),
            "instruction_set": cpu.instruction_set() if cpu.is_available() else None,
            "limits": bounds,
        }
        arguments.json.write_text(json.dumps({"setting": setting, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
