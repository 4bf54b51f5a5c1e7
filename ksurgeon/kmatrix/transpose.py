"""The transpose of a structured matrix."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ksurgeon.kmatrix.structured import StructuredMatrix

__all__ = ["Transpose"]


@dataclass(frozen=True)
class Transpose:
    """A structured matrix, transposed: a view of its parameters, through which gradients reach them.

    Attributes:
        T: the matrix itself.
    """

    T: "StructuredMatrix"

    @property
    def shape(self) -> torch.Size:
        """``(in_features, out_features)`` of the matrix itself."""
        return torch.Size(reversed(self.T.shape))

    def __matmul__(self, x: Tensor) -> Tensor:
        """Product with a vector, a matrix or a batch of matrices ``(…, out_features, n)``."""
        return self.T.transposed(x, -1 if x.dim() == 1 else -2) if isinstance(x, Tensor) else NotImplemented

    def __rmatmul__(self, x: Tensor) -> Tensor:
        """``x @ K.T`` of vectors ``(…, in_features)``."""
        return self.T(x) if isinstance(x, Tensor) else NotImplemented

    def to_dense(self) -> Tensor:
        """The matrix ``(in_features, out_features)``, differentiable in the parameters."""
        return self.T.to_dense().T
