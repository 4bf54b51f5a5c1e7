"""Weights as int8."""

import torch
from torch import Tensor

__all__ = ["LONGEST", "rounded"]

_LARGEST = 127
LONGEST = (2**31 - 1) // (255 * _LARGEST)
"""Inputs of a block whose products are sure to add up to a number of 32 bits."""


@torch.no_grad()
def rounded(factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A factor ``(a, d, b, c)`` as int8 values from -127 to 127, and scales ``(a, d, b)`` of that dtype: each
    output of a block is rounded by its largest weight."""
    scale = (factor.abs().amax(-1) / _LARGEST).to(dtype)
    steps = torch.where(scale > 0, scale, 1).float().unsqueeze(-1)
    return (factor.float() / steps).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale
