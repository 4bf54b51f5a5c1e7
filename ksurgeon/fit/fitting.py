"""Fitting a K-matrix, or another structure, to a dense matrix."""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from ksurgeon.fit.alternate import OnSweep, alternate, as_columns, outputs
from ksurgeon.fit.problem import Problem
from ksurgeon.fit.refine import OnStep, refine, relative_error, relative_errors
from ksurgeon.fit.start import start
from ksurgeon.fit.sums import fit_sum
from ksurgeon.kmatrix.balance import balance_
from ksurgeon.kmatrix.exact import exact_factors
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.structures import Structure, Sum
from ksurgeon.kmatrix.subspace import wide
from ksurgeon.patterns.pattern import Pattern

__all__ = ["OnStep", "fit_", "fit_all_"]

# Entries of the weight times gradient steps, and the least and the most steps.
_WORK, _FEWEST, _MOST = 2**24, 60, 200
# The most sweeps of least squares, and the share of the error that one must take away to have a successor.
_SWEEPS, _GAIN = 60, 2e-3


def fit_(
    matrix: StructuredMatrix,
    weight: Tensor,
    *,
    moment: Tensor | None = None,
    slopes: Tensor | None = None,
    steps: int | None = None,
    on_step: OnStep | None = None,
) -> float:
    """Bring ``matrix`` near to ``weight``: in the Frobenius norm, or where the inputs of the layer are.

    A structured map that a square K-matrix holds is met exactly (see ``exact_factors``). Otherwise some of
    the factors get a hierarchical factorisation of the weight (see ``factorise``) and the others the
    identity, so that a weight that is a butterfly matrix, of either order, is recovered; then all factors
    are refined together (see ``refine``). With a moment the same start, in that norm, is followed by least
    squares for one factor after the other (see ``alternate``). A structure that is no chain has a fit of its
    own (see ``StructuredMatrix.fit_``). A low rank is the least error there is, in
    either norm. A chain with a path beside it gets the two in turns, each to what the other leaves. The
    result depends on the arguments alone. An interrupted fit leaves the matrix as it was.

    Args:
        matrix: its factors are overwritten, in their dtype.
        weight: ``(out_features, in_features)``, floating or complex; complex needs a complex matrix.
        moment: second moment Σ = E[x xᴴ] of the inputs, ``(in_features, in_features)``, of any scale, best
            in double precision; the fit is then of ``‖(K − W) Σ^½‖``. Of a matrix with groups it may also be
            one for each group, ``(groups, in_features / groups, …)``, or one for all of them.
        slopes: R, ``(n, out_features)``, real, whose rows are slopes of what counts along the outputs, or any
            matrix with the same ``Rᵀ R``; the fit is then of ``‖R (K − W) Σ^½‖``, with a thousandth of the
            mean of its diagonal added to ``Rᵀ R``. With groups also ``(groups, n, out_features / groups)``.
            Needs a moment.
        steps: gradient steps without a moment, 0 for none; left out, 60 for a large weight and up to 200
            for a small one. With a moment, or a path beside the chain, the most sweeps: it stops when
            they gain little.
        on_step: called with the number of steps done and the number of all steps.

    Returns:
        ``‖K − W‖ / ‖W‖`` for the factors as stored, without the moment; 0 for a weight of zeros.

    Raises:
        StructureError: a weight, moment or slopes of another shape than the matrix, or slopes alone.
        WeightsError: entries that are not finite, or are complex while the matrix is real, or a moment that
            is not positive semidefinite.
    """
    moments, seen = ([item] if item is not None else None for item in (moment, slopes))
    return fit_all_([matrix], [weight], moments=moments, slopes=seen, steps=steps, on_step=on_step)[0]


@torch.no_grad()
def fit_all_(
    matrices: Sequence[StructuredMatrix],
    weights: Sequence[Tensor],
    *,
    moments: Sequence[Tensor] | None = None,
    slopes: Sequence[Tensor] | None = None,
    steps: int | None = None,
    on_step: OnStep | None = None,
) -> list[float]:
    """Fit matrices of one structure and size at once, each to its weight, nearly as ``fit_`` of each in turn.

    Saves the time of many small operations. They are stopped together.

    Raises:
        StructureError, WeightsError: as ``fit_``; or matrices of different structures.
    """
    if not matrices:
        return []
    problem, first = Problem.of(matrices, weights, moments, slopes), matrices[0]
    if not isinstance(first, KMatrix):
        return [
            _fit_own(matrix, weight, moment, seen, steps)
            for matrix, weight, moment, seen in zip(
                matrices,
                weights,
                _each(problem.moment, matrices),
                _each(problem.metric.slopes, matrices),
                strict=True,
            )
        ]
    assert _are_chains(matrices)
    if len(matrices) == 1:
        exact = exact_factors(first, weights[0])
        if exact is not None:
            for mine, value in zip(first.factors, exact, strict=True):
                mine.copy_(value)
            return _stored_errors(matrices, problem)
    patterns, sweeps = _stacked(first, len(matrices)), _SWEEPS if steps is None else steps
    on_sweep: OnSweep | None = None if on_step is None else (lambda done: on_step(done, sweeps))
    if first.side is not None:
        assert isinstance(first.structure, Sum)
        beside = _stacked(first.side, len(matrices))
        parts = list(fit_sum(first.structure.main, patterns, beside, problem, sweeps, _GAIN, on_sweep))
    elif problem.root is not None:
        parts = [_fit_weighted(first.structure, patterns, problem, sweeps, on_sweep)]
    else:
        parts = [_fit_plain(first.structure, patterns, problem, steps, on_step)]
    holders = [list(matrices), [matrix.side for matrix in matrices if matrix.side is not None]]
    for same, factors in zip(holders, parts, strict=False):
        factors = [factor.to(wide(factor), copy=True) for factor in factors]
        balance_(factors)
        for position, factor in enumerate(_evenly(factors, problem.scale)):
            for holder, piece in zip(same, factor.chunk(len(matrices)), strict=True):
                holder.factors[position].copy_(piece)
    return _stored_errors(matrices, problem)


def _are_chains(matrices: Sequence[StructuredMatrix]) -> TypeGuard[Sequence[KMatrix]]:
    return all(isinstance(matrix, KMatrix) for matrix in matrices)


def _each(stack: Tensor | None, matrices: Sequence[StructuredMatrix]) -> list[Tensor | None]:
    return [None] * len(matrices) if stack is None else list(stack.split(matrices[0].groups))


def _fit_own(
    matrix: StructuredMatrix, weight: Tensor, moment: Tensor | None, slopes: Tensor | None, steps: int | None
) -> float:
    """The structure's own fit, and the relative error of what it leaves."""
    matrix.fit_(weight, moment=moment, slopes=slopes, steps=steps)
    dense = matrix.to_dense()
    target = weight.to(dense.device, wide(dense))
    norm = torch.linalg.vector_norm(target)
    return float(torch.linalg.vector_norm(dense.to(target.dtype) - target) / norm) if norm > 0 else 0.0


def _stacked(matrix: KMatrix, count: int) -> list[Pattern]:
    return [pattern._replace(a=pattern.a * count) for pattern in matrix.patterns]


def _fit_weighted(
    structure: Structure,
    patterns: Sequence[Pattern],
    problem: Problem,
    sweeps: int,
    on_sweep: OnSweep | None,
) -> list[Tensor]:
    inputs, target = problem.weighted(patterns)

    def error_of(factors: Sequence[Tensor]) -> float:
        return problem.weighted_error(target - outputs(factors, inputs, target))

    blocks = problem.blocks.to(wide(problem.blocks))
    factors, _, is_best = start(structure, patterns, problem, blocks, error_of)
    if is_best or sweeps == 0:
        return factors
    refined, _ = alternate(
        factors, inputs, target, metric=problem.metric, gain=_GAIN, sweeps=sweeps, on_sweep=on_sweep
    )
    return refined


def _fit_plain(
    structure: Structure,
    patterns: Sequence[Pattern],
    problem: Problem,
    steps: int | None,
    on_step: OnStep | None,
) -> list[Tensor]:
    blocks = problem.blocks
    factors, error, is_best = start(
        structure, patterns, problem, blocks, lambda factors: relative_error(factors, blocks)
    )
    if steps is None:
        steps = min(max(_WORK // blocks.numel(), _FEWEST), _MOST)
    if steps > 0 and not is_best:
        narrow = torch.complex64 if factors[0].is_complex() else torch.float32
        narrowed, started = blocks.to(narrow), [factor.to(narrow) for factor in factors]
        refined = refine(started, narrowed, steps, error, on_step)
        if relative_error(refined, blocks) < error:
            return refined
    return factors


def _evenly(factors: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    """The chain times ``scale``, every factor changing the norm of a random vector by the same ratio.

    Block by block of the stack; a block with a factor of zeros is scaled at its first factor alone.
    """
    groups, flat = len(scale), scale.flatten()
    stacks = [factor.unflatten(0, (groups, -1)) for factor in factors]
    norms = [torch.linalg.vector_norm(s, dim=(1, 2, 3, 4)).double() for s in stacks]
    sizes = [(Pattern.of(f.shape).in_features / groups) ** 0.5 for f in factors]
    gains = torch.stack([norm / size for norm, size in zip(norms, sizes, strict=True)])
    sound = (gains > 0).all(0)
    gains = torch.where(sound, gains, 1.0)
    ratios = gains.log().mean(0).exp() * flat ** (1 / len(factors)) / gains
    ratios = torch.where(sound, ratios, 1.0)
    ratios[0] = torch.where(sound, ratios[0], flat)
    return [
        (stack * ratio.to(stack.dtype).view(-1, 1, 1, 1, 1)).flatten(0, 1)
        for stack, ratio in zip(stacks, ratios, strict=True)
    ]


def _stored_errors(matrices: Sequence[KMatrix], problem: Problem) -> list[float]:
    """Relative errors of the factors as they are stored, without the moment."""
    blocks = problem.blocks
    dtype = torch.promote_types(matrices[0].factors[0].dtype, torch.float32)

    def stored(chains: Sequence[KMatrix]) -> list[Tensor]:
        held = [torch.cat(same).detach().to(dtype) for same in zip(*(m.factors for m in chains), strict=True)]
        first = held[0].unflatten(0, (len(blocks), -1)) / problem.scale[..., None, None].to(dtype)
        return [first.flatten(0, 1), *held[1:]]

    target = blocks
    sides = [matrix.side for matrix in matrices if matrix.side is not None]
    if sides:
        low = stored(sides)
        target = blocks - outputs(low, as_columns(blocks, Pattern.of(low[0].shape), dtype), blocks)
    errors, _ = relative_errors(stored(matrices), target)
    norms = torch.linalg.vector_norm(blocks, dim=(1, 2)).double()
    return problem.totals(errors, norms)
