"""How large a model is."""

from torch import nn

from ksurgeon.kmatrix.int8 import Int8Factors

__all__ = ["count_bytes", "count_parameters"]


def count_parameters(model: nn.Module) -> int:
    """Parameters, those in int8 among them, which are buffers; shared ones once."""
    quantized = [m.numel for m in model.modules() if isinstance(m, Int8Factors)]
    return sum(parameter.numel() for parameter in model.parameters()) + sum(quantized)


def count_bytes(model: nn.Module) -> int:
    """What parameters and buffers take in memory; shared ones once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
