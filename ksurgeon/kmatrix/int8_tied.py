"""A dense layer whose weight is tied to an embedding, multiplied by an int8 copy of it."""

import torch
from torch import Tensor, nn

from ksurgeon.kernels.int8 import linear_by_copy

__all__ = ["TiedInt8Linear"]

is_compiling = torch.compiler.is_compiling


class TiedInt8Linear(nn.Linear):
    """``nn.Linear`` with the same parameters, which stay tied.

    Eager inference on a CPU multiplies by a copy of the weight in int8, one scale for each output, with
    vectors quantized as they come; the copy is made at the first such call and anew when the weight changes,
    and is no part of the state. Everything else is what ``nn.Linear`` does. A vector with an entry that is
    not finite gives NaN everywhere.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map the last dimension of ``input`` from ``in_features`` to ``out_features``."""
        y = None if is_compiling() else linear_by_copy(input, self.weight, self.bias)
        return super().forward(input) if y is None else y
