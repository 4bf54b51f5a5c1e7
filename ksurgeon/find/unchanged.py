"""A model that is run to look at it keeps its counters, buffers and caches as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ksurgeon.find.attributes import Attributes
from ksurgeon.find.inputs import evaluating

__all__ = ["example_run"]

# What surgery and hooks change, and put back themselves.
_IGNORED = frozenset(vars(nn.Module())) - {"_buffers"}


@contextmanager
def example_run(model: nn.Module) -> Iterator[None]:
    """``evaluating``, and afterwards buffers and attributes of the modules are what they were.

    Tensors and containers that are attributes get their contents back; what changes deeper inside other
    objects is not seen.
    """
    attributes = Attributes(model, _IGNORED)
    tensors = [(tensor, tensor.detach().clone()) for tensor in _tensors(model)]
    try:
        with evaluating(model):
            yield
    finally:
        attributes.restore()
        with torch.no_grad():
            for tensor, before in tensors:
                if tensor.shape == before.shape and not torch.equal(tensor, before):
                    tensor.copy_(before)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Buffers, and tensors that are plain attributes."""
    for module in model.modules():
        for value in (*module._buffers.values(), *vars(module).values()):
            plain = type(value) is Tensor and value.layout is torch.strided and not value.is_nested
            if plain and not (value.is_meta or value.is_inference()):
                yield value
