"""Times on a GPU: between CUDA events, on inputs that the cache does not hold."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.results import summary

__all__ = ["captured", "eager", "rotated"]

_WARM_UP, _TIMES = 3, 15
_MOST = 32


def rotated(make: Callable[[], Tensor], cache: int) -> list[Tensor]:
    """Inputs of the same kind, together three times the size of the cache, two at least."""
    first = make()
    count = min(max(-(-3 * cache // max(first.nbytes, 1)), 2), _MOST)
    return [first, *(make() for _ in range(count - 1))]


def _microseconds(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def eager(call: Callable[[Tensor], object], inputs: Sequence[Tensor]) -> dict[str, float]:
    """Microseconds of a call as a program makes it, starts of kernels included."""
    for position in range(_WARM_UP):
        call(inputs[position % len(inputs)])
    torch.cuda.synchronize()
    chosen = [inputs[position % len(inputs)] for position in range(_TIMES)]
    return summary([_microseconds(partial(call, x)) for x in chosen])


def captured(call: Callable[[Tensor], object], inputs: Sequence[Tensor]) -> dict[str, float]:
    """Microseconds of a call inside a CUDA graph: those of the device alone."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for position in range(_WARM_UP):
            call(inputs[position % len(inputs)])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x in inputs:
            call(x)
    graph.replay()
    torch.cuda.synchronize()
    return summary([_microseconds(graph.replay) / len(inputs) for _ in range(_TIMES)])
