"""What a fit is given, checked, as stacks of blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ksurgeon.errors import StructureError, WeightsError
from ksurgeon.kmatrix.fit.alternate import as_columns
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.patterns import Pattern
from ksurgeon.kmatrix.subspace import cholesky, wide

__all__ = ["Problem", "padded"]

# What a moment may be off from a positive semidefinite matrix, relative to its largest eigenvalue.
_NEGATIVE = 1e-6


@dataclass
class Problem:
    """Blocks of matrices to approximate, and the moments of their inputs.

    Attributes:
        blocks: ``(groups, out_features, in_features)`` of each group, their entries around 1.
        scale: what each block was divided by, ``(groups, 1, 1)``.
        outside: norm of the entries outside of the blocks, which no factors reach, over ``scale``.
        moment: ``(groups, in_features, in_features)`` in double precision, or None for the identity.
        root: R with ``moment = R Rᴴ``, or None.
        owners: number of matrices; each has ``groups / owners`` blocks.
    """

    blocks: Tensor
    scale: Tensor
    outside: Tensor
    moment: Tensor | None
    root: Tensor | None
    owners: int

    @classmethod
    def of(
        cls, matrices: Sequence[KMatrix], weights: Sequence[Tensor], moments: Sequence[Tensor] | None
    ) -> "Problem":
        """The problem of fitting each matrix, all of the same structure, to its weight.

        Raises:
            StructureError: matrices that differ, or a weight or moment of another shape.
            WeightsError: entries that are not finite, are complex while the matrix is real, or a moment that
                is not Hermitian and positive semidefinite.
        """
        first = matrices[0]
        for matrix in matrices[1:]:
            if (matrix.patterns, matrix.structure) != (first.patterns, first.structure):
                raise StructureError(f"matrices of different structures: {first}, {matrix}")
        parts = [_blocks(matrix, weight) for matrix, weight in zip(matrices, weights, strict=True)]
        blocks = torch.cat([part[0] for part in parts])
        roots = None
        if moments is not None:
            pairs = [_moment(matrix, m) for matrix, m in zip(matrices, moments, strict=True)]
            moment, roots = (torch.cat(items) for items in zip(*pairs, strict=True))
        else:
            moment = None
        scales = torch.cat([part[1].expand(first.groups) for part in parts])[:, None, None]
        outside = torch.stack([part[2] for part in parts])
        return cls(blocks / scales.to(blocks.dtype), scales, outside, moment, roots, len(matrices))

    def weighted(self, patterns: Sequence[Pattern]) -> tuple[Tensor, Tensor]:
        """Columns that a chain is applied to, and what it should make of them: a root of the moment, and W
        times it; without a moment the basis, and W."""
        blocks = self.blocks.to(wide(self.blocks))
        if self.root is None:
            return as_columns(blocks, patterns[0]), blocks
        root = self.root.to(blocks.dtype)
        rows = patterns[0].in_features // len(root) - root.shape[1]
        return F.pad(root, (0, 0, 0, rows)).flatten(0, 1), blocks @ root

    def weighted_error(self, left: Tensor, target: Tensor) -> float:
        """Norm of what is left of the target, relative to it."""
        norm = torch.linalg.vector_norm(target).item()
        return torch.linalg.vector_norm(left).item() / (norm or 1.0)

    def totals(self, errors: Tensor, norms: Tensor) -> list[float]:
        """The relative error of each matrix from the norms of its blocks, and of what is left of them."""
        errors, norms = (x.view(self.owners, -1).square().sum(1) for x in (errors, norms))
        apart = self.outside.square()
        norms = norms + apart
        return ((errors + apart) / torch.where(norms > 0, norms, 1.0)).sqrt().tolist()


def _blocks(matrix: KMatrix, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks, their scale, and the norm over it of what is outside of them."""
    shape, first = (matrix.out_features, matrix.in_features), matrix.factors[0]
    if tuple(weight.shape) != shape:
        raise StructureError(f"the matrix has shape {shape}, got a weight of shape {tuple(weight.shape)}")
    if weight.is_complex() and not first.is_complex():
        raise WeightsError("the weight is complex and the matrix real; give the matrix a complex dtype")
    if not torch.isfinite(weight).all():
        raise WeightsError(f"the weight of shape {shape} holds NaN or infinite entries; it cannot be fitted")
    narrow = torch.complex64 if first.is_complex() else torch.float32
    target = weight.detach().to(first.device, torch.promote_types(weight.dtype, narrow))
    norm = torch.linalg.vector_norm(target, dtype=wide(target)).real
    scale = norm / target.numel() ** 0.5
    scale = torch.where(scale > 0, scale, 1.0)
    groups = matrix.groups
    if groups == 1:
        return target[None], scale, torch.zeros_like(scale)
    whole = target.unflatten(1, (groups, -1)).unflatten(0, (groups, -1))
    blocks = whole.diagonal(dim1=0, dim2=2).movedim(-1, 0).contiguous()
    apart = ~torch.eye(groups, dtype=torch.bool, device=target.device)[:, None, :, None]
    return blocks, scale, torch.linalg.vector_norm(whole * apart, dtype=wide(target)).real / scale


def _moment(matrix: KMatrix, moment: Tensor) -> tuple[Tensor, Tensor]:
    """The moment of each group's inputs, scaled, and its root."""
    groups, whole = matrix.groups, matrix.in_features
    size, first = whole // groups, matrix.factors[0]
    moment = moment.detach().to(first.device)
    if tuple(moment.shape) == (whole, whole) and groups > 1:
        moment = moment.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    elif tuple(moment.shape) == (size, size):
        moment = moment[None]
    if moment.dim() != 3 or tuple(moment.shape[1:]) != (size, size) or len(moment) not in (1, groups):
        raise StructureError(
            f"the second moment of {size} inputs has shape {(size, size)}, got {tuple(moment.shape)}"
        )
    if not torch.isfinite(moment).all():
        raise WeightsError("the second moment holds NaN or infinite entries; leave out the inputs that do")
    moment = moment.to(torch.complex128 if first.is_complex() else torch.float64)
    trace = moment.diagonal(dim1=1, dim2=2).real.mean(1)[:, None, None]
    moment = moment / torch.where(trace > 0, trace, 1.0)
    symmetric = torch.allclose(moment, moment.mH, atol=_NEGATIVE * float(moment.abs().max()))
    root = cholesky(moment) if symmetric else None
    if root is not None:
        return moment.expand(groups, size, size), root.expand(groups, size, size)
    values, vectors = torch.linalg.eigh((moment + moment.mH) / 2)
    largest = values[:, -1:].clamp(min=0)
    if not symmetric or bool((values < -_NEGATIVE * largest).any()):
        raise WeightsError("the second moment is not symmetric and positive semidefinite")
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]
    return moment.expand(groups, size, size), root.expand(groups, size, size)


def padded(blocks: Tensor, patterns: Sequence[Pattern]) -> Tensor:
    """Blocks with rows and columns of zeros up to the size of the chain."""
    groups = len(blocks)
    rows = patterns[-1].out_features // groups - blocks.shape[1]
    columns = patterns[0].in_features // groups - blocks.shape[2]
    return F.pad(blocks, (0, columns, 0, rows)) if rows or columns else blocks
