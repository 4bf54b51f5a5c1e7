"""How near a fit is, and what it is measured against."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ksurgeon.errors import StructureError
from ksurgeon.fit.factorise import arranged
from ksurgeon.fit.fitting import OnStep, fit_
from ksurgeon.fit.problem import Problem
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.subspace import wide
from ksurgeon.patterns.pattern import Pattern, check_chain, hull

__all__ = ["FitReport", "low_rank_error", "measured_fit_", "two_factor_error"]


@dataclass(frozen=True)
class FitReport:
    """What a fit came to. Errors are relative.

    Attributes:
        weight_error: ``‖K − W‖ / ‖W‖``.
        weighted_error: ``‖(K − W) Σ^½‖ / ‖W Σ^½‖`` where a moment Σ was given, else None.
        low_rank_error: the least error of a low rank with no more parameters, in the norm of the fit.
        two_factor_error: what no chain of these patterns can go below: the largest of the least errors of
            the products of two factors that hold it (a block-wise Eckart–Young theorem), without a moment.
            None where the chain mixes its blocks in a way that has no such theorem, or a path lies beside it.
        parameters: of the fitted matrix.
        seconds: that the fit took.
    """

    weight_error: float
    weighted_error: float | None
    low_rank_error: float
    two_factor_error: float | None
    parameters: int
    seconds: float


@torch.no_grad()
def measured_fit_(
    matrix: KMatrix,
    weight: Tensor,
    *,
    moment: Tensor | None = None,
    steps: int | None = None,
    on_step: OnStep | None = None,
) -> FitReport:
    """``fit_``, and how near it came. The bounds take singular value decompositions of the weight.

    Raises:
        StructureError, WeightsError: as ``fit_``.
    """
    begin = time.perf_counter()
    weight_error = fit_(matrix, weight, moment=moment, steps=steps, on_step=on_step)
    seconds = time.perf_counter() - begin
    problem = Problem.of([matrix], [weight], None if moment is None else [moment])
    weighted = None
    if problem.root is not None:
        blocks = problem.blocks.to(wide(problem.blocks))
        dense = matrix.to_dense().detach().to(blocks.dtype)
        groups = matrix.groups
        held = dense.unflatten(1, (groups, -1)).unflatten(0, (groups, -1)).diagonal(dim1=0, dim2=2)
        root = problem.root.to(blocks.dtype)
        weighted = problem.weighted_error((held.movedim(-1, 0) / problem.scale - blocks) @ root)
    return FitReport(
        weight_error,
        weighted,
        _low_rank(problem, matrix.multiplications),
        two_factor_error(weight, matrix.patterns) if matrix.side is None else None,
        matrix.multiplications,
        seconds,
    )


@torch.no_grad()
def low_rank_error(weight: Tensor, rank: int, moment: Tensor | None = None) -> float:
    """The least relative error of a matrix of this rank, in the norm that the moment gives (Eckart–Young)."""
    root = None
    if moment is not None:
        values, vectors = torch.linalg.eigh(moment.to(wide(moment)))
        root = vectors * values.clamp(min=0).sqrt()
    return _tail(weight[None], rank, root)


def _low_rank(problem: Problem, parameters: int) -> float:
    groups, rows, columns = problem.blocks.shape
    return _tail(problem.blocks, parameters // (groups * (rows + columns)), problem.root)


def _tail(blocks: Tensor, rank: int, root: Tensor | None) -> float:
    blocks = blocks.to(wide(blocks))
    squares = torch.linalg.svdvals(blocks if root is None else blocks @ root.to(blocks.dtype)).square()
    whole = squares.sum()
    return float((squares[:, rank:].sum() / torch.where(whole > 0, whole, 1.0)).sqrt())


@torch.no_grad()
def two_factor_error(weight: Tensor, patterns: Sequence[Pattern]) -> float | None:
    """A relative error that no chain of these patterns goes below; None where there is no theorem for it.

    Cut between two factors, the chain is a product of two factors on the hulls of its parts, and the least
    error of that is known block by block. The largest over all cuts is taken.
    """
    chain = check_chain(patterns)
    shape = (chain[-1].out_features, chain[0].in_features)
    if tuple(weight.shape) != shape:
        return None  # padded: what is cropped away is free, and the theorem is about the whole matrix
    wanted = weight.to(wide(weight))
    bounds = []
    for cut in range(1, len(chain)):
        first, second = _hull(chain[:cut]), _hull(chain[cut:])
        a, b, c, d = hull(first, second)
        whole = wanted.view(a, b, d, a, c, d).diagonal(dim1=0, dim2=3).diagonal(dim1=1, dim2=3)
        outside = (wanted.abs().square().sum() - whole.abs().square().sum()).clamp(min=0)
        try:
            blocks, rank = arranged(whole.permute(2, 3, 0, 1), first, second)
        except StructureError:
            continue
        tail = torch.linalg.svdvals(blocks)[..., rank:].square().sum() + outside
        bounds.append(float((tail / wanted.abs().square().sum()).sqrt()))
    return max(bounds, default=None)


def _hull(chain: Sequence[Pattern]) -> Pattern:
    whole = chain[0]
    for pattern in chain[1:]:
        whole = hull(whole, pattern)
    return whole
