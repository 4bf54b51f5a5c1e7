"""Low ranks that weigh both what a matrix takes and where changes of what it gives matter."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import LowRank

__all__ = ["TwoSided", "low_rank_"]

# Added to the second moment of the slopes, relative to the mean of its diagonal: directions in which no slope
# was seen still count for something.
_FLOOR = 1e-3


@dataclass(frozen=True)
class TwoSided:
    """Blocks as sums of rank-one terms of least ``‖R (K − W) L‖``, the leading ones first.

    What is left of W by the first r terms is the least that any rank r leaves (Eckart and Young, 1936, for
    ``R W L``).

    Attributes:
        values: ``(groups, k)``, falling; the square of each is what its term takes from ``‖R (K − W) L‖²``.
        columns: ``(groups, out, k)``.
        rows: ``(groups, k, in)``.
    """

    values: Tensor
    columns: Tensor
    rows: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, blocks: Tensor, root: Tensor, slopes: Tensor | None = None) -> "TwoSided":
        """Decompose blocks.

        Args:
            blocks: W, ``(groups, out, in)``.
            root: L, ``(groups or 1, in, in)``, where ``L Lᵀ`` is the second moment of the inputs.
            slopes: R, ``(groups or 1, n, out)``, where ``Rᵀ R`` is the second moment of the slopes of what
                counts along the outputs; None for the identity. A thousandth of the mean of its diagonal is
                added.
        """
        blocks, root = blocks.double(), root.double()
        back = None
        turned = blocks
        if slopes is not None:
            values, vectors = torch.linalg.eigh(slopes.mT.double() @ slopes.double())
            values = values.clamp(min=0)
            mean = values.mean(-1, keepdim=True)
            scale = (values + torch.where(mean > 0, _FLOOR * mean, 1.0)).sqrt()
            turned = scale[..., None] * (vectors.mT @ blocks)
            back = vectors / scale[..., None, :]
        left, values, _ = torch.linalg.svd(turned @ root, full_matrices=False)
        return cls(values, left if back is None else back @ left, left.mT @ turned)

    def errors(self, slopes: Tensor | None = None) -> Tensor:
        """``‖R (K − W) L‖²`` for every rank from 0 on, ``(k + 1,)``, all groups together; R as for ``of``,
        without what is added there."""
        seen = self.columns if slopes is None else slopes.double() @ self.columns
        taken = (self.values * torch.linalg.vector_norm(seen, dim=1)).square().sum(0)
        return torch.cat([taken.flip(0).cumsum(0).flip(0), taken.new_zeros(1)])


def low_rank_(matrix: KMatrix, terms: TwoSided) -> None:
    """Set a matrix of low rank to the leading terms of its blocks.

    Raises:
        StructureError: the matrix is of another structure.
    """
    if not isinstance(matrix.structure, LowRank):
        raise StructureError(f"a low rank is wanted, got {matrix.structure}")
    rank = matrix.patterns[0].b
    columns, rows = terms.columns[..., :rank], terms.rows[:, :rank]
    # Both factors get the same share of a term's size.
    ratio = (_norms(rows, 2) / _norms(columns, 1)).sqrt()
    with torch.no_grad():
        matrix.factors[0].copy_((rows / ratio[..., None])[:, None])
        matrix.factors[1].copy_((columns * ratio[:, None])[:, None])


def _norms(vectors: Tensor, dim: int) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=dim)
    return torch.where(norms > 0, norms, 1.0)
