"""Structured maps given as plain dense matrices, in natural and in digit-reversed order."""

import pytest
import torch
from torch import Tensor

from ksurgeon.fit import fit_
from ksurgeon.kmatrix.exact import exact_matrix
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.radix import prime_factors, transform_radices
from ksurgeon.kmatrix.recognise import recognise
from ksurgeon.kmatrix.transforms import digit_reversal

SIZES = [256, 384, 400]


def dct(n: int) -> Tensor:
    k = torch.arange(n, dtype=torch.float64)
    return 2 * torch.cos(torch.pi * k[:, None] * (2 * k + 1) / (2 * n))


def hadamard(n: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix


def toeplitz(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    k = torch.arange(n)
    return torch.randn(2 * n, dtype=dtype)[k[:, None] - k + n]


def circulant(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    k = torch.arange(n)
    return torch.randn(n, dtype=dtype)[(k[:, None] - k) % n]


def fourier(n: int) -> Tensor:
    return torch.fft.fft(torch.eye(n, dtype=torch.complex128))


MAPS = {
    "DFT": fourier,
    "inverse DFT": lambda n: fourier(n).conj() / n,
    "DCT": dct,
    "Hadamard": hadamard,
    "circulant": circulant,
    "Toeplitz": toeplitz,
    "complex circulant": lambda n: circulant(n, torch.complex128),
    "complex Toeplitz": lambda n: toeplitz(n, torch.complex128),
}


def orders(n: int) -> dict[str, Tensor]:
    return {
        "fewest steps": digit_reversal(transform_radices(n)),
        "primes": digit_reversal(prime_factors(n)),
    }


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", MAPS)
def test_exact_in_natural_and_digit_reversed_order(name, n):
    if name == "Hadamard" and n & (n - 1):
        n = 512
    dense = MAPS[name](n)
    given = {"natural": dense}
    for how, order in orders(n).items():
        given |= {f"rows, {how}": dense[order], f"columns, {how}": dense[:, order.argsort()]}
    assert recognise(dense).name in name
    for how, weight in given.items():
        matrix = exact_matrix(weight)
        assert matrix is not None, how
        error = (matrix.to_dense() - weight).abs().max() / weight.abs().max()
        assert error < 1e-12, how


@pytest.mark.parametrize("n", [6, *SIZES])
def test_permutations_and_multiples(n):
    weight = torch.eye(n)[torch.randperm(n)]
    assert recognise(weight).name == "permutation"
    assert torch.equal(exact_matrix(weight).to_dense(), weight)
    scaled = -3 * MAPS["DCT"](n)
    assert (exact_matrix(scaled).to_dense() - scaled).abs().max() < 1e-11


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DFT", {"width": 2}),
        ("inverse DFT", {"width": 2}),
        ("complex circulant", {}),
        ("circulant", {}),
        ("complex Toeplitz", {"expansion": 2}),
        ("Toeplitz", {"expansion": 2, "width": 2}),
    ],
)
def test_a_complex_k_matrix_holds_them(name, options, n):
    weight = MAPS[name](n)
    matrix = KMatrix(n, dtype=torch.complex128, **options)
    assert fit_(matrix, weight) < 1e-12
    assert (matrix.to_dense() - weight).abs().max() < 1e-11


def test_a_fourier_matrix_whose_rows_and_columns_are_anyhow():
    weight = fourier(60)[torch.randperm(60)][:, torch.randperm(60)]
    assert (exact_matrix(weight).to_dense() - weight).abs().max() < 1e-12
    assert fit_(KMatrix(60, width=3, dtype=torch.complex128), weight) < 1e-12


def test_a_real_k_matrix_holds_a_hadamard_matrix_of_any_radix():
    for radix in (2, 8, (4, 2, 16)):
        matrix = KMatrix(128, radix=radix, dtype=torch.float64)
        assert fit_(matrix, 0.5 * hadamard(128)) == 0


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(8, 8),
        torch.randn(8, 8),
        torch.randn(8, 8, dtype=torch.complex64),
        torch.full((8, 8), float("nan")),
        torch.ones(8, 7),
        torch.randn(2, 8, 8),
        fourier(16) + 1e-3 * torch.randn(16, 16),
        dct(16) * (1 + 1e-3 * torch.randn(16, 16)),
        fourier(8)[[0, 1, 2, 2, 4, 5, 6, 7]],
        fourier(8)[:, [0, 1, 2, 2, 4, 5, 6, 7]],
    ],
)
def test_what_is_no_structured_map(weight):
    assert recognise(weight) is None and exact_matrix(weight) is None


def test_a_complex_map_needs_a_complex_dtype():
    assert exact_matrix(fourier(16), dtype=torch.float32) is None
    assert exact_matrix(fourier(16), dtype=torch.complex64).factors[0].dtype == torch.complex64
