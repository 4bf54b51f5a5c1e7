"""The leading singular subspace of many small matrices at once."""

import torch
from torch import Tensor

from ksurgeon.kmatrix.parallel import in_parts

__all__ = ["cholesky", "leading", "triangles", "wide"]

# How often a Gram matrix is squared for its first eigenvector: the 256th power of the singular values.
_SQUARINGS = 7
# Eigenvalues below this share of the first are found in double precision.
_VAGUE = 1e-4
# Ratio of pivots below which a matrix counts as singular.
_SINGULAR = 1e-5


def wide(tensor: Tensor) -> torch.dtype:
    """The double precision dtype of a tensor, real or complex."""
    return torch.complex128 if tensor.is_complex() else torch.float64


def triangles(matrices: Tensor) -> Tensor | None:
    """Lower triangles L with ``L Lᴴ`` equal to a stack of Hermitian matrices; None where one of them is not
    positive definite. A GPU's solver may say so by NaN alone."""
    lower, failed = torch.linalg.cholesky_ex(matrices)
    return None if bool(failed.any()) or not bool(torch.isfinite(lower).all()) else lower


def cholesky(moments: Tensor) -> Tensor | None:
    """Roots L with ``L Lᴴ`` equal to a stack of positive definite matrices, many times faster than from
    eigenvectors; None where one of them is singular, or nearly so."""
    roots = triangles(moments)
    if roots is None:
        return None
    pivots = roots.diagonal(dim1=-2, dim2=-1).real
    return roots if bool((pivots.amin(-1) > _SINGULAR * pivots.amax(-1)).all()) else None


def leading(blocks: Tensor, rank: int) -> Tensor:
    """Orthonormal bases of the first ``rank`` right singular vectors of each matrix.

    Found from Gram matrices in single precision and then taken once through the matrix in double precision,
    which gives a matrix of that very rank its basis in double precision, and loses about 1e-6 of
    what a singular value decomposition keeps elsewhere, several times faster. For a rank of one the Gram
    matrix is squared time and again: where the second singular value is nearly as large as the first, some
    of its vector comes along.

    The number of threads decides which products the platform's BLAS makes, and so the rounding of the Gram
    matrix: bases differ by about 1e-7 over the gap between the last singular value kept and the first left
    out, relative to the largest; what they keep of the matrix, by the square of that.

    Args:
        blocks: ``(count, m, k)`` in double precision.
        rank: at most m and k.

    Returns:
        ``(count, k, rank)``.
    """
    count, m, k = blocks.shape
    if rank == k:
        return torch.eye(k, dtype=blocks.dtype, device=blocks.device).expand(count, k, k)
    return in_parts(lambda part: _leading(part, rank), blocks, count * m * k * min(m, k))


def _leading(blocks: Tensor, rank: int) -> Tensor:
    tall = blocks.shape[-1] <= blocks.shape[-2]
    columns = blocks if tall else blocks.mH
    single = _unit(columns).to(torch.complex64 if columns.is_complex() else torch.float32)
    gram = single.mH @ single
    start = (_first(gram) if rank == 1 else _eigenvectors(gram, columns, rank)).to(blocks.dtype)
    taken = blocks.mH @ (blocks @ start if tall else start)
    if rank == 1:
        length = torch.linalg.vector_norm(taken, dim=-2, keepdim=True)
        unit = torch.zeros_like(taken)
        unit[..., 0, 0] = 1
        return torch.where(length > 0, taken / torch.where(length > 0, length, 1.0), unit)
    return torch.linalg.qr(taken)[0]


def _eigenvectors(gram: Tensor, columns: Tensor, rank: int) -> Tensor:
    """First eigenvectors, in double precision where single precision does not tell them from the others."""
    values, vectors = torch.linalg.eigh(gram)
    vectors = vectors[..., -rank:].flip(-1).to(columns.dtype)
    vague = (values[..., -rank] <= _VAGUE * values[..., -1]).nonzero().flatten()
    if len(vague):
        exact = columns[vague]
        vectors[vague] = torch.linalg.eigh(exact.mH @ exact)[1][..., -rank:].flip(-1)
    return vectors


def _first(gram: Tensor) -> Tensor:
    """First eigenvector of each Gram matrix, from the longest column of a high power."""
    power = gram
    for _ in range(_SQUARINGS):
        power = power @ power
        trace = power.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None]
        power = power / torch.where(trace > 0, trace, 1.0)
    longest = power.diagonal(dim1=-2, dim2=-1).real.argmax(-1)[..., None, None]
    return power.gather(-1, longest.expand(*power.shape[:-1], 1))


def _unit(blocks: Tensor) -> Tensor:
    """Each matrix with a norm of one, those of zeros as they are."""
    norms = torch.linalg.vector_norm(blocks, dim=(-2, -1), keepdim=True)
    return blocks / torch.where(norms > 0, norms, 1.0)
