"""Factors of a chain from a dense matrix, by the leading singular vectors of its blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ksurgeon.errors import StructureError, WeightsError
from ksurgeon.kmatrix.balance import balance_
from ksurgeon.kmatrix.subspace import cholesky, leading, wide
from ksurgeon.patterns.pattern import Pattern, check_chain, hull, transposed_chain

__all__ = ["arranged", "factorise"]

# Entries of the blocks decomposed at once.
_ENTRIES = 2**20


@torch.no_grad()
def factorise(weight: Tensor, patterns: Sequence[Pattern], moment: Tensor | None = None) -> list[Tensor]:
    """Factors with the patterns given whose product is near ``weight``, in the order applied.

    One factor at a time is split off, a low-rank problem for every block of the matrix that its leading
    singular vectors solve (Zheng, Riccietti, Gribonval, "Efficient identification of butterfly sparse
    matrix factorizations", 2022). What is split off is orthonormal, so for the L factors of a butterfly
    matrix, in either order, the error is at most √(L−1) times the least there is (Le, Zheng, Riccietti,
    Gribonval, "Butterfly factorization with error guarantees", 2024); two factors get the least error, and
    a matrix that has the structure is recovered. Norms are split evenly between neighbours.

    Args:
        weight: real or complex, ``(out_features, in_features)`` of the chain; or a stack ``(groups, …)`` of
            such matrices, the blocks of a block-diagonal one for which the chain is.
        patterns: a chain in which, of any factor and the product of those after it, one has blocks
            that nest in the other's: butterflies up or down, grouped maps followed by either.
        moment: second moment Σ of the inputs, ``(in_features, in_features)`` or a stack of such. Each block
            is then approximated in the norm ``‖· Σ_B^½‖``, with the part of Σ that belongs to its columns:
            the least error for low rank, and near to it elsewhere.

    Returns:
        Factors of shape ``(a, d, b, c)`` in double precision.

    Raises:
        StructureError: a chain that does not compose, has another size, or cannot be split so.
        WeightsError: entries that are not finite.
    """
    chain = check_chain(patterns)
    stack = weight if weight.dim() == 3 else weight[None]
    groups = len(stack)
    shape = (chain[-1].out_features // groups, chain[0].in_features // groups)
    if tuple(stack.shape[1:]) != shape:
        raise StructureError(f"the chain needs a matrix of shape {shape}, got {tuple(weight.shape[-2:])}")
    if not torch.isfinite(weight).all():
        raise WeightsError("the matrix holds entries that are not finite")
    stack = stack.to(wide(stack))
    if moment is not None:
        moment = moment.to(stack.dtype).expand(groups, shape[1], shape[1])
    # From the end with the smaller blocks, which is the nearer way on Gaussian matrices. With a moment from
    # the last on: it belongs to the columns, which must not be mixed before they are weighted.
    from_last = moment is not None or _radix(chain[-1]) <= _radix(chain[0])
    try:
        factors = _peel(stack, chain, from_last, moment)
    except StructureError:
        factors = _peel(stack, chain, not from_last, None)
    balance_(factors, sweeps=2)
    return factors


def _peel(stack: Tensor, chain: Sequence[Pattern], transposed: bool, moment: Tensor | None) -> list[Tensor]:
    """Factors split off from the first on, or, of the transposed problem, from the last on."""
    if transposed:
        stack, chain = stack.mT, transposed_chain(chain)
    tails = [chain[-1]]
    for pattern in reversed(chain[:-1]):
        tails.insert(0, hull(pattern, tails[0]))
    a, b, c, d = tails[0]
    groups = len(stack)
    if a % groups:
        raise StructureError(f"no factorisation: the chain mixes the {groups} blocks of the matrix")
    rest = stack.view(groups, a // groups, b, d, a // groups, c, d)
    rest = rest.diagonal(dim1=1, dim2=4).diagonal(dim1=2, dim2=4).permute(0, 3, 4, 1, 2).flatten(0, 1)
    factors = []
    for first, tail in zip(chain, tails[1:], strict=False):
        factor, rest = _split(rest, first, tail, moment)
        factors.append(factor)
    factors.append(rest)
    if transposed:
        factors = [factor.mT for factor in reversed(factors)]
    return [factor.clone(memory_format=torch.contiguous_format) for factor in factors]


def _radix(pattern: Pattern) -> int:
    return max(pattern.b, pattern.c)


def _split(block: Tensor, first: Pattern, second: Pattern, moment: Tensor | None) -> tuple[Tensor, Tensor]:
    """The best two factors for a factor on their hull: ``first`` with orthonormal blocks, and ``second``.

    ``moment`` belongs to the rows of the block.
    """
    blocks, rank = arranged(block, first, second)
    (a, d), p2, q2 = block.shape[:2], blocks.shape[2], blocks.shape[4]
    weights = None
    if moment is not None:  # (a, d, p2, q2, rows, rows)
        weights = _parts(moment, second).view(a, p2, d, q2, second.b, second.b).transpose(1, 2)
    # In slices, along the longest dimension, to keep copies small.
    axis = (
        max((0, 1, 2, 4), key=lambda i: blocks.shape[i])
        if weights is not None
        else max(range(6), key=lambda i: blocks.shape[i])
    )
    size = max(1, _ENTRIES * blocks.shape[axis] // max(1, blocks.numel()))
    # A rank above the blocks' own is used up by copies, which leaves no parameter without a gradient.
    own = min(rank, second.b, first.c)
    kept = torch.arange(rank, device=block.device) % own
    scale = kept.bincount()[kept].to(torch.float64).rsqrt()
    lefts, rights = [], []
    for start in range(0, blocks.shape[axis], size):
        part = blocks.narrow(axis, start, min(size, blocks.shape[axis] - start)).contiguous()
        weighted = part
        if weights is not None:
            roots = weights.narrow(3 if axis == 4 else axis, start, part.shape[axis])
            # Blocks that share a root stand side by side, or the product would copy it for each.
            beside = part.permute(0, 1, 2, 4, 6, 3, 5, 7)
            product = roots.mT @ beside.flatten(-3)
            weighted = product.unflatten(-1, beside.shape[-3:]).permute(0, 1, 2, 5, 3, 6, 4, 7)
        basis = leading(weighted.flatten(0, -3), own).view(*part.shape[:-2], first.c, own)
        left = part @ basis
        lefts.append(left[..., kept] * scale if rank > own else left)
        rights.append((basis[..., kept] * scale if rank > own else basis).mH)
    left, right = torch.cat(lefts, axis), torch.cat(rights, axis)
    return (
        right.permute(0, 3, 5, 1, 2, 6, 4, 7).reshape(first.shape),
        left.permute(0, 2, 4, 1, 6, 3, 7, 5).reshape(second.shape),
    )


def arranged(block: Tensor, first: Pattern, second: Pattern) -> tuple[Tensor, int]:
    """The blocks of which each is a low rank of its own for two factors, and that rank.

    Args:
        block: parameters of a factor on the hull of both, ``(a, d, b, c)``.

    Returns:
        A view or copy ``(a, d, p2, p1, q2, q1, rows, columns)``.

    Raises:
        StructureError: the blocks of neither factor nest in the other's.
    """
    a, d = block.shape[:2]
    p1, q1, p2, q2 = first.a // a, first.d // d, second.a // a, second.d // d
    if min(p1, p2) > 1 or min(q1, q2) > 1 or second.c % (p1 * q1):
        raise StructureError(f"no factorisation into {tuple(first)} then {tuple(second)}: blocks do not nest")
    blocks = block.reshape(a, d, p2, second.b, q2, p1, first.c, q1).permute(0, 1, 2, 5, 4, 7, 3, 6)
    return blocks, second.c // (p1 * q1)


def _parts(moment: Tensor, pattern: Pattern) -> Tensor:
    """Roots R of the parts Σ_B = R Rᴴ of a stack of moments, for the rows of every block of a factor.

    ``(a, d, b, b)``.
    """
    groups = len(moment)
    a, b, _, d = pattern
    parts = moment.view(groups, a // groups, b, d, a // groups, b, d)
    parts = parts.diagonal(dim1=1, dim2=4).diagonal(dim1=2, dim2=4).permute(0, 3, 4, 1, 2).flatten(0, 1)
    roots = cholesky(parts)
    if roots is not None:
        return roots
    values, vectors = torch.linalg.eigh(parts)
    return vectors * values.clamp(min=0).sqrt()[..., None, :]
