"""Layers and their vectors in each layout that the kernels know, and dense products in double precision."""

from typing import Any

import torch
from torch import Tensor

from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from tests.chains import dense, drawn

__all__ = ["LAYOUTS", "exact", "layer_of", "vectors"]

LAYOUTS = ("rows", "columns", "channels last")


def layer_of(layout: str, ins: int, outs: int, **options: Any) -> KLinear | KPointwiseConv:
    return (KLinear if layout == "rows" else KPointwiseConv)(ins, outs, **options)


def vectors(layout: str, count: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``count`` rows, or images of 3 × 4 pixels."""
    if layout == "rows":
        return drawn(dtype, count, size)
    x = drawn(dtype, count, size, 3, 4)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels last" else x


def exact(layer: KLinear | KPointwiseConv | KChannelShuffle, x: Tensor) -> Tensor:
    """What the layer gives, by its dense matrix in double precision."""
    matrix = dense([factor.detach().clone() for factor in layer.matrix.factors])
    y = x.movedim(1, -1).to(matrix.dtype) @ matrix.T
    if not isinstance(layer, KChannelShuffle) and layer.bias is not None:
        y = y + layer.bias.detach()
    return y.movedim(-1, 1)
