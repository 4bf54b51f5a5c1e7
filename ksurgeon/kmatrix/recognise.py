"""Dense matrices that are structured maps, and the factors whose products they are exactly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import pi, prod
from typing import Literal

import torch
from torch import Tensor

from ksurgeon.kmatrix.clos import checked, route_
from ksurgeon.kmatrix.known import known_matrix
from ksurgeon.kmatrix.radix import layout, prime_factors, transform_radices
from ksurgeon.kmatrix.subspace import wide
from ksurgeon.kmatrix.transforms import circulant_factors, dct_factors, dft_factors, digit_reversal
from ksurgeon.patterns.pattern import kaleidoscope_patterns

__all__ = ["TOLERANCE", "Recognised", "Stage", "recognise"]

TOLERANCE = 1e-5
"""Of an entry, relative to the largest."""

_LARGEST = 1 << 24


@dataclass(frozen=True)
class Stage:
    """Neighbouring factors of a chain: "up" and "down" as in a butterfly B or B*, or any others."""

    kind: Literal["permutation", "up", "down", "other"]
    factors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Recognised:
    """A structured map by name, and the stages, in the order applied, whose product it is exactly.

    The stages may be wider than the map: its input is then padded with zeros, and the output cropped.
    """

    name: str
    stages: tuple[Stage, ...]

    @property
    def factors(self) -> list[Tensor]:
        """All factors, in double precision, in the order applied."""
        return [factor for stage in self.stages for factor in stage.factors]


@torch.no_grad()
def recognise(weight: Tensor, radices: Sequence[int] | None = None) -> Recognised | None:
    """The structured map that a square matrix is, to 1e-5 of its largest entry, or None.

    Known are permutations; DFT matrices and their inverses with any rows and columns exchanged; Hadamard
    matrices, DCT-II matrices, circulant and Toeplitz matrices in natural order, or with rows or columns in
    digit-reversed order; and multiples of them. A DFT is a complex chain; a complex circulant or Toeplitz
    matrix likewise. Real ones get a real chain, whose inner size is twice as large, for real and imaginary
    parts.

    Args:
        weight: ``(n, n)``.
        radices: of the chain, for an inner size of their product; chosen if left out.
    """
    n = weight.shape[-1]
    if weight.dim() != 2 or weight.shape[0] != n or n < 2 or n * n > _LARGEST:
        return None
    matrix = weight.detach().to("cpu", wide(weight))
    if not bool(matrix.isfinite().all()) or not bool(matrix.any()):
        return None
    tried = [tuple(radices)] if radices is not None else _radices(n)
    permutation = _permutation(matrix, tried[0])
    if permutation is not None:
        return permutation
    if matrix.is_complex():
        fourier = _fourier(matrix, tried)
        if fourier is not None:
            return fourier
    return _reordered(matrix, tried)


def _radices(n: int) -> list[tuple[int, ...]]:
    """Radices that a digit reversal may be of."""
    chosen = layout(n, n).radices
    given = (transform_radices(n), chosen, tuple(prime_factors(n)))
    both = [r for radices in given if prod(radices) == n for r in (radices, radices[::-1])]
    return list(dict.fromkeys(both))


def _shuffled(index: Tensor, radices: Sequence[int]) -> tuple[Stage, ...]:
    """``x ↦ x[index]`` as a stage, or none where it is the identity."""
    size = prod(radices)
    index = torch.cat([index, torch.arange(len(index), size)])
    if torch.equal(index, torch.arange(size)):
        return ()
    factors = [torch.empty(p.shape, dtype=torch.float64) for p in kaleidoscope_patterns(radices, 1)]
    route_(factors, checked(index, size))
    return (Stage("permutation", tuple(factors)),)


def _permutation(matrix: Tensor, radices: Sequence[int]) -> Recognised | None:
    index = matrix.abs().argmax(1)
    if len(index.unique()) < len(index):
        return None
    expected = torch.zeros_like(matrix).scatter_(1, index[:, None], 1)
    if not torch.equal(matrix, expected):
        return None
    return Recognised("permutation", _shuffled(index, radices))


def _fourier(matrix: Tensor, tried: Sequence[tuple[int, ...]]) -> Recognised | None:
    """``scale · F[rows][:, columns]``, whatever rows and columns are."""
    n = len(matrix)
    size = matrix[0, 0].abs()
    if not size > 0 or bool(((matrix.abs() - size).abs() > TOLERANCE * size).any()):
        return None
    constant = ((matrix - matrix[:, :1]).abs() <= TOLERANCE * size).all(1).nonzero().flatten()
    if len(constant) != 1:
        return None
    scale = matrix[constant[0], 0]
    turns = (-(matrix / scale).angle() * (n / (2 * pi))).round().long() % n
    full = (turns.sort(1)[0] == torch.arange(n)).all(1).nonzero().flatten()
    for columns in _orders(n, tried) + [turns[row] for row in full[:1]]:
        places = (turns == columns).all(1).nonzero().flatten()
        if len(places) != 1:
            continue
        rows = turns[:, columns.argsort()[1]]
        if len(rows.unique()) < n:
            continue
        dft = torch.polar(torch.ones(n, dtype=torch.float64), torch.arange(n).double() * (-2 * pi / n))
        if _close(matrix, scale * dft[rows[:, None] * columns % n]):
            return _shortest_fourier(rows, columns, scale, [r for r in tried if prod(r) == n])
    return None


def _shortest_fourier(
    rows: Tensor, columns: Tensor, scale: Tensor, tried: Sequence[tuple[int, ...]]
) -> Recognised | None:
    """The chain of ``scale · F[rows][:, columns]`` with the fewest permutations.

    ``F = B x[reversal]``; falling, its transpose, of which rows and columns change places.
    """
    natural = torch.arange(len(rows))
    options = []
    for radices, inverse, falling in product(tried, (False, True), (False, True)):
        turned = -rows % len(rows) if inverse else rows
        first, last = (turned, columns) if falling else (columns, turned)
        first = first.argsort()[digit_reversal(radices)]
        moved = sum(not torch.equal(index, natural) for index in (first, last))
        options.append((moved, not torch.equal(turned, natural), first, last, radices, inverse, falling))
    if not options:
        return None
    *_, first, last, radices, inverse, falling = min(options, key=lambda option: option[:2])
    factors = dft_factors(len(rows), radices, inverse=inverse)
    factors[-1] = factors[-1] * scale * (len(rows) if inverse else 1)
    stages = (*_shuffled(first, radices), Stage("up", tuple(factors)), *_shuffled(last, radices))
    if falling:
        stages = tuple(_transposed(stage) for stage in reversed(stages))
    return Recognised("inverse DFT" if inverse else "DFT", stages)


def _transposed(stage: Stage) -> Stage:
    kind = "down" if stage.kind == "up" else stage.kind
    return Stage(kind, tuple(factor.mT for factor in reversed(stage.factors)))


def _orders(n: int, tried: Sequence[tuple[int, ...]]) -> list[Tensor]:
    orders = [torch.arange(n)]
    for radices in tried:
        if prod(radices) == n:
            reversal = digit_reversal(radices)
            for order in (reversal, reversal.argsort()):
                if not any(torch.equal(order, known) for known in orders):
                    orders.append(order)
    return orders


def _reordered(matrix: Tensor, tried: Sequence[tuple[int, ...]]) -> Recognised | None:
    """A known matrix with its rows, or its columns, in some order: ``known[rows][:, columns]``."""
    natural = torch.arange(len(matrix))
    for order in _orders(len(matrix), tried):
        for rows, columns in ((order, natural), (natural, order)):
            first, second = matrix[rows.argsort()[:2]][:, columns.argsort()]
            if not _close(first, first[:1]) and not _close(second[1:], first[:-1]):
                continue  # no known matrix begins like this
            unknown = matrix[rows.argsort()][:, columns.argsort()]
            found = [
                Recognised(
                    name,
                    (*_shuffled(columns.argsort()[inputs], radices), *stages, *_shuffled(rows, radices)),
                )
                for name, inputs, stages, radices in _natural(unknown, tried)
            ]
            if found:
                return min(found, key=lambda item: len(item.stages))
    return None


_Natural = tuple[str, Tensor, tuple[Stage, ...], tuple[int, ...]]


def _natural(matrix: Tensor, tried: Sequence[tuple[int, ...]]) -> Iterator[_Natural]:
    """Name, order of the input, stages and radices of each chain that a matrix in natural order is."""
    n, natural = len(matrix), torch.arange(len(matrix))
    if _close(matrix[1:, 1:], matrix[:-1, :-1]):
        yield from _toeplitz(matrix, tried)
        return
    facts = None if matrix.is_complex() and bool(matrix.imag.any()) else known_matrix(matrix.real)
    for radices in tried:
        if facts is None or prod(radices) != n:
            continue
        if facts["transform"] == "hadamard":
            factors = _sylvester(radices)
            factors[-1] = factors[-1] * facts["scale"]
            yield "Hadamard", natural, (Stage("up", tuple(factors)),), radices
        elif facts["transform"] in ("dct", "dct_ortho"):
            order, factors = dct_factors(n, radices, ortho=facts["transform"] == "dct_ortho")
            factors[-1] = factors[-1] * facts["scale"]
            yield "DCT", order, (Stage("other", tuple(factors)),), radices


def _toeplitz(matrix: Tensor, tried: Sequence[tuple[int, ...]]) -> Iterator[_Natural]:
    """A circulant matrix, or a Toeplitz one as the corner of a circulant one of twice its size."""
    n = len(matrix)
    circulant = _close(matrix[1:, 0], matrix[:-1, -1])
    sizes = {radices for radices in tried if prod(radices) >= 2 * n - 1 or (circulant and prod(radices) == n)}
    if not sizes:
        sizes.add(transform_radices(n if circulant else 2 * n))
    for radices in sizes:
        size = prod(radices)
        column = matrix.new_zeros(size)
        column[:n] = matrix[:, 0]
        if size > n:
            column[size - n + 1 :] = matrix[0, 1:].flip(0)
        factors, half = circulant_factors(column, radices), len(radices)
        stages: tuple[Stage, ...] = (Stage("other", tuple(factors)),)
        if column.is_complex():
            stages = (Stage("down", tuple(factors[:half])), Stage("up", tuple(factors[half:])))
        yield "circulant" if circulant else "Toeplitz", torch.arange(n), stages, radices


def _sylvester(radices: Sequence[int]) -> list[Tensor]:
    """The Hadamard matrix as a butterfly of any powers of two as radices."""
    n, stride, factors = prod(radices), 1, []
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for radix in radices:
        block = torch.ones(1, 1, dtype=torch.float64)
        while len(block) < radix:
            block = torch.kron(two, block)
        factors.append(block.expand(n // (stride * radix), stride, radix, radix).clone())
        stride *= radix
    return factors


def _close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= TOLERANCE * expected.abs().max())
