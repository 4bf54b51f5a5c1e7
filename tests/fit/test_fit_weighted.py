"""Fits in the norm that the input covariance gives, sums, stacks, and what a fit reports."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ksurgeon.errors import StructureError, WeightsError
from ksurgeon.fit import alternate as alternating
from ksurgeon.fit import fit_, fit_all_, low_rank_error, measured_fit_, two_factor_error
from ksurgeon.fit.alternate import alternate, as_columns
from ksurgeon.fit.factorise import factorise
from ksurgeon.fit.refine import product
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import (
    Chain,
    GroupedKaleidoscope,
    Kaleidoscope,
    LowRank,
    Monarch,
    Sum,
)
from ksurgeon.patterns.pattern import butterfly_patterns, transposed_chain


def moment(n: int, rank: int | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """A second moment whose inputs live in few directions."""
    basis = torch.linalg.qr(torch.randn(n, n, dtype=dtype))[0]
    values = torch.exp(-torch.arange(n, dtype=torch.float64) / (n / 6))
    values[n if rank is None else rank :] = 0
    return (basis * values) @ basis.mH


def weighted(matrix: KMatrix, weight: Tensor, sigma: Tensor) -> float:
    left, whole = matrix.to_dense().detach().to(sigma.dtype) - weight.to(sigma.dtype), weight.to(sigma.dtype)
    values, vectors = torch.linalg.eigh(sigma)
    root = vectors * values.clamp(min=0).sqrt()
    return ((left @ root).norm() / (whole @ root).norm()).item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("rank_of_inputs", [None, 9])
@pytest.mark.parametrize("sizes", [(24, 24), (24, 40), (40, 24)])
def test_a_low_rank_is_the_closed_form(sizes, rank_of_inputs, dtype):
    weight, sigma = torch.randn(sizes[1], sizes[0], dtype=dtype), moment(sizes[0], rank_of_inputs, dtype)
    values, vectors = torch.linalg.eigh(sigma)
    tail = torch.linalg.svdvals(weight @ (vectors * values.clamp(min=0).sqrt()))
    for rank in (1, 5, 12):
        matrix = KMatrix(*sizes, structure=LowRank(rank=rank), dtype=dtype)
        fit_(matrix, weight, moment=sigma)
        least = (tail[rank:].norm() / tail.norm()).item()
        assert weighted(matrix, weight, sigma) == pytest.approx(least, rel=1e-5, abs=1e-6)
        assert low_rank_error(weight, rank, sigma) == pytest.approx(least, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((48, 48), {"structure": Monarch(blocks=4)}),
        ((50, 70), {"structure": Monarch(blocks=4, share=0.5)}),
        ((48, 96), {}),
        ((37, 50), {"width": 2}),
        ((96, 48), {"structure": GroupedKaleidoscope(groups=4)}),
        ((48, 48), {"structure": Sum(Kaleidoscope(), rank=4)}),
        ((50, 37), {"structure": Sum(Monarch(blocks=2, block_rank=3), rank=4)}),
        ((24, 24), {"structure": Sum(Chain(factors=((4, 6, 6, 1), (6, 4, 4, 1))), rank=2)}),
    ],
)
def test_weighting_pays_where_the_inputs_are(sizes, options):
    weight, sigma = torch.randn(sizes[1], sizes[0]), moment(sizes[0])
    plain, better = (KMatrix(*sizes, **options) for _ in range(2))
    fit_(plain, weight, steps=20)
    error = fit_(better, weight, moment=sigma)
    assert weighted(better, weight, sigma) < 0.9 * weighted(plain, weight, sigma)
    difference = (better.to_dense() - weight).norm() / weight.norm()
    assert error == pytest.approx(difference.item(), rel=1e-4)


@pytest.mark.parametrize("structure", [Monarch(blocks=3, block_rank=2), Sum(Kaleidoscope(), rank=2)])
def test_groups_have_moments_of_their_own(structure):
    sigmas = torch.stack([moment(12) for _ in range(3)])
    weights = [torch.randn(18, 12) for _ in range(3)]
    matrix = KMatrix(36, 54, groups=3, structure=structure)
    fit_(matrix, torch.block_diag(*weights), moment=sigmas)
    whole = KMatrix(36, 54, groups=3, structure=structure)
    fit_(whole, torch.block_diag(*weights), moment=torch.block_diag(*sigmas))
    torch.testing.assert_close(matrix.to_dense(), whole.to_dense(), rtol=0, atol=1e-4)
    shared = KMatrix(36, 54, groups=3, structure=structure)
    fit_(shared, torch.block_diag(*weights), moment=sigmas[0])
    assert not torch.equal(matrix.to_dense(), shared.to_dense())


@pytest.mark.parametrize(
    "structure", [LowRank(rank=3), Monarch(blocks=4), Kaleidoscope(), Sum(Monarch(block_rank=1), rank=2)]
)
@pytest.mark.parametrize("with_moment", [True, False])
def test_many_at_once_are_as_good_as_each_alone(structure, with_moment):
    weights = [torch.randn(32, 24) * 10.0**k for k in range(3)]
    sigmas = [moment(24) for _ in range(3)] if with_moment else None
    together, alone = ([KMatrix(24, 32, structure=structure) for _ in range(3)] for _ in range(2))
    errors = fit_all_(together, weights, moments=sigmas)
    for k, (matrix, weight) in enumerate(zip(together, weights, strict=True)):
        given = None if sigmas is None else sigmas[k]
        assert errors[k] == pytest.approx(
            ((matrix.to_dense() - weight).norm() / weight.norm()).item(), rel=1e-4
        )
        fit_(alone[k], weight, moment=given)
        measure = torch.eye(24, dtype=torch.float64) if given is None else given
        assert weighted(matrix, weight, measure) < 1.05 * weighted(alone[k], weight, measure)
    assert fit_all_([], []) == []


def test_a_sum_is_found_again():
    structure = Sum(Monarch(blocks=4, block_rank=1), rank=2)
    truth = KMatrix(32, structure=structure, dtype=torch.float64).to_dense().detach()
    matrix = KMatrix(32, structure=structure, dtype=torch.float64)
    assert fit_(matrix, truth) < 0.1
    alone = KMatrix(32, structure=LowRank(rank=6), dtype=torch.float64)
    assert matrix.multiplications == alone.multiplications
    assert fit_(alone, truth) > 0.3


@settings(max_examples=25, deadline=None)
@given(
    st.integers(4, 40),
    st.integers(4, 40),
    st.sampled_from([LowRank(rank=2), Monarch(blocks=3), Kaleidoscope()]),
)
def test_any_sizes(in_features, out_features, structure):
    torch.manual_seed(0)
    matrix = KMatrix(in_features, out_features, structure=structure)
    weight, sigma = torch.randn(out_features, in_features), moment(in_features)
    fit_(matrix, weight, moment=sigma, steps=5)
    assert weighted(matrix, weight, sigma) < 1


def test_no_sweep_makes_it_worse():
    chain = butterfly_patterns((4, 4, 4))
    weight, sigma = torch.randn(1, 64, 64, dtype=torch.float64), moment(64)
    root = torch.linalg.cholesky(sigma + 1e-9 * torch.eye(64))
    errors = []
    factors = factorise(weight, chain, sigma)
    for _ in range(6):
        factors, error = alternate(factors, root, weight @ root, sweeps=1)
        errors.append(error)
        expected = ((product(factors) - weight[0]) @ root).norm() / (weight[0] @ root).norm()
        assert error == pytest.approx(expected.item(), rel=1e-9)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.99 * errors[0]


def test_alternating_keeps_what_is_exact():
    chain = butterfly_patterns((3, 4))
    truth = product([torch.randn(p.shape, dtype=torch.float64) for p in chain])[None]
    factors, error = alternate(factorise(truth, chain), as_columns(truth, chain[0]), truth)
    assert error < 1e-13 and (product(factors) - truth[0]).norm() < 1e-12 * truth.norm()


@pytest.mark.parametrize("structure", [Kaleidoscope(), Monarch(blocks=4), Sum(Kaleidoscope(), rank=2)])
def test_an_interrupted_fit_changes_nothing(structure):
    matrix = KMatrix(32, structure=structure)
    before = [p.detach().clone() for p in matrix.parameters()]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_(matrix, torch.randn(32, 32), moment=moment(32), on_step=stop)
    assert all(torch.equal(a, b) for a, b in zip(matrix.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("sigma", "error", "message"),
    [
        (torch.eye(7), StructureError, r"of 8 inputs has shape \(8, 8\), got \(7, 7\)"),
        (torch.full((8, 8), float("nan")), WeightsError, "NaN or infinite"),
        (-torch.eye(8), WeightsError, "positive semidefinite"),
        (torch.eye(8) + torch.ones(8, 8).triu(1), WeightsError, "not symmetric"),
    ],
)
def test_moments_that_are_none(sigma, error, message):
    matrix = KMatrix(8)
    before = matrix.to_dense()
    with pytest.raises(error, match=message):
        fit_(matrix, torch.randn(8, 8), moment=sigma)
    assert torch.equal(matrix.to_dense(), before)


@pytest.mark.parametrize("with_moment", [True, False])
@pytest.mark.parametrize(
    "structure", [LowRank(rank=6), Monarch(blocks=4), Sum(Monarch(block_rank=1), rank=2)]
)
def test_the_report_tells_what_the_fit_is_measured_against(structure, with_moment):
    weight = torch.randn(32, 32, dtype=torch.float64)
    sigma = moment(32) if with_moment else None
    matrix = KMatrix(32, structure=structure, dtype=torch.float64)
    report = measured_fit_(matrix, weight, moment=sigma)
    assert report.weight_error == pytest.approx(((matrix.to_dense() - weight).norm() / weight.norm()).item())
    assert (report.weighted_error is None) == (sigma is None)
    if sigma is not None:
        assert report.weighted_error == pytest.approx(weighted(matrix, weight, sigma), rel=1e-6)
    if isinstance(structure, LowRank):
        mine = report.weighted_error if with_moment else report.weight_error
        assert mine == pytest.approx(report.low_rank_error, rel=1e-6)
    if isinstance(structure, Monarch) and not with_moment:
        assert report.weight_error == pytest.approx(report.two_factor_error, rel=1e-6)
    assert report.parameters == matrix.multiplications and report.seconds > 0


@pytest.mark.parametrize(
    "chain",
    [
        butterfly_patterns((2, 4, 4)),
        transposed_chain(butterfly_patterns((2,) * 5)),
        butterfly_patterns((4, 8)),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.1, 1e9])
def test_no_chain_is_below_the_bound_of_two_factors(chain, noise):
    structured = product([torch.randn(p.shape, dtype=torch.float64) for p in chain])
    weight = structured + noise * torch.randn(32, 32, dtype=torch.float64)
    error = ((product(factorise(weight, chain)) - weight).norm() / weight.norm()).item()
    bound = two_factor_error(weight, chain)
    # Every split leaves at most what the best two factors for its cut leave, and they add up in squares.
    assert bound - 1e-9 <= error <= bound * (len(chain) - 1) ** 0.5 * 1.001 + 1e-9


@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize(
    "structure", [Kaleidoscope(), Monarch(blocks=4), Sum(Kaleidoscope(), rank=2)], ids=str
)
def test_fits_end_whatever_is_zero(structure, precision, monkeypatch):
    if precision == "single":
        monkeypatch.setattr(alternating, "_LARGE", 0)
    torch.manual_seed(0)
    sigma, weight = moment(37), torch.randn(41, 37)
    dead = sigma.clone()
    dead[:20] = 0
    dead[:, :20] = 0
    cases = [(weight, sigma), (weight, dead), (weight, torch.zeros_like(sigma)), (0 * weight, sigma)]
    for target, second in cases:
        for slopes in (None, torch.randn(50, 41), torch.zeros(50, 41)):
            matrix = KMatrix(37, 41, structure=structure)
            assert fit_(matrix, target, moment=second, slopes=slopes, steps=3) < 30
            assert all(factor.isfinite().all() for factor in matrix.parameters())


def test_single_precision_is_as_near(monkeypatch):
    torch.manual_seed(0)
    weight, sigma = torch.randn(48, 36), moment(36)
    for structure in (Kaleidoscope(), Monarch(blocks=4), Sum(Kaleidoscope(), rank=2)):
        matrices = [KMatrix(36, 48, structure=structure) for _ in range(2)]
        for matrix, large in zip(matrices, (2**30, 0), strict=True):
            monkeypatch.setattr(alternating, "_LARGE", large)
            fit_(matrix, weight, moment=sigma)
        errors = [weighted(matrix, weight, sigma) for matrix in matrices]
        assert errors[1] == pytest.approx(errors[0], rel=2e-2)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_slopes_does_not_count(size):
    torch.manual_seed(0)
    weight, sigma, slopes = torch.randn(16, 16), moment(16), torch.randn(40, 16, dtype=torch.float64)
    one, other = (KMatrix(16, 16, structure=Monarch(), dtype=torch.float64) for _ in range(2))
    fit_(one, weight, moment=sigma, slopes=slopes)
    fit_(other, weight, moment=sigma, slopes=size * slopes)
    torch.testing.assert_close(one.to_dense(), other.to_dense(), rtol=1e-3, atol=1e-3)
