"""Factors of a chain from a dense matrix, by singular value decompositions of its blocks."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ksurgeon.errors import StructureError, WeightsError
from ksurgeon.kmatrix.patterns import Pattern, check_chain, hull

__all__ = ["balance_", "factorise"]

# Entries of the blocks decomposed at once.
_ENTRIES = 2**16


@torch.no_grad()
def factorise(weight: Tensor, patterns: Sequence[Pattern]) -> list[Tensor]:
    """Factors with the patterns given whose product is near ``weight``, in the order applied.

    One factor at a time is split off, a low-rank problem for every block of the matrix that a truncated
    SVD in double precision solves (Zheng, Riccietti, Gribonval, "Efficient identification of butterfly
    sparse matrix factorizations", 2022). What is split off is orthonormal, so for the L factors of a
    butterfly matrix, in either order, the error is at most √(L−1) times the least there is (Le, Zheng,
    Riccietti, Gribonval, "Butterfly factorization with error guarantees", 2024); two factors get the
    least error, and a matrix that has the structure is recovered. Norms are split evenly between
    neighbours.

    Args:
        weight: real or complex, ``(out_features, in_features)`` of the chain.
        patterns: a chain in which, of any factor and the product of those after it, one has blocks
            that nest in the other's: butterflies up or down, grouped maps followed by either.

    Returns:
        Factors of shape ``(a, d, b, c)`` in double precision.

    Raises:
        StructureError: a chain that does not compose, has another size, or cannot be split so.
        WeightsError: entries that are not finite.
    """
    chain = check_chain(patterns)
    shape = (chain[-1].out_features, chain[0].in_features)
    if tuple(weight.shape) != shape:
        raise StructureError(f"the chain needs a matrix of shape {shape}, got {tuple(weight.shape)}")
    if not torch.isfinite(weight).all():
        raise WeightsError("the matrix holds entries that are not finite")
    tails = [chain[-1]]
    for pattern in reversed(chain[:-1]):
        tails.insert(0, hull(pattern, tails[0]))
    a, b, c, d = tails[0]
    rest = weight.view(a, b, d, a, c, d).diagonal(dim1=0, dim2=3).diagonal(dim1=1, dim2=3)
    rest = rest.permute(2, 3, 0, 1)
    factors = []
    for first, tail in zip(chain, tails[1:], strict=False):
        factor, rest = _split(rest, first, tail)
        factors.append(factor)
    factors.append(rest.to(_wide(rest), memory_format=torch.contiguous_format, copy=True))
    balance_(factors)
    return factors


def _split(block: Tensor, first: Pattern, second: Pattern) -> tuple[Tensor, Tensor]:
    """The best two factors for a factor on their hull: ``first`` with orthonormal blocks, and ``second``."""
    a, d = block.shape[:2]
    p1, q1, p2, q2 = first.a // a, first.d // d, second.a // a, second.d // d
    rank = second.c // (p1 * q1)
    if min(p1, p2) > 1 or min(q1, q2) > 1 or second.c % (p1 * q1):
        raise StructureError(f"no factorisation into {tuple(first)} then {tuple(second)}: blocks do not nest")
    blocks = block.reshape(a, d, p2, second.b, q2, p1, first.c, q1).permute(0, 1, 2, 5, 4, 7, 3, 6)
    # In slices, along the longest dimension, as the decomposition takes several times its input.
    axis = max(range(6), key=lambda i: blocks.shape[i])
    size = max(1, _ENTRIES * blocks.shape[axis] // max(1, blocks.numel()))
    # A rank above the blocks' own is used up by copies, which leaves no parameter without a gradient.
    kept = torch.arange(rank, device=block.device) % min(rank, second.b, first.c)
    scale = kept.bincount()[kept].to(torch.float64).rsqrt()
    lefts, rights = [], []
    for part in blocks.split(size, dim=axis):
        u, s, vh = torch.linalg.svd(part.to(_wide(part)), full_matrices=False)
        lefts.append((u * s[..., None, :])[..., kept] * scale)
        rights.append(vh[..., kept, :] * scale[:, None])
    left, right = torch.cat(lefts, axis), torch.cat(rights, axis)
    return (
        right.permute(0, 3, 5, 1, 2, 6, 4, 7).reshape(first.shape),
        left.permute(0, 2, 4, 1, 6, 3, 7, 5).reshape(second.shape),
    )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


@torch.no_grad()
def balance_(factors: Sequence[Tensor], sweeps: int = 2) -> None:
    """Scale every entry between two factors so that both have it with equal norms; the product stays."""
    pairs = list(pairwise(factors))
    for first, second in (pairs + pairs[::-1]) * sweeps:
        (a1, d1, b1, _), (a2, d2, _, c2) = first.shape, second.shape
        given = torch.linalg.vector_norm(first, dim=3).mT.reshape(-1)
        taken = torch.linalg.vector_norm(second, dim=2).mT.reshape(-1)
        scale = torch.where((given > 0) & (taken > 0), (taken / given).sqrt(), 1.0)
        first.mul_(scale.view(a1, b1, d1).mT[..., None])
        second.div_(scale.view(a2, c2, d2).mT[..., None, :])
