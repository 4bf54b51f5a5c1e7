"""transformers' dense layer that the kernels multiply by where there are few rows; imports transformers."""

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ksurgeon.kernels import at_once, few_rows
from ksurgeon.kmatrix.prepacked import MOST_ROWS
from ksurgeon.patterns.transposed import Transposed

__all__ = ["Conv1D", "PrepackedConv1D"]

is_compiling, is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled


class PrepackedConv1D(Conv1D):  # type: ignore[misc]
    """transformers' ``Conv1D``, the dense layer of GPT-2, as ``PrepackedLinear`` is ``nn.Linear``; its weight
    is ``(in_features, out_features)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension of ``x`` from ``nx`` to ``nf``."""
        if not is_compiling() and not is_grad_enabled() and x.numel() <= MOST_ROWS * self.nx:
            weight, bias = self.weight, self.bias
            if weight.dim() == 2 and weight.is_contiguous():
                factors = Transposed(weight)
                y = at_once(x, factors, bias, -1)
                if y is None:
                    y = few_rows(x, factors, bias)
                if y is not None:
                    return y
        return super().forward(x)
