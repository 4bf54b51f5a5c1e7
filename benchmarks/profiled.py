"""Where the time of a translation goes: the decoder's linear layers, the head, the encoder, and the rest."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.decoding import Source, Step, greedy
from benchmarks.results import summary
from benchmarks.turns import compared

__all__ = ["profile_rows", "times_of"]

_REST = "everything else"
_ALL = "all"
_FEWEST = 3


def _part(path: str, module: nn.Module) -> str | None:
    if path == "lm_head":
        return "output head"
    if path == "model.encoder":
        return "encoder"
    if ".decoder." in f".{path}." and (isinstance(module, nn.Linear) or type(module).__name__ == "KLinear"):
        return "decoder's linear layers"
    return None


@contextmanager
def _clocks(model: nn.Module) -> Iterator[dict[str, float]]:
    """Inside, the seconds that each part of the model has taken."""
    seconds: dict[str, float] = defaultdict(float)

    def clock(part: str, module: nn.Module) -> list[Any]:
        begun = [0.0]

        def begin(*_: Any) -> None:
            begun[0] = perf_counter()

        def end(*_: Any) -> None:
            seconds[part] += perf_counter() - begun[0]

        return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]

    handles = [
        handle
        for path, module in model.named_modules()
        if (part := _part(path, module))
        for handle in clock(part, module)
    ]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def times_of(model: Any, inputs: dict[str, Tensor], tokens: int) -> dict[str, float]:
    """Microseconds of the parts in one translation, and of all of it."""
    source, step = Source(model), Step(model)
    with _clocks(model) as seconds:
        begin = perf_counter()
        greedy(source, step, model.config, inputs, tokens, torch.float32)
        seconds[_ALL] = perf_counter() - begin
    seconds[_REST] = 2 * seconds[_ALL] - sum(seconds.values())
    return {part: 1e6 * taken for part, taken in seconds.items()}


def profile_rows(
    name: str, models: Mapping[str, nn.Module], inputs: dict[str, Tensor], tokens: int, seconds: float
) -> list[dict[str, Any]]:
    """A row for each part, of models that take turns on one thread, ours first.

    Args:
        seconds: of each model.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in models}
    end = perf_counter() + seconds * len(models)
    try:
        for model in models.values():
            times_of(model, inputs, tokens)
        while perf_counter() < end or len(next(iter(found.values())).get(_ALL, ())) < _FEWEST:
            for kind, model in models.items():
                for part, taken in times_of(model, inputs, tokens).items():
                    found[kind][part].append(taken)
    finally:
        torch.set_num_threads(before)
    part_of = f"{name}, one thread, where the time goes"
    batch = len(inputs["input_ids"])
    parts = found[next(iter(models))]
    return [
        compared(part_of, part, batch, {kind: summary(times[part]) for kind, times in found.items()}, {})
        for part in sorted(parts, key=lambda part: (part in (_ALL, _REST), part == _ALL, part))
    ]
