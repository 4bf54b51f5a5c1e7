"""Weights from a file, and random numbers that leave the caller's alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ksurgeon.errors import WeightsError

__all__ = ["load_weights", "seeded"]

_SHOWN = 3


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, random numbers on the CPU start from ``seed``; outside, they go on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill the model with the tensors of a safetensors file, which must be the model's own, all of them.

    Of tensors that share their memory (tied weights) one suffices. The model keeps its dtypes.

    Raises:
        WeightsError: the file is missing or damaged, its names or shapes are not the model's, or it has
            entries that are not finite; the model is then as it was.
    """
    try:
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise WeightsError(f"{file}: no such file; weights are auto, pretrained, random or a file") from error
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file}: not a whole safetensors file: {error}") from error
    own = model.state_dict()
    problems = _differences(own, tensors)
    if problems:
        raise WeightsError(f"{file} does not fit {type(model).__name__}: {'; '.join(problems)}")
    wild = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if wild:
        raise WeightsError(f"{file}: {_list('tensors with entries that are NaN or infinite', wild)}")
    model.load_state_dict(tensors, strict=False)


def _differences(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    there = {_memory(own[name]) for name in tensors if name in own}
    missing = [name for name in own if name not in tensors and _memory(own[name]) not in there]
    unexpected = [name for name in tensors if name not in own]
    mismatched = [
        f"{name} is {list(tensors[name].shape)}, expected {list(own[name].shape)}"
        for name in tensors
        if name in own and own[name].shape != tensors[name].shape
    ]
    labels = ("missing tensors", "unexpected tensors", "wrong shapes")
    found = zip(labels, (missing, unexpected, mismatched), strict=True)
    return [_list(label, names) for label, names in found if names]


def _memory(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride()


def _list(label: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {label} ({', '.join(names[:_SHOWN])}{more})"
