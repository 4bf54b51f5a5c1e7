"""What a fit is given, checked, as stacks of blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from ksurgeon.errors import StructureError, WeightsError
from ksurgeon.fit.alternate import Metric, as_columns
from ksurgeon.fit.factorise import factorise
from ksurgeon.fit.two_sided import triangle
from ksurgeon.kmatrix.balance import balance_
from ksurgeon.kmatrix.rotations import Rotations, refuse_to_write
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.subspace import cholesky, wide
from ksurgeon.patterns.pattern import Pattern

__all__ = ["Problem", "padded"]

# What a moment may be off from a positive semidefinite matrix, relative to its largest eigenvalue.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
_NEGATIVE = 1e-6


@dataclass
class Problem:
    """Blocks of matrices to approximate, and the moments of their inputs.

    Attributes:
        blocks: ``(groups, out_features, in_features)`` of each group, their entries around 1.
        scale: what each block was divided by, ``(groups, 1, 1)``.
        outside: norm of the entries outside of the blocks, which no factors reach, over ``scale``.
        moment: ``(groups, in_features, in_features)`` in double precision, or None for the identity.
        root: L with ``moment = L Lᴴ``, or None.
        metric: how errors of the outputs are measured.
        owners: number of matrices; each has ``groups / owners`` blocks.
    """

    blocks: Tensor
    scale: Tensor
    outside: Tensor
    moment: Tensor | None
    root: Tensor | None
    metric: Metric
    owners: int

    @classmethod
    def of(
        cls,
        matrices: Sequence[StructuredMatrix],
        weights: Sequence[Tensor],
        moments: Sequence[Tensor] | None,
        slopes: Sequence[Tensor] | None = None,
    ) -> "Problem":
        """The problem of fitting each matrix, all of the same structure, to its weight.

        Raises:
            StructureError: matrices that differ, or whose factors are computed, or a weight, moment or slopes
                of another shape, or slopes without a moment.
            WeightsError: entries that are not finite, are complex while the matrix is real, or a moment that
                is not Hermitian and positive semidefinite.
        """
        first = matrices[0]
        if isinstance(getattr(first, "factors", None), Rotations):
            refuse_to_write("a fit to a dense matrix")
        for matrix in matrices[1:]:
            if (matrix.shape, matrix.groups, matrix.structure) != (
                first.shape,
                first.groups,
                first.structure,
            ):
                raise StructureError(f"matrices of different structures: {first}, {matrix}")
        parts = [_blocks(matrix, weight) for matrix, weight in zip(matrices, weights, strict=True)]
        blocks = torch.cat([part[0] for part in parts])
        roots = None
        if moments is not None:
            pairs = [_moment(matrix, m) for matrix, m in zip(matrices, moments, strict=True)]
            moment, roots = (torch.cat(items) for items in zip(*pairs, strict=True))
        else:
            moment = None
        seen = None
        if slopes is not None:
            if moment is None:
                raise StructureError("output gradients need the input covariance as well; pass moment, too")
            seen = torch.cat([_slopes(matrix, r) for matrix, r in zip(matrices, slopes, strict=True)])
            seen = seen.to(wide(blocks))
        scales = torch.cat([part[1].expand(first.groups) for part in parts])[:, None, None]
        outside = torch.stack([part[2] for part in parts])
        return cls(
            blocks / scales.to(blocks.dtype), scales, outside, moment, roots, Metric(seen), len(matrices)
        )

    def weighted(self, patterns: Sequence[Pattern]) -> tuple[Tensor, Tensor]:
        """Columns that a chain is applied to, and what it should make of them: a root of the moment, and W
        times it; without a moment the basis, and W."""
        blocks = self.blocks.to(wide(self.blocks))
        if self.root is None:
            return as_columns(blocks, patterns[0]), blocks
        root = self.root.to(blocks.dtype)
        rows = patterns[0].in_features // len(root) - root.shape[1]
        return F.pad(root, (0, 0, 0, rows)).flatten(0, 1), blocks @ root

    def low_rank(self, blocks: Tensor, patterns: Sequence[Pattern]) -> list[Tensor]:
        """Factors of the best low rank for blocks in the place of the problem's own (Eckart and Young)."""
        slopes = self.metric.slopes
        if slopes is None:
            return factorise(blocks, patterns, self.moment)
        first, second = factorise(slopes @ blocks, patterns, self.moment)
        factors = [first, torch.linalg.solve_triangular(slopes[:, None], second, upper=True)]
        balance_(factors, sweeps=2)
        return factors

    @cached_property
    def norm(self) -> float:
        """Of what a chain should make of the columns, as ``metric`` has it."""
        return (
            self.metric.norm(
                self.blocks if self.root is None else self.blocks @ self.root.to(self.blocks.dtype)
            )
            or 1.0
        )

    def weighted_error(self, left: Tensor) -> float:
        """Norm of what is left of what a chain should make of the columns, relative to it."""
        return self.metric.norm(left) / self.norm

    def totals(self, errors: Tensor, norms: Tensor) -> list[float]:
        """The relative error of each matrix from the norms of its blocks, and of what is left of them."""
        errors, norms = (x.view(self.owners, -1).square().sum(1) for x in (errors, norms))
        apart = self.outside.square()
        norms = norms + apart
        return ((errors + apart) / torch.where(norms > 0, norms, 1.0)).sqrt().tolist()


def _blocks(matrix: StructuredMatrix, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks, their scale, and the norm over it of what is outside of them."""
    shape, first = (matrix.out_features, matrix.in_features), matrix.like
    if tuple(weight.shape) != shape:
        raise StructureError(f"the matrix has shape {shape}, got a weight of shape {tuple(weight.shape)}")
    if weight.dtype not in _DTYPES:
        raise WeightsError(
            f"the weight has dtype {weight.dtype}; a fit takes floating or complex numbers of 16 bits or "
            "more each (weight.float())"
        )
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


def _moment(matrix: StructuredMatrix, moment: Tensor) -> tuple[Tensor, Tensor]:
    """The moment of each group's inputs, scaled, and its root."""
    groups, whole = matrix.groups, matrix.in_features
    size, first = whole // groups, matrix.like
    moment = moment.detach().to(first.device)
    if tuple(moment.shape) == (whole, whole) and groups > 1:
        moment = moment.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    elif tuple(moment.shape) == (size, size):
        moment = moment[None]
    if moment.dim() != 3 or tuple(moment.shape[1:]) != (size, size) or len(moment) not in (1, groups):
        raise StructureError(
            f"the covariance of {size} inputs has shape {(size, size)}, got {tuple(moment.shape)}"
        )
    if not torch.isfinite(moment).all():
        raise WeightsError("the input covariance has NaN or infinite entries; leave out the inputs that do")
    moment = moment.to(torch.complex128 if first.is_complex() else torch.float64)
    trace = moment.diagonal(dim1=1, dim2=2).real.mean(1)[:, None, None]
    moment = moment / torch.where(trace > 0, trace, 1.0)
    symmetric = float((moment - moment.mH).abs().max()) <= _NEGATIVE * float(moment.abs().max())
    root = cholesky(moment) if symmetric else None
    if root is not None:
        return moment.expand(groups, size, size), root.expand(groups, size, size)
    values, vectors = torch.linalg.eigh((moment + moment.mH) / 2)
    largest = values[:, -1:].clamp(min=0)
    if not symmetric or bool((values < -_NEGATIVE * largest).any()):
        raise WeightsError("the input covariance is not symmetric and positive semidefinite")
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]
    return moment.expand(groups, size, size), root.expand(groups, size, size)


def _slopes(matrix: StructuredMatrix, slopes: Tensor) -> Tensor:
    """Triangles for the outputs of each group."""
    groups, size = matrix.groups, matrix.out_features // matrix.groups
    slopes = slopes.detach().to(matrix.like.device)
    if slopes.dim() == 2:
        slopes = slopes[None]
    if slopes.dim() == 3 and groups > 1 and len(slopes) == 1 and slopes.shape[2] == matrix.out_features:
        slopes = slopes[0].unflatten(1, (groups, size)).movedim(1, 0)
    if slopes.dim() != 3 or slopes.shape[2] != size or len(slopes) not in (1, groups):
        raise StructureError(f"gradients of {size} outputs have shape (n, {size}), got {tuple(slopes.shape)}")
    if not torch.isfinite(slopes).all():
        raise WeightsError("output gradients have NaN or infinite entries; leave out the inputs that do")
    if slopes.is_complex():
        raise WeightsError("output gradients are complex; give those of a real loss and real outputs")
    slopes = slopes.double()
    largest = slopes.abs().amax()
    return triangle(slopes / torch.where(largest > 0, largest, 1.0)).expand(groups, size, size)


def padded(blocks: Tensor, patterns: Sequence[Pattern]) -> Tensor:
    """Blocks with rows and columns of zeros up to the size of the chain."""
    groups = len(blocks)
    rows = patterns[-1].out_features // groups - blocks.shape[1]
    columns = patterns[0].in_features // groups - blocks.shape[2]
    return F.pad(blocks, (0, columns, 0, rows)) if rows or columns else blocks
