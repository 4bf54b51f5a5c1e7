from math import prod

import pytest

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.radix import LARGEST_PRIME, layout, prime_factors


@pytest.mark.parametrize("n", [1, 2, 31, 58, 116, 232, 400, 464, 768, 1000, 1024, 2304, 3072])
def test_square_sizes_that_factor_are_not_padded(n):
    assert prod(layout(n, n).radices) == n
    assert not KMatrix(n, start="empty").is_padded


@pytest.mark.parametrize(
    ("n", "radices"), [(116, (4, 29)), (400, (4, 4, 5, 5)), (768, (3, 4, 4, 4, 4)), (1024, (4,) * 5)]
)
def test_auto_takes_twos_in_pairs(n, radices):
    assert sorted(layout(n, n).radices) == sorted(radices)


@pytest.mark.parametrize(("small", "large"), [(768, 3072), (64, 256), (128, 512), (512, 2048), (16, 96)])
def test_rectangular_sizes_that_share_enough_are_not_padded(small, large):
    chosen = layout(small, large)
    assert (chosen.small, chosen.large) == (small, large)
    for sizes in ((small, large), (large, small)):
        assert not KMatrix(*sizes, start="empty").is_padded


@pytest.mark.parametrize("n", [37, 244, 257])
def test_large_primes_are_padded(n):
    size = prod(layout(n, n).radices)
    assert n < size < 1.1 * n
    assert max(prime_factors(size)) <= LARGEST_PRIME
    assert KMatrix(n, start="empty").is_padded


@pytest.mark.parametrize(
    ("n", "radix", "sizes"), [(1024, 2, {2}), (1024, 32, {32}), (768, 16, {3, 16}), (105, 15, {7, 15})]
)
def test_integer_radix(n, radix, sizes):
    chosen = layout(n, n, 1, radix).radices
    assert prod(chosen) == n
    assert set(chosen) == sizes


def test_radices_given_are_kept_in_order():
    assert layout(768, 768, 1, (2, 3, 128)).radices == (2, 3, 128)


def test_expansion_multiplies_the_smaller_side():
    assert layout(12, 48, 2).small == 24


@pytest.mark.parametrize("n", range(1, 260))
def test_every_size_has_a_layout(n):
    chosen = layout(n, 2 * n + 1)
    assert chosen.small >= n
    assert chosen.large >= 2 * n + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "at least 1, got 0 → 4"),
        ((4, 4, 0), "expansion 0"),
        ((4, 4, 1, 1), "radix must be"),
        ((8, 8, 1, (2, 2)), r"\[2, 2\] multiply to 4, but the inner size .* is 8"),
        ((8, 8, 1, (0, 8)), "integers of at least 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(StructureError, match=message):
        layout(*arguments)
