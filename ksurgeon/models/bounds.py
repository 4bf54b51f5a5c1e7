"""A limit on the memory that is asked for while a model is built whose sizes a stranger chose."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch

from ksurgeon.errors import RecordError
from ksurgeon.torch_private import TorchDispatchMode

__all__ = ["bounded", "numel_of"]

_SPARE = 2**27  # of tensors that are made and dropped, and of buffers that are not in the state
_SPARE_TENSORS = 4096
_PASSES = 4  # how often a tensor may be made anew: tied, cast, initialised from another


@contextmanager
def bounded(numel: int, tensors: int) -> Iterator[None]:
    """Inside, no more is made than a model of ``numel`` numbers in so many tensors takes.

    Raises:
        RecordError: more are asked for; before they are allocated, where they are asked for by size.
    """
    with _Count(min(_PASSES * numel + _SPARE, _memory() // 4), _PASSES * tensors + _SPARE_TENSORS):
        yield


def numel_of(shapes: Mapping[str, Sequence[int]]) -> int:
    """Entries of tensors of these shapes together."""
    return sum(prod(shape) for shape in shapes.values())


def _memory() -> int:
    """Bytes of memory that the machine has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**34


class _Count(TorchDispatchMode):
    def __init__(self, largest: int, most: int) -> None:
        super().__init__()
        self.largest, self.made = largest, 0
        self.most, self.tensors = most, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._add(_asked_for(func.overloadpacket.__name__, args))
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() > self.largest:
            self._add(result.numel())
        return result

    def _add(self, numel: int) -> None:
        self.made += numel
        self.tensors += numel > 0
        if self.made > self.largest or self.tensors > self.most:
            raise RecordError(
                f"the source in the record makes more than {self.largest:,} numbers or {self.most:,} "
                "tensors, and its model has fewer: it is of another model"
            )


_RANGES, _SQUARES = ("arange", "linspace", "logspace", "range"), ("eye", "tril_indices", "triu_indices")


def _asked_for(name: str, args: tuple[Any, ...]) -> int:
    """Entries that an operator makes from sizes alone; of a range, no fewer than its largest number."""
    if args and isinstance(args[0], (list, tuple)) and all(isinstance(size, int) for size in args[0]):
        return prod(args[0])
    numbers = [int(abs(arg)) for arg in args if isinstance(arg, (int, float)) and abs(arg) < 2**63]
    if name in _RANGES:
        return max(numbers, default=0)
    return prod((numbers * 2)[:2]) if name in _SQUARES else 0
