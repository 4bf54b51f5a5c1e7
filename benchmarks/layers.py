"""Single layers through the public modules under ``torch.inference_mode()``, Python's share included."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import peers
from benchmarks.results import PEAK, READ
from benchmarks.turns import Call, compared, measure
from ksurgeon import quantize
from ksurgeon.kernels import chosen_backend
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.structures import Structure

__all__ = ["CONVOLUTIONS", "ROWS", "SIZES", "bfloat16", "convolution", "fused", "int8", "linear", "threads"]

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
_WANTED = {
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
_PEERS = {
    "batched Monarch": 3,
    "lazylinop ksm": 3,
    "lazylinop ksm, merged": 3,
    "torch-structured": 10,
    "torch-structured, padded": 10,
}


def merged_weights(layer: KLinear, rows: int) -> int:
    """Weights of the merged chain, which is also its number of multiplications per vector."""
    from ksurgeon.kernels.cpu.pack import find_pack

    factors = list(layer.matrix.factors)
    steps = find_pack(factors).rows(factors, rows).steps
    return sum(step.a * step.d * step.b * step.c for step in steps)


def _spin() -> tuple[Call, int]:
    """A candidate that only multiplies and adds in registers, and how many of both it does."""
    from ksurgeon.kernels.cpu.native import library

    native = library()
    return (lambda: native.ks_spin(20_000)), int(native.ks_spin(20_000))


def _reading(weights: int) -> Call:
    """A candidate that reads as many float32 as there are weights."""
    from ksurgeon.kernels.cpu.native import library

    native, data = library(), torch.ones(weights)
    return lambda: native.ks_read(data.data_ptr(), weights)


def linear(inputs: int, outputs: int, rows: int, seconds: float) -> dict[str, Any]:
    """A dense layer's K-matrix (width 1, expansion 1) against the dense layer and the peers.

    Two candidates are limits: the time that the merged chain's multiplications would take at the float32
    peak of one core, and for one row the time to read its weights once from where they lie.
    """
    layer, dense, x = KLinear(inputs, outputs), nn.Linear(inputs, outputs), torch.randn(rows, inputs)
    ours, wanted = chosen_backend() == "cpu", dict[str, float]()
    with torch.inference_mode():
        calls: dict[str, Call] = {"KLinear": lambda: layer(x), "nn.Linear": lambda: dense(x)}
        calls |= peers(layer, x)
        for _ in range(5):  # beyond the calls that tuning waits for
            layer(x)
        weights = merged_weights(layer, rows) if ours else layer.matrix.multiplications
        if ours:
            calls[PEAK], done = _spin()
        if ours and rows == 1:
            calls[READ] = _reading(weights)
        times = measure(calls, seconds)
    if ours:
        times[PEAK] = {name: time * 2 * weights * rows / done for name, time in times[PEAK].items()}
    if min(inputs, outputs) >= 512:
        wanted |= _PEERS
        if rows >= 256:
            wanted[PEAK] = 0.6
    if rows == 1 and min(inputs, outputs) >= 2048:
        wanted[READ] = 0.6
    if (inputs, outputs, rows) in _WANTED:
        wanted["nn.Linear"] = _WANTED[inputs, outputs, rows]
    row = compared("linear", f"{inputs}→{outputs}", rows, times, wanted)
    return row | {"flop": 2 * weights * rows, "bytes": 4 * (weights + rows * (inputs + outputs))}


def bfloat16(inputs: int, outputs: int, rows: int, seconds: float) -> list[dict[str, Any]]:
    """A layer in bfloat16 and in float32, beside a dense one of the same matrix in bfloat16, and how far the
    two in bfloat16 are from float64."""
    layer, x = KLinear(inputs, outputs, bias=False), torch.randn(rows, inputs)
    half, halves = copy.deepcopy(layer).bfloat16(), x.bfloat16()
    dense = nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16)
    exact = copy.deepcopy(half).double()
    with torch.inference_mode():
        dense.weight.copy_(exact.weight)
        calls: dict[str, Call] = {
            "KLinear, bfloat16": lambda: half(halves),
            "KLinear, float32": lambda: layer(x),
            "nn.Linear, bfloat16": lambda: dense(halves),
        }
        for _ in range(5):
            half(halves), layer(x)
        want = halves.double() @ exact.weight.mT
        errors = {
            name: {"median": float((call().double() - want).norm() / want.norm())}  # type: ignore[attr-defined]
            for name, call in calls.items()
            if "bfloat16" in name
        }
        times = measure(calls, seconds)
    wanted = {"KLinear, float32": 1.8} if inputs == outputs >= 512 and rows > 1 else {}
    case, (ours, other) = f"{inputs}→{outputs}", errors
    return [
        compared("bfloat16", case, rows, times, wanted),
        {
            "part": "relative error of bfloat16",
            "case": case,
            "rows": rows,
            "error": errors,
            "ratios": {other: errors[other]["median"] / errors[ours]["median"]},
            "wanted": {},
        },
    ]


def int8(inputs: int, outputs: int, rows: int, structure: Structure, seconds: float) -> list[dict[str, Any]]:
    """A layer in int8 and in float32, beside a dense one of the same matrix in our int8 and in PyTorch's, and
    how far those in int8 are from float64."""
    layer, x = KLinear(inputs, outputs, False, structure=structure), torch.randn(rows, inputs)
    dense = nn.Linear(inputs, outputs, bias=False)
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
    want = x.double() @ layer.weight.detach().double().mT
    ours = nn.ModuleList([copy.deepcopy(layer), copy.deepcopy(dense)])
    quantize(ours)
    theirs = torch.ao.quantization.quantize_dynamic(nn.Sequential(dense), {nn.Linear}, dtype=torch.qint8)
    calls: dict[str, Call] = {
        "KLinear, int8": lambda: ours[0](x),
        "KLinear, float32": lambda: layer(x),
        "nn.Linear quantized": lambda: ours[1](x),
        "nn.Linear, PyTorch's int8": lambda: theirs(x),
    }
    with torch.inference_mode():
        for _ in range(5):
            for call in calls.values():
                call()
        errors = {
            name: {"median": float((call().double() - want).norm() / want.norm())}  # type: ignore[attr-defined]
            for name, call in calls.items()
            if name != "KLinear, float32"
        }
        times = measure(calls, seconds)
    wanted = {"KLinear, float32": 3.0} if inputs == outputs >= 512 and rows > 1 else {}
    case, first = f"{inputs}→{outputs}, {structure}", errors["KLinear, int8"]["median"]
    return [
        compared("int8", case, rows, times, wanted),
        {
            "part": "relative error of int8",
            "case": case,
            "rows": rows,
            "error": errors,
            "ratios": {name: error["median"] / first for name, error in errors.items()},
            "wanted": {},
        },
    ]


def fused(inputs: int, outputs: int, rows: int, seconds: float) -> dict[str, Any]:
    """A product that ends with GELU, against a K-layer and a dense one with ``nn.GELU`` behind them."""
    layer, dense, x = KLinear(inputs, outputs), nn.Linear(inputs, outputs), torch.randn(rows, inputs)
    gelu = nn.GELU()

    def whole() -> Tensor:
        return layer.matrix.affine(x, -1, layer.bias, "gelu")

    calls: dict[str, Call] = {
        "KLinear with GELU": whole,
        "KLinear, nn.GELU": lambda: gelu(layer(x)),
        "nn.Linear, nn.GELU": lambda: gelu(dense(x)),
    }
    with torch.inference_mode():
        torch.testing.assert_close(whole(), gelu(layer(x)), rtol=1e-4, atol=1e-5)
        times = measure(calls, seconds)
    return compared("fused activation", f"{inputs}→{outputs}", rows, times, {"KLinear, nn.GELU": 1})


def threads(inputs: int, outputs: int, rows: int, seconds: float) -> dict[str, Any]:
    """One layer with two threads against one."""
    layer, x, now = KLinear(inputs, outputs), torch.randn(rows, inputs), torch.get_num_threads()
    names = {"two threads": 2, "one thread": 1}
    with torch.inference_mode():
        try:
            times = measure(
                dict.fromkeys(names, lambda: layer(x)),
                seconds,
                {name: lambda n=n: torch.set_num_threads(n) for name, n in names.items()},  # type: ignore[misc]
            )
        finally:
            torch.set_num_threads(now)
    wanted = {"one thread": 1.7} if rows >= 256 else {}
    return compared("threads", f"{inputs}→{outputs}", rows, times, wanted)


def convolution(
    inputs: int, outputs: int, size: int, batch: int, last: bool, seconds: float
) -> dict[str, Any]:
    """A pointwise convolution on images of ``size`` × ``size``."""
    layer, dense = KPointwiseConv(inputs, outputs), nn.Conv2d(inputs, outputs, 1)
    x: Tensor = torch.randn(batch, inputs, size, size)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
        dense = dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        times = measure({"KPointwiseConv": lambda: layer(x), "nn.Conv2d": lambda: dense(x)}, seconds)
    case = f"{inputs}→{outputs}, {size}×{size}" + (", channels last" if last else "")
    return compared("convolution", case, batch, times, {"nn.Conv2d": 3 if inputs == outputs else 6})
