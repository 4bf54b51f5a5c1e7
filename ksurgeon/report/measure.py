"""Measure a converted model beside the original: multiplications and latency, in one run."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ksurgeon.find.inputs import ExampleInputs, as_call, call_model, tensors_of
from ksurgeon.find.unchanged import example_run
from ksurgeon.kernels import chosen_backend
from ksurgeon.surgery.conversion import Conversion
from ksurgeon.surgery.record import Outcome

__all__ = ["clock", "device_name", "in_turns", "measure", "milliseconds", "multiplications", "quartiles"]

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
        before_count = multiplications(model, example_inputs)
    after_count = multiplications(model, example_inputs)

    def original() -> float:
        with conversion.undone():
            return milliseconds(model, example_inputs)

    before, after = in_turns(original, lambda: milliseconds(model, example_inputs))
    return outcome.model_copy(
        update={
            "multiplications": (before_count // batch, after_count // batch),
            "latency": (median(before), median(after)),
            "latency_quartiles": (quartiles(before), quartiles(after)),
            "batch": batch,
            "threads": torch.get_num_threads(),
            "device": device_name(tensors[0].device if tensors else torch.device("cpu")),
            "backend": chosen_backend(tensors[0].device if tensors else None),
        }
    )


def in_turns(first: Callable[[], float], second: Callable[[], float]) -> tuple[list[float], list[float]]:
    """What two measurements give, one after the other, three to fifteen times or for some seconds."""
    one: list[float] = []
    other: list[float] = []
    begin = time.perf_counter()
    while len(one) < _ROUNDS and (len(one) < 3 or time.perf_counter() - begin < _SECONDS):
        one.append(first())
        other.append(second())
    return one, other


def clock(call: Callable[[], object]) -> float:
    """Milliseconds that a call takes, after one that is not measured."""
    call()
    _wait()
    begin = time.perf_counter()
    call()
    _wait()
    return 1e3 * (time.perf_counter() - begin)


def multiplications(model: nn.Module, example_inputs: ExampleInputs) -> int:
    """Multiplications of one call of the model."""
    with example_run(model), FlopCounterMode(display=False) as counter:
        call_model(model, example_inputs)
    return counter.get_total_flops() // 2


def milliseconds(model: nn.Module, example_inputs: ExampleInputs) -> float:
    """Time of one call of the model, after one that is not measured."""
    with example_run(model), torch.inference_mode():
        return clock(lambda: call_model(model, example_inputs))


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def quartiles(values: list[float]) -> tuple[float, float]:
    """Lower and upper quartile."""
    low, _, high = quantiles(values, n=4)
    return low, high


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
