"""Outputs that are the same but for rounding.

PyTorch's own products, convolutions and Fourier transforms give other bits where memory lies otherwise: in
another model, a copy, another process. Equal bits are asked of stored tensors and of our own kernels alone.
"""

import torch
from torch import Tensor

__all__ = ["near"]


def near(got: Tensor, want: Tensor) -> bool:
    """Whether two tensors differ by no more than a thousand roundings of the largest entry."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if not want.numel() or not (want.is_floating_point() or want.is_complex()):
        return torch.equal(got, want)
    largest = float(want.detach().abs().max())
    return float((got - want).detach().abs().max()) <= 1e3 * torch.finfo(want.dtype).eps * largest
