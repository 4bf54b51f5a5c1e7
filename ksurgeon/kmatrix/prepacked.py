"""A dense linear layer that the kernels multiply by where there are few rows."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ksurgeon.kernels import at_once, few_rows

__all__ = ["MOST_ROWS", "PrepackedLinear"]

# The weight of each layer as a factor, which shares its memory and its version. It is no attribute, or a copy
# of the module would have a copy of it.
_FACTORS: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
MOST_ROWS = 8
"""Rows of the input up to which the kernels are faster."""

is_compiling, is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled


class PrepackedLinear(nn.Linear):
    """``nn.Linear`` with the same parameters, which may be tied to others.

    Eager inference on a CPU with at most 8 rows, as in decoding, is a product of the kernels with a packed
    copy of the weight, which is made at the first such call and anew when the weight changes. Everything else
    is what ``nn.Linear`` does.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map the last dimension of ``input`` from ``in_features`` to ``out_features``."""
        if not is_compiling() and not is_grad_enabled() and input.numel() <= MOST_ROWS * self.in_features:
            weight, bias = self.weight, self.bias
            factor = _FACTORS.get(self)
            if factor is None or factor.data_ptr() != weight.data_ptr() or factor.shape[2:] != weight.shape:
                factor = _FACTORS[self] = weight.detach()[None, None]
            if weight.is_contiguous():
                y = at_once(input, (factor,), bias, -1)
                if y is None:
                    y = few_rows(input, (factor,), bias)
                if y is not None:
                    return y
        return super().forward(input)
