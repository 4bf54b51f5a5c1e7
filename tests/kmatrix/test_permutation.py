import pytest
import torch

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.permutation import permutation_
from ksurgeon.kmatrix.structures import Chain, GroupedKaleidoscope, Kaleidoscope


def check(n, **options):
    permutation = torch.randperm(n)
    matrix = KMatrix.from_permutation(permutation, **options)
    assert torch.equal(matrix.to_dense().detach(), torch.eye(n)[permutation])
    assert all(((f == 0) | (f == 1)).all() for f in matrix.factors)
    numbers = torch.arange(n, dtype=torch.float64)
    assert torch.equal(matrix.double()(numbers).detach(), numbers[permutation])
    return matrix


def test_every_size_to_257():
    for n in range(1, 258):
        check(n)


@pytest.mark.parametrize("n", [384, 768, 1000, 1024, 2048, 3072])
def test_large_sizes(n):
    check(n)


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (64, {"radix": 2}),
        (5, {"radix": 2}),
        (116, {"radix": 2}),
        (256, {"radix": 16}),
        (105, {"radix": (3, 5, 7)}),
        (105, {"radix": (7, 5, 3)}),
        (768, {"radix": (2, 3, 128)}),
        (279, {"radix": (9, 31)}),
        (12, {"radix": (1, 3, 1, 4)}),
        (60, {"width": 2}),
        (60, {"expansion": 2}),
        (257, {"width": 3, "expansion": 2, "radix": 8}),
        (24, {"structure": Kaleidoscope(width=2, radix=(4, 6))}),
    ],
)
def test_radices_width_and_expansion(n, options):
    check(n, **options)


@pytest.mark.parametrize("permutation", [range(48), reversed(range(48)), [*range(1, 48), 0]])
def test_regular_permutations(permutation):
    order = list(permutation)
    for radix in ("auto", 2, (3, 16), (16, 3)):
        assert torch.equal(KMatrix.from_permutation(order, radix=radix).to_dense(), torch.eye(48)[order])


def test_the_dtype_stays():
    for dtype in (torch.bfloat16, torch.float16, torch.complex64):
        matrix = KMatrix.from_permutation([2, 0, 1], dtype=dtype)
        assert torch.equal(matrix.to_dense(), torch.eye(3, dtype=dtype)[[2, 0, 1]])


@pytest.mark.parametrize(
    ("permutation", "message"),
    [
        ([0, 1, 1, 3], "2 is missing, 1 stands there 2 times"),
        ([0, 1, 2, 4], "holds 4"),
        ([0, 1, 2, -1], "holds -1"),
        ([0, 1, 2], "4 entries, the permutation 3"),
        ([[0, 1], [2, 3]], "vector of integers"),
        ([0.0, 1.0, 2.0, 3.0], "vector of integers"),
        ([True, False, True, False], "vector of integers"),
    ],
)
def test_what_is_no_permutation(permutation, message):
    matrix = KMatrix(4)
    before = matrix.to_dense()
    with pytest.raises(StructureError, match=message):
        permutation_(matrix, permutation)
    assert torch.equal(matrix.to_dense(), before)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (KMatrix(4, 8), "square"),
        (KMatrix(4, groups=2), "without groups"),
        (KMatrix(4, structure=GroupedKaleidoscope(groups=2)), "grouped_kaleidoscope"),
        (KMatrix(4, structure=Chain(factors=((1, 4, 4, 1),))), "the matrix has chain"),
    ],
)
def test_matrices_that_hold_no_permutation(matrix, message):
    with pytest.raises(StructureError, match=message):
        permutation_(matrix, torch.arange(4))
