"""Permutations as K-matrices, exactly."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.clos import checked, route_
from ksurgeon.kmatrix.initialise import identity_
from ksurgeon.kmatrix.rotations import Rotations, refuse_to_write
from ksurgeon.kmatrix.structures import Dense, Kaleidoscope, Structure
from ksurgeon.patterns.pattern import Pattern

__all__ = ["permutation_"]


class _Matrix(Protocol):
    """What a ``KMatrix`` has."""

    in_features: int
    out_features: int
    groups: int
    structure: Structure
    patterns: tuple[Pattern, ...]
    factors: nn.ParameterList | Rotations


@torch.no_grad()
def permutation_(matrix: _Matrix, permutation: Tensor | Sequence[int]) -> None:
    """Write the factors of ``matrix`` so that ``matrix(x) == x[permutation]``; every entry becomes 0 or 1.

    The first product BB* gets it, by ``clos.route_``; padding, and the second and further products, get the
    identity. A dense matrix is the permutation.

    Args:
        matrix: square K-matrix of structure ``Kaleidoscope``, any width, expansion and radices, or ``Dense``.
        permutation: each of 0 … n−1 once, ``n = matrix.in_features``; entry i of the output is entry
            ``permutation[i]`` of the input.

    Raises:
        StructureError: not a permutation of the right length, or a matrix that is rectangular, has
            groups, is neither ``Kaleidoscope`` nor ``Dense``, or has computed factors.
    """
    if isinstance(matrix.factors, Rotations):
        refuse_to_write("a start as a permutation")
    n = matrix.in_features
    index = checked(permutation, n)
    structure = matrix.structure
    if not isinstance(structure, (Kaleidoscope, Dense)):
        raise StructureError(
            f"a permutation needs structure kaleidoscope or dense, the matrix has {structure.structure}"
        )
    if matrix.groups != 1 or matrix.out_features != n:
        raise StructureError(
            f"a permutation needs a square matrix without groups, this one maps {n} → {matrix.out_features} "
            f"in {matrix.groups} group(s)"
        )
    factors = list(matrix.factors)
    if isinstance(structure, Dense):
        rows = torch.eye(n, dtype=factors[0].dtype, device=factors[0].device)[index]
        factors[0].copy_(rows.view_as(factors[0]))
        return
    identity_(factors)
    size = matrix.patterns[0].in_features
    route_(factors[: len(factors) // structure.width], np.concatenate([index, np.arange(n, size)]))
