"""The reference backend: plain PyTorch, runs everywhere, defines the truth."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["apply_chain", "apply_factor"]


def apply_factor(columns: Tensor, factor: Tensor) -> Tensor:
    """Apply one factor ``(a, d, b, c)`` to the columns of a matrix ``(a·c·d, m)``; gives ``(a·b·d, m)``.

    Vectors as columns keep every operand of the batched product contiguous in its last dimension,
    so that the strides of the pattern cost no permutation.
    """
    a, d, b, c = factor.shape
    blocks = columns.view(a, c, d, -1) if columns.numel() else columns.reshape(a, c, d, columns.shape[1])
    return torch.matmul(factor, blocks.transpose(1, 2)).transpose(1, 2).reshape(a * b * d, columns.shape[1])


def apply_chain(x: Tensor, factors: Sequence[Tensor], dim: int, bias: Tensor | None = None) -> Tensor:
    """Apply ``factors`` in order to the vectors along dimension ``dim`` of ``x``, then add the bias."""
    moved = x.movedim(dim, 0)
    if moved.numel():
        columns = moved.reshape(moved.shape[0], -1)
    else:
        columns = moved.flatten(1) if moved.dim() > 1 else moved[:, None]
    for factor in factors:
        columns = apply_factor(columns, factor)
    if bias is not None:
        columns = columns + bias.to(columns.dtype)[:, None]
    return columns.view(columns.shape[0], *moved.shape[1:]).movedim(0, dim)
