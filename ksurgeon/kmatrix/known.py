"""Which transform a constant matrix is."""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

__all__ = ["known_matrix"]

_SMALLEST = 4
_TOLERANCE = 1e-5


@torch.no_grad()
def known_matrix(matrix: Tensor) -> dict[str, Any] | None:
    """The transform that a matrix ``(out, in)`` is, as plain data; None if it is none that is known.

    Known are multiples of the DFT and its inverse, the real DFT, the DCT-II, the Hadamard matrix, and
    circulant matrices that are more than a shift.
    """
    if (
        matrix.layout is not torch.strided
        or matrix.dim() != 2
        or matrix.shape[1] < _SMALLEST
        or matrix.numel() > 1 << 24
    ):
        return None
    rows, n = matrix.shape
    wide = matrix.to("cpu", torch.complex128 if matrix.is_complex() else torch.float64)
    if not bool(wide.isfinite().all()) or not bool(wide.any()):
        return None
    if wide.is_complex():
        return _fourier(wide, rows, n)
    if rows != n:
        return None
    for name, first, entry in (
        ("hadamard", _hadamard, 1.0),
        ("dct", _dct, 2.0),
        ("dct_ortho", _ortho, 1 / sqrt(n)),
    ):
        scale = float(wide[0, 0]) / entry
        if scale and (name != "hadamard" or n & (n - 1) == 0) and _close(wide, scale * first(n)):
            return {"transform": name, "n": n, "scale": scale}
    return _circulant(wide, n)


def _fourier(wide: Tensor, rows: int, n: int) -> dict[str, Any] | None:
    turns = torch.arange(rows)[:, None] * torch.arange(n) % n
    angles = turns.to(torch.float64) * (2 * torch.pi / n)
    dft = torch.polar(torch.ones_like(angles), -angles)
    scale = complex(wide[0, 0])
    if abs(scale) == 0 or abs(scale.imag) > _TOLERANCE * abs(scale):
        return None
    if rows == n and _close(wide, scale.real * dft):
        return {"transform": "dft", "n": n, "scale": scale.real}
    if rows == n and _close(wide, scale.real * dft.conj()):
        return {"transform": "idft", "n": n, "scale": scale.real * n}
    if rows == n // 2 + 1 and _close(wide, scale.real * dft):
        return {"transform": "rdft", "n": n, "scale": scale.real}
    return None


def _circulant(wide: Tensor, n: int) -> dict[str, Any] | None:
    column = wide[:, 0]
    index = (torch.arange(n)[:, None] - torch.arange(n)) % n
    if not _close(wide, column[index]):
        return None
    large = column.abs() > _TOLERANCE * float(column.abs().max())
    constant = bool((column - column[0]).abs().max() <= _TOLERANCE * float(column.abs().max()))
    if (
        int(large.sum()) < 2
        or constant
        or bool(((column[1:] - column[1]).abs() <= _TOLERANCE * float(column.abs().max())).all())
    ):
        return None
    return {"transform": "circulant", "n": n, "scale": 1.0, "column": column.tolist()}


def _close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= _TOLERANCE * float(expected.abs().max()))


def _hadamard(n: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.kron(two, matrix)
    return matrix


def _dct(n: int) -> Tensor:
    turns = torch.arange(n)[:, None] * (2 * torch.arange(n) + 1) % (4 * n)
    return 2 * torch.cos(turns.to(torch.float64) * (torch.pi / (2 * n)))


def _ortho(n: int) -> Tensor:
    matrix = _dct(n) * sqrt(0.5 / n)
    matrix[0] *= sqrt(0.5)
    return matrix
