"""Low ranks that weigh both what a matrix takes and where changes of what it gives matter."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TwoSided", "triangle"]

# Added to the second moment of the slopes, relative to the mean of its diagonal: directions in which no slope
# was seen still count for something.
_FLOOR = 1e-3


def triangle(slopes: Tensor) -> Tensor:
    """Upper triangles U, ``(…, out, out)``, for slopes R, ``(…, n, out)``; the identity for slopes of zero.

    ``Uᵀ U`` is ``Rᵀ R`` with a thousandth of the mean of its diagonal added to that; a triangle to which that
    has been added is given back.
    """
    slopes = slopes.double()
    pivots = slopes.diagonal(dim1=-2, dim2=-1)
    if slopes.shape[-2] == slopes.shape[-1] and bool((pivots > 0).all()):
        least = _FLOOR * slopes.square().sum((-2, -1)) / slopes.shape[-1]
        if bool((pivots.square().amin(-1) >= 0.99 * least).all()) and torch.equal(slopes, slopes.triu()):
            return slopes
    gram = slopes.mT @ slopes
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    gram.diagonal(dim1=-2, dim2=-1).add_(torch.where(mean > 0, _FLOOR * mean, 1.0))
    return torch.linalg.cholesky(gram).mT.contiguous()


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
                counts along the outputs; None for the identity. What is weighed with is its ``triangle``.
        """
        blocks, root = blocks.double(), root.double()
        upper = None if slopes is None else triangle(slopes)
        turned = blocks if upper is None else upper @ blocks
        left, values = _left(turned @ root)
        columns = left if upper is None else torch.linalg.solve_triangular(upper, left, upper=True)
        return cls(values, columns, left.mT @ turned)

    def errors(self, slopes: Tensor | None = None) -> Tensor:
        """``‖R (K − W) L‖²`` for every rank from 0 on, ``(k + 1,)``, all groups together; R as for ``of``,
        without what is added there."""
        seen = self.columns if slopes is None else slopes.double() @ self.columns
        taken = (self.values * torch.linalg.vector_norm(seen, dim=1)).square().sum(0)
        return torch.cat([taken.flip(0).cumsum(0).flip(0), taken.new_zeros(1)])


def _left(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors, ``(…, m, min(m, n))``, and singular values, falling. Of the smaller Gram matrix,
    many times faster than a singular value decomposition; values below 1e-8 of the first are noise."""
    basis = None
    if matrices.shape[-2] > matrices.shape[-1]:
        basis, matrices = torch.linalg.qr(matrices)
    squares, vectors = torch.linalg.eigh(matrices @ matrices.mT)
    left = vectors.flip(-1)
    return left if basis is None else basis @ left, squares.flip(-1).clamp(min=0).sqrt()
