"""What every structured matrix is: a module that stands for a dense one."""

import torch
from torch import Tensor, nn

from ksurgeon.errors import ExportError, StructureError
from ksurgeon.kernels.activation import activate
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.kmatrix.transpose import Transpose
from ksurgeon.late import late
from ksurgeon.patterns.pattern import axis_of

__all__ = ["StructuredMatrix"]


class StructuredMatrix(nn.Module):
    """An ``out_features × in_features`` matrix held by fewer numbers.

    ``KMatrix`` is the one that holds a chain of factors. A structure of your own that is none makes a
    subclass of this in its ``new_matrix``, whose parameters are what is trained, saved and loaded; it needs
    ``forward``, and may have a better ``fit_``.

    Args:
        in_features, out_features: of all groups together.
        structure: what it was made from.
        groups: the matrix is block-diagonal with so many of them.
    """

    def __init__(self, in_features: int, out_features: int, structure: Structure, groups: int = 1) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.structure, self.groups = structure, groups

    @property
    def shape(self) -> torch.Size:
        """``(out_features, in_features)``, as of the dense matrix."""
        return torch.Size((self.out_features, self.in_features))

    @property
    def T(self) -> Transpose:
        """The transposed matrix, a view of the same parameters."""
        return Transpose(self)

    def __matmul__(self, x: Tensor) -> Tensor:
        """``K @ x`` of a vector, a matrix or a batch of matrices ``(…, in_features, n)``."""
        return self(x, -1 if x.dim() == 1 else -2) if isinstance(x, Tensor) else NotImplemented

    def __rmatmul__(self, x: Tensor) -> Tensor:
        """``x @ K`` of vectors ``(…, out_features)``."""
        return self.transposed(x) if isinstance(x, Tensor) else NotImplemented

    @property
    def like(self) -> Tensor:
        """A tensor of the parameters' dtype and on their device."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                return tensor
        raise StructureError(f"{type(self).__name__} holds no tensor of floating or complex numbers")

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` calls first.

        Raises:
            ExportError: always.
        """
        raise ExportError(
            "torch.jit.script cannot compile K-matrices, whose kernels are chosen while they run; export the "
            "model with ksurgeon.export_model (ONNX, torch.export or AOTInductor), or use torch.compile"
        )

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Multiply the vectors along dimension ``dim`` of ``x`` by the matrix."""
        raise TypeError(f"{type(self).__name__} has no forward(x, dim), which a structured matrix needs")

    def affine(
        self, x: Tensor, dim: int = -1, bias: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Multiply the vectors along dimension ``dim`` of ``x`` by the matrix, add ``bias``, and activate
        them as ``kernels.apply_chain`` does."""
        if not x.dim() or x.shape[axis_of(dim, x.dim())] != self.in_features:
            raise ValueError(
                f"expected {self.in_features} entries along dimension {dim}, got a tensor of shape "
                f"{tuple(x.shape)}"
            )
        y = self(x, dim)
        if bias is not None:
            y = y + bias.to(y.dtype).view(-1, *[1] * (y.dim() - dim % y.dim() - 1))
        return activate(y, activation)

    def transposed(self, x: Tensor, dim: int = -1) -> Tensor:
        """Multiply by the transposed matrix."""
        return (x.movedim(dim, -1) @ self.to_dense()).movedim(-1, dim)

    def to_dense(self) -> Tensor:
        """The matrix, ``(out_features, in_features)``, differentiable in the parameters."""
        like = self.like
        y: Tensor = self(torch.eye(self.in_features, dtype=like.dtype, device=like.device), 0)
        return y

    def fit_(
        self,
        weight: Tensor,
        *,
        moment: Tensor | None = None,
        slopes: Tensor | None = None,
        steps: int | None = None,
    ) -> None:
        """Bring the matrix near to ``weight``, from the values there are; by L-BFGS without a better way.

        Args:
            weight: ``(out_features, in_features)``.
            moment: second moment of each group's inputs, ``(groups, n, n)``, positive semidefinite, in double
                precision and of any scale; the fit is then to the outputs on such inputs.
            slopes: R of each group, ``(groups, m, m)``: errors of the outputs are measured after R.
            steps: most iterations.
        """
        late("descend_")(self, weight, moment, slopes, steps)
