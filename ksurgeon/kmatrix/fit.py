"""Fitting a K-matrix, or another chain, to a dense matrix."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ksurgeon.errors import StructureError, WeightsError
from ksurgeon.kmatrix.factorise import factorise
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.patterns import Pattern
from ksurgeon.kmatrix.permutation import permutation_
from ksurgeon.kmatrix.refine import OnStep, refine, relative_error
from ksurgeon.kmatrix.structures import GroupedKaleidoscope, Kaleidoscope, Structure, Sum

__all__ = ["OnStep", "fit_"]

# A start with an error below this is taken as it is.
_EXACT = 1e-7
# Entries of the weight times gradient steps, and the least and the most steps.
_TURNS = 4
_WORK, _FEWEST, _MOST = 2**24, 60, 200


@torch.no_grad()
def fit_(
    matrix: KMatrix, weight: Tensor, *, steps: int | None = None, on_step: OnStep | None = None
) -> float:
    """Bring ``matrix`` near to ``weight`` in the Frobenius norm.

    A permutation is met exactly by a square K-matrix. Otherwise some of the factors get a hierarchical
    factorisation of the weight (see ``factorise``) and the others the identity, so that a weight that
    is a butterfly matrix, of either order, is recovered; then all factors are refined together (see
    ``refine``). The result depends on the arguments alone. An interrupted fit leaves the matrix as it was.

    Args:
        matrix: its factors are overwritten, in their dtype.
        weight: ``(out_features, in_features)``, floating or complex; complex needs a complex matrix.
        steps: gradient steps, 0 for none; left out, 60 for a large weight and up to 200 for a small one.
        on_step: called with the number of steps done and the number of all steps.

    Returns:
        ``‖K − W‖ / ‖W‖`` for the factors as stored; 0 for a weight of zeros.

    Raises:
        StructureError: a weight of another shape than the matrix.
        WeightsError: entries that are not finite, or are complex while the matrix is real.
    """
    shape, first = (matrix.out_features, matrix.in_features), matrix.factors[0]
    if tuple(weight.shape) != shape:
        raise StructureError(f"the matrix has shape {shape}, got a weight of shape {tuple(weight.shape)}")
    if weight.is_complex() and not first.is_complex():
        raise WeightsError("the weight is complex and the matrix real; give the matrix a complex dtype")
    if not torch.isfinite(weight).all():
        raise WeightsError(f"the weight of shape {shape} holds NaN or infinite entries; it cannot be fitted")
    if matrix.side is not None:
        return _fit_sum(matrix, weight, steps, on_step)
    if matrix.groups == 1 and isinstance(matrix.structure, Kaleidoscope) and _is_permutation(weight):
        permutation_(matrix, weight.abs().argmax(1))
        return 0.0
    narrow = torch.complex64 if first.is_complex() else torch.float32
    target = weight.detach().to(first.device, torch.promote_types(weight.dtype, narrow))
    scale = torch.linalg.vector_norm(target, dtype=_wide(target)).item() / target.numel() ** 0.5 or 1.0
    target = target / scale  # entries, and with them those of the factors, are then around 1
    if steps is None:
        steps = min(max(_WORK // target.numel(), _FEWEST), _MOST)
    factors, error, is_best = _start(matrix, target)
    if steps > 0 and not is_best:
        target, started = target.to(narrow), [factor.to(narrow) for factor in factors]
        refined = refine(started, target, steps, error, matrix.groups, on_step)
        if relative_error(refined, target, matrix.groups) < error:
            factors = refined
    for mine, fitted in zip(matrix.factors, _evenly(factors, scale), strict=True):
        mine.copy_(fitted)
    stored = [factor.detach().to(factors[0].dtype) for factor in matrix.factors]
    stored[0] = stored[0] / scale
    return relative_error(stored, target, matrix.groups)


def _fit_sum(matrix: KMatrix, weight: Tensor, steps: int | None, on_step: OnStep | None) -> float:
    """The chain and the path beside it in turns, each to what the other leaves of the weight."""
    assert isinstance(matrix.structure, Sum) and matrix.side is not None
    options: dict[str, Any] = {"groups": matrix.groups, "start": "empty", "dtype": matrix.factors[0].dtype}
    sizes = matrix.in_features, matrix.out_features
    chain = KMatrix(*sizes, structure=matrix.structure.main, device=weight.device, **options)
    side = KMatrix(*sizes, structure=matrix.side.structure, device=weight.device, **options)
    fit_(side, weight)
    for turn in range(_TURNS):
        last = turn == _TURNS - 1
        fit_(chain, weight - side.to_dense(), steps=steps if last else 0, on_step=on_step if last else None)
        fit_(side, weight - chain.to_dense())
    for mine, fitted in zip(matrix.parameters(), [*chain.factors, *side.factors], strict=True):
        mine.copy_(fitted)
    norm = torch.linalg.vector_norm(weight)
    return float(torch.linalg.vector_norm(matrix.to_dense() - weight) / torch.where(norm > 0, norm, 1.0))


def _wide(target: Tensor) -> torch.dtype:
    return torch.complex128 if target.is_complex() else torch.float64


def _is_permutation(weight: Tensor) -> bool:
    ones = weight == 1
    return bool(
        weight.shape[0] == weight.shape[1]
        and (ones | (weight == 0)).all()
        and (ones.sum(0) == 1).all()
        and (ones.sum(1) == 1).all()
    )


def _start(matrix: KMatrix, target: Tensor) -> tuple[list[Tensor], float, bool]:
    """The best factorisation into some of the factors, the others being the identity.

    Also returns its relative error, and whether no factors at all are known to be better.
    """
    patterns, groups = matrix.patterns, matrix.groups
    missing_out = patterns[-1].out_features // groups - target.shape[0] // groups
    missing_in = patterns[0].in_features // groups - target.shape[1] // groups
    padded = target
    if missing_out or missing_in:
        padded = padded.unflatten(1, (groups, -1)).unflatten(0, (groups, -1))
        padded = F.pad(padded, (0, missing_in, 0, 0, 0, missing_out)).flatten(2).flatten(0, 1)
    best, least = _drawn(patterns, target), float("inf")
    for chosen in _choices(matrix.structure, patterns):
        try:
            found = dict(zip(chosen, factorise(padded, [patterns[i] for i in chosen]), strict=True))
        except StructureError:  # these factors alone do not make up a matrix of this size
            continue
        factors = [found[i] if i in found else _identity(p, target) for i, p in enumerate(patterns)]
        error = relative_error(factors, target, groups)
        if error < least:
            best, least = factors, error
        if error < _EXACT or len(patterns) == len(chosen) <= 2:
            return best, least, True
    return best, min(least, relative_error(best, target, groups)), False


def _choices(structure: Structure, patterns: Sequence[Pattern]) -> Iterator[list[int]]:
    """Positions of the factors to factorise into; the others must be square."""
    last = len(patterns) - 1
    if isinstance(structure, GroupedKaleidoscope):
        # Any further factor of the mixing K-matrix takes more from the grouped one than it gives.
        yield [0, 1]
        yield [0]
    elif isinstance(structure, Kaleidoscope):
        half = len(patterns) // (2 * structure.width)
        rectangular = [i for i in (0, last) if patterns[i].b != patterns[i].c]
        yield sorted({*range(last + 1 - half, last + 1), *rectangular})
        yield sorted({*range(half), *rectangular})
    else:
        yield list(range(last + 1))


def _identity(pattern: Pattern, like: Tensor) -> Tensor:
    return torch.eye(pattern.b, pattern.c, dtype=_wide(like), device=like.device).expand(pattern.shape)


def _drawn(patterns: Sequence[Pattern], target: Tensor) -> list[Tensor]:
    """Random factors, always the same ones, for chains that no factorisation serves."""
    generator = torch.Generator().manual_seed(0)
    factors = [
        torch.randn(p.shape, dtype=_wide(target), generator=generator).to(target.device) / p.c**0.5
        for p in patterns
    ]
    factors[0] *= target.shape[1] ** 0.5
    return factors


def _evenly(factors: Sequence[Tensor], scale: float) -> list[Tensor]:
    """The chain times ``scale``, every factor changing the norm of a random vector by the same ratio."""
    gains = torch.stack(
        [torch.linalg.vector_norm(f) / Pattern.of(f.shape).in_features ** 0.5 for f in factors]
    ).double()
    if not (gains > 0).all():
        return [factors[0] * scale, *factors[1:]]
    shared = gains.log().mean().exp() * scale ** (1 / len(factors))
    return [factor * (shared / gain).to(factor.dtype) for factor, gain in zip(factors, gains, strict=True)]
