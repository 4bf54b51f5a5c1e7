"""Measure a converted model beside the original: multiplications and latency, in one run."""

import platform
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ksurgeon.find.inputs import ExampleInputs, as_call, call_model, evaluating, tensors_of
from ksurgeon.kernels import chosen_backend
from ksurgeon.surgery.convert import Conversion
from ksurgeon.surgery.record import Outcome

__all__ = ["measure"]

_ROUNDS, _SECONDS = 15, 6.0


def measure(conversion: Conversion, example_inputs: ExampleInputs) -> Outcome:
    """The conversion's outcome with multiplications and latency filled in.

    Original and converted model are run in turns, so that whatever else the machine does hits both.
    """
    outcome = conversion.record.outcome
    assert outcome is not None
    model = conversion.model
    tensors = tensors_of(as_call(example_inputs))
    batch = tensors[0].shape[0] if tensors and tensors[0].dim() else 1
    with conversion.undone():
        before_count = _multiplications(model, example_inputs)
    after_count = _multiplications(model, example_inputs)
    before: list[float] = []
    after: list[float] = []
    begin = time.perf_counter()
    while len(before) < _ROUNDS and (len(before) < 3 or time.perf_counter() - begin < _SECONDS):
        with conversion.undone():
            before.append(_milliseconds(model, example_inputs))
        after.append(_milliseconds(model, example_inputs))
    return outcome.model_copy(
        update={
            "multiplications": (before_count // batch, after_count // batch),
            "latency": (median(before), median(after)),
            "latency_quartiles": (_quartiles(before), _quartiles(after)),
            "batch": batch,
            "threads": torch.get_num_threads(),
            "device": _device_name(tensors[0].device if tensors else torch.device("cpu")),
            "backend": chosen_backend(),
        }
    )


def _multiplications(model: nn.Module, example_inputs: ExampleInputs) -> int:
    known: dict[Any, Any] = {torch.ops.ksurgeon.chain: _operations_of_a_chain}
    with evaluating(model), FlopCounterMode(display=False, custom_mapping=known) as counter:
        call_model(model, example_inputs)
    return counter.get_total_flops() // 2


def _operations_of_a_chain(
    x: Sequence[int], factors: Sequence[Sequence[int]], bias: object, dim: int, **_: object
) -> int:
    """Multiplications and additions of the operator ``ksurgeon::chain``, from the shapes of its arguments."""
    return 2 * prod(x) // x[dim] * sum(map(prod, factors))


def _milliseconds(model: nn.Module, example_inputs: ExampleInputs) -> float:
    with evaluating(model), torch.inference_mode():
        call_model(model, example_inputs)
        _wait()
        begin = time.perf_counter()
        call_model(model, example_inputs)
        _wait()
        return 1e3 * (time.perf_counter() - begin)


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = quantiles(values, n=4)
    return low, high


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
