"""Factors of the same product and of least norm."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ksurgeon.fit import fit_
from ksurgeon.kernels import reference
from ksurgeon.kmatrix.balance import balance_
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.permutation import permutation_
from ksurgeon.kmatrix.structures import Kaleidoscope, Sum
from ksurgeon.patterns.pattern import Pattern, butterfly_patterns, kaleidoscope_patterns


def drawn(patterns, dtype=torch.float64):
    return [torch.randn(Pattern(*pattern).shape, dtype=dtype) for pattern in patterns]


def product(factors):
    size = Pattern.of(factors[0].shape).in_features
    return reference.apply_chain(torch.eye(size, dtype=factors[0].dtype), factors, -1)


def energy(factors):
    return sum(float(factor.detach().abs().square().sum()) for factor in factors)


@settings(deadline=None)
@given(
    radices=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    width=st.integers(0, 2),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
    seed=st.integers(0, 1000),
)
def test_the_product_stays_and_the_norm_falls(radices, width, dtype, seed):
    torch.manual_seed(seed)
    factors = drawn(kaleidoscope_patterns(radices, width) if width else butterfly_patterns(radices), dtype)
    before, norm = product(factors), energy(factors)
    balance_(factors)
    torch.testing.assert_close(product(factors), before, rtol=1e-7, atol=1e-9)
    assert energy(factors) <= norm * (1 + 1e-9)


@pytest.mark.parametrize("patterns", [[(3, 5, 4, 2), (6, 3, 5, 1)], [(1, 7, 6, 4), (4, 6, 7, 1)]], ids=str)
def test_rectangular_factors(patterns):
    factors = drawn(patterns)
    before = product(factors)
    balance_(factors)
    torch.testing.assert_close(product(factors), before)


def test_entries_between_two_factors_are_given_and_taken_alike():
    factors = drawn(butterfly_patterns((3, 4, 2)))
    factors[0] *= 100
    balance_(factors, sweeps=30)
    for first, second in pairwise(factors):
        given_, taken = first.norm(dim=3).mT.flatten(), second.norm(dim=2).mT.flatten()
        torch.testing.assert_close(given_, taken, rtol=1e-3, atol=0)


def test_whole_matrices_between_blocks_of_one_pattern():
    """What a fit can leave in the middle of B B*: nearly singular blocks that cancel."""
    first, second = drawn([(2, 6, 6, 3)] * 2)
    scrambled = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    scrambled[..., 0, :] *= 1e-3
    factors = [scrambled @ first, second @ torch.linalg.inv(scrambled)]
    plain, before = [first, second], product([first, second])
    balance_(plain)
    balance_(factors)
    torch.testing.assert_close(product(factors), before)
    assert energy(factors) == pytest.approx(energy(plain), rel=1e-3)
    moments = factors[0] @ factors[0].mT, factors[1].mT @ factors[1]
    torch.testing.assert_close(*moments, rtol=1e-3, atol=2e-2)


def test_what_is_balanced_stays_bit_for_bit():
    matrix = KMatrix(48)
    permutation_(matrix, torch.randperm(48))
    factors = [factor.detach() for factor in matrix.factors]
    before = [factor.clone() for factor in factors]
    balance_(factors)
    assert all(map(torch.equal, factors, before))


def test_directions_that_nothing_takes_can_still_learn():
    first, second = drawn([(1, 4, 4, 1)] * 2)
    second[..., 0] = 0
    before = product([first, second])
    balance_([first, second])
    torch.testing.assert_close(product([first, second]), before)
    assert first.norm(dim=3).min() > 1e-2 * first.norm(dim=3).max()  # so the other one has a gradient
    zeros = [torch.randn(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)]
    kept = zeros[0].clone()
    balance_(zeros)
    assert torch.equal(zeros[0], kept)
    across = [torch.eye(4).repeat(1, 1, 1, 1), torch.eye(4).repeat(1, 1, 1, 1)]  # a product of zeros
    across[0][..., :2, :], across[1][..., 2:] = 0, 0
    across[1] *= 3
    kept = [factor.clone() for factor in across]
    balance_(across)
    assert all(map(torch.equal, across, kept))


def test_blocks_that_are_not_finite_stay_and_the_others_are_balanced():
    first, second = drawn([(2, 4, 4, 1)] * 2)
    second *= 100
    first[0, 0, 1, 2] = float("nan")
    kept, before = first.clone(), second[1] @ first[1]
    balance_([first, second])
    assert torch.equal(first[0].nan_to_num(7), kept[0].nan_to_num(7))
    assert not torch.equal(first[1], kept[1])
    torch.testing.assert_close(second[1] @ first[1], before)


@pytest.mark.parametrize(
    "structure", [Kaleidoscope(radix=(6, 8)), Sum(Kaleidoscope(radix=(6, 8)), share=0.9)]
)
def test_a_fit_ends_in_balance(structure):
    torch.manual_seed(0)
    inputs = torch.randn(200, 48, dtype=torch.float64) * torch.logspace(0, -3, 48, dtype=torch.float64)
    matrix = KMatrix(48, structure=structure, dtype=torch.float64)
    fit_(matrix, torch.randn(48, 48), moment=inputs.T @ inputs / 200)
    for part in (matrix, matrix.side) if matrix.side is not None else (matrix,):
        before = energy(part.factors)
        balance_(list(part.factors), sweeps=20)
        assert energy(part.factors) > 0.5 * before  # what is left to gain is that of even gains
