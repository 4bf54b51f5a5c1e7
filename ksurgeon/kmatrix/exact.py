"""K-matrices, and other chains, that equal a structured map."""

import torch
from torch import Tensor

from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.recognise import TOLERANCE, recognise
from ksurgeon.kmatrix.structures import Chain, Kaleidoscope
from ksurgeon.patterns.pattern import Pattern

__all__ = ["exact_factors", "exact_matrix"]


def exact_matrix(
    weight: Tensor, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> KMatrix | None:
    """A matrix of structure ``chain`` that equals a dense one which ``recognise`` knows; None for any other.

    Exact to rounding in its dtype, by default that of ``weight``.
    """
    found = recognise(weight)
    if found is None:
        return None
    factors = found.factors or [torch.ones(len(weight), 1, 1, 1)]
    dtype = dtype or weight.dtype
    if any(factor.is_complex() for factor in factors) and not dtype.is_complex:
        return None
    structure = Chain(factors=tuple(Pattern.of(factor.shape) for factor in factors))
    n = len(weight)
    options = {"device": device or weight.device, "dtype": dtype}
    matrix = KMatrix(n, n, structure=structure, start="empty", **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for mine, exact in zip(matrix.factors, factors, strict=True):
            mine.copy_(exact)
    return matrix


@torch.no_grad()
def exact_factors(matrix: KMatrix, weight: Tensor) -> list[Tensor] | None:
    """Factors that make a K-matrix equal to a structured map; None where the map is unknown or has no place.

    A K-matrix (BB*)^w of the map's size holds a permutation (w = 1), a Hadamard matrix in natural order
    (w = 1), and if it is complex a circulant matrix (w = 1), a Toeplitz matrix (w = 1, e = 2), and a DFT
    whose rows or columns are in digit-reversed order (w = 1), or in any other (w = 2, or 3 for both). A real
    one holds no more of these than the first two; the real chains of ``exact_matrix`` are of other shapes.
    """
    structure = matrix.structure
    n = matrix.in_features
    if not isinstance(structure, Kaleidoscope) or matrix.groups != 1 or matrix.out_features != n or n < 2:
        return None
    if matrix.factors[0].is_complex():
        weight = weight.to(torch.promote_types(weight.dtype, torch.complex64))
    elif not _may_be_real(weight):
        return None
    half = len(matrix.patterns) // (2 * structure.width)
    radices = [pattern.b for pattern in matrix.patterns[half : 2 * half]]
    found = recognise(weight, radices)
    if found is None:
        return None
    slots: list[list[Tensor]] = []  # in turns B* and B
    for stage in found.stages:
        factors = list(stage.factors)
        if stage.kind == "other":
            return None
        if len(slots) % 2 != (stage.kind == "up"):
            slots.append([])
        slots += [factors[:half], factors[half:]] if stage.kind == "permutation" else [factors]
    if len(slots) > 2 * structure.width:
        return None
    slots += [[]] * (2 * structure.width - len(slots))
    identities = [torch.eye(p.b, dtype=torch.float64).expand(p.shape) for p in matrix.patterns]
    return [
        factor
        for position, slot in enumerate(slots)
        for factor in slot or identities[position * half : (position + 1) * half]
    ]


def _may_be_real(weight: Tensor) -> bool:
    """Whether the entries are those of a permutation or a Hadamard matrix: one size, and zeros."""
    size = weight.abs()
    largest = size.max()
    return bool(((size <= TOLERANCE * largest) | (size >= (1 - TOLERANCE) * largest)).all())
