"""Where a fit starts: a factorisation into some of the factors, the others being the identity."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ksurgeon.errors import StructureError
from ksurgeon.fit.factorise import factorise
from ksurgeon.fit.problem import Problem, padded
from ksurgeon.kmatrix.structures import GroupedKaleidoscope, Kaleidoscope, Structure
from ksurgeon.kmatrix.subspace import wide
from ksurgeon.patterns.pattern import Pattern

__all__ = ["start"]

# A start with an error below this is taken as it is.
EXACT = 1e-7


def start(
    structure: Structure,
    patterns: Sequence[Pattern],
    problem: Problem,
    blocks: Tensor,
    error_of: Callable[[Sequence[Tensor]], float],
) -> tuple[list[Tensor], float, bool]:
    """The best factorisation of a stack of blocks into some of the factors of a chain.

    Args:
        structure: of the chain.
        patterns: its factors.
        problem: whose moment and slopes count.
        blocks: to factorise, the problem's own or what something else leaves of them.
        error_of: error of factors.

    Returns:
        The factors, their error, and whether no factors at all are known to be better.
    """
    moment = problem.moment
    if moment is not None and _is_low_rank(patterns, blocks):
        factors = problem.low_rank(blocks, patterns)
        return factors, error_of(factors), True
    wanted = padded(blocks, patterns)
    missing = wanted.shape[2] - blocks.shape[2]
    if moment is not None and missing:
        moment = F.pad(moment, (0, missing, 0, missing))
    best, least = _drawn(patterns, blocks), float("inf")
    for chosen in _choices(structure, patterns):
        try:
            parts = factorise(wanted, [patterns[i] for i in chosen], moment)
        except StructureError:  # these factors alone do not make up a matrix of this size
            continue
        found = dict(zip(chosen, parts, strict=True))
        factors = [found[i] if i in found else _identity(p, blocks) for i, p in enumerate(patterns)]
        error = error_of(factors)
        if error < least:
            best, least = factors, error
        is_best = len(patterns) == len(chosen) <= 2 and moment is None
        if error < EXACT or is_best:
            return best, least, True
    return best, min(least, error_of(best)), False


def _is_low_rank(patterns: Sequence[Pattern], blocks: Tensor) -> bool:
    return len(patterns) == 2 and all((p.a, p.d) == (len(blocks), 1) for p in patterns)


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
    return torch.eye(pattern.b, pattern.c, dtype=wide(like), device=like.device).expand(pattern.shape)


def _drawn(patterns: Sequence[Pattern], blocks: Tensor) -> list[Tensor]:
    """Random factors, always the same ones, for chains that no factorisation serves."""
    generator = torch.Generator().manual_seed(0)
    factors = [
        torch.randn(p.shape, dtype=wide(blocks), generator=generator).to(blocks.device) / p.c**0.5
        for p in patterns
    ]
    factors[0] *= blocks.shape[2] ** 0.5
    return factors
