"""Fits weighed on both sides."""

import pytest
import torch

from ksurgeon.errors import StructureError, WeightsError
from ksurgeon.fit import fit_
from ksurgeon.fit.two_sided import TwoSided, triangle
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Kaleidoscope, LowRank, Monarch, Sum


@pytest.mark.parametrize(("groups", "rows", "columns"), [(1, 12, 20), (1, 20, 12), (3, 8, 8)])
@pytest.mark.parametrize("weighed_too", [False, True])
def test_no_other_low_rank_is_better(groups, rows, columns, weighed_too):
    torch.manual_seed(0)
    draw = {"dtype": torch.float64}
    blocks = torch.randn(groups, rows, columns, **draw)
    root = torch.randn(groups, columns, columns, **draw)
    slopes = torch.randn(groups, 2 * rows, rows, **draw) * torch.logspace(0, -2, rows, **draw)
    terms = TwoSided.of(blocks, root, slopes if weighed_too else None)
    scale = torch.eye(rows, **draw).expand(groups, -1, -1)
    if weighed_too:
        gram = slopes.mT @ slopes
        scale = torch.linalg.cholesky(
            gram + 1e-3 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(rows, **draw)
        ).mT
    for rank in (1, 3, 7):
        matrix = KMatrix(groups * columns, groups * rows, structure=LowRank(rank=rank), groups=groups, **draw)
        inputs = root @ root.mT
        given = torch.block_diag(*blocks)
        fit_(matrix, given, moment=inputs, slopes=slopes if weighed_too else None)
        with torch.no_grad():
            dense = matrix.to_dense().unflatten(0, (groups, rows)).unflatten(2, (groups, columns))
        change = dense.diagonal(dim1=0, dim2=2).movedim(-1, 0) - blocks
        torch.testing.assert_close((change @ root).square().sum(), terms.errors()[rank], rtol=1e-4, atol=0)
        torch.testing.assert_close(
            (slopes @ change @ root).square().sum(), terms.errors(slopes)[rank], rtol=1e-4, atol=0
        )
        harm = (scale @ change @ root).square().sum()
        best = torch.linalg.svdvals(scale @ blocks @ root)[:, rank:].square().sum()
        torch.testing.assert_close(harm, best, rtol=1e-4, atol=0)
    assert terms.errors()[-1] == 0 and bool((terms.errors(slopes).diff() <= 0).all())


def test_no_slopes_and_no_inputs_leave_finite_factors():
    blocks = torch.randn(4, 6)
    matrix = KMatrix(6, 4, structure=LowRank(rank=2))
    fit_(matrix, blocks, moment=torch.zeros(6, 6), slopes=torch.zeros(3, 4))
    assert all(factor.isfinite().all() for factor in matrix.factors)


def weighed(matrix, weight, moment, slopes):
    with torch.no_grad():
        change = matrix.to_dense() - weight
    return float((triangle(slopes) @ change.double() @ torch.linalg.cholesky(moment.double())).norm())


STRUCTURES = [
    Monarch(blocks=4),
    Kaleidoscope(),
    Kaleidoscope(width=2),
    Sum(Kaleidoscope(), rank=2),
    Sum(Monarch(blocks=2, block_rank=1), rank=2),
]


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (36, 20), (20, 30)])
def test_every_structure_weighs_both_sides(structure, rows, columns):
    torch.manual_seed(0)
    draw = {"dtype": torch.float64}
    weight, mixed = torch.randn(rows, columns, **draw), torch.randn(columns, 2 * columns, **draw)
    moment = mixed @ mixed.mT
    slopes = torch.randn(2 * rows, rows, **draw) * torch.logspace(1, -1, rows, **draw)
    both, inputs = (KMatrix(columns, rows, structure=structure, **draw) for _ in range(2))
    fit_(both, weight, moment=moment, slopes=slopes)
    fit_(inputs, weight, moment=moment)
    assert weighed(both, weight, moment, slopes) < 0.9 * weighed(inputs, weight, moment, slopes)


def test_slopes_of_equal_size_change_nothing():
    torch.manual_seed(0)
    weight, moment = torch.randn(16, 16), torch.eye(16) + 0.5
    for structure in (Monarch(), Sum(Kaleidoscope(), rank=1), LowRank(rank=3)):
        one, other = (KMatrix(16, 16, structure=structure) for _ in range(2))
        fit_(one, weight, moment=moment)
        fit_(other, weight, moment=moment, slopes=3 * torch.eye(16))
        # Rounding is another, and steps of a sum magnify it: what is reached is the same, not each entry.
        errors = [weighed(m, weight, moment, torch.eye(16)) for m in (one, other)]
        assert errors[1] == pytest.approx(errors[0], rel=2e-2)


@pytest.mark.parametrize("structure", [LowRank(rank=2), Monarch(blocks=3), Sum(Kaleidoscope(), rank=2)])
def test_groups_have_slopes_of_their_own(structure):
    torch.manual_seed(0)
    weight = torch.block_diag(*torch.randn(3, 18, 12))
    moments, slopes = torch.eye(12).expand(3, 12, 12), torch.randn(3, 40, 18)
    ours = KMatrix(36, 54, groups=3, structure=structure)
    fit_(ours, weight, moment=moments, slopes=slopes)
    whole = KMatrix(36, 54, groups=3, structure=structure)
    fit_(whole, weight, moment=moments, slopes=slopes.movedim(0, 1).flatten(1)[None])
    torch.testing.assert_close(ours.to_dense(), whole.to_dense(), rtol=0, atol=1e-4)


def test_slopes_that_do_not_fit_are_refused():
    matrix, weight, moment = KMatrix(16, 8, structure=Monarch()), torch.randn(8, 16), torch.eye(16)
    with pytest.raises(StructureError, match="input covariance"):
        fit_(matrix, weight, slopes=torch.eye(8))
    with pytest.raises(StructureError, match=r"8 outputs.*\(1, 16, 16\)"):
        fit_(matrix, weight, moment=moment, slopes=torch.eye(16))
    with pytest.raises(WeightsError, match="output gradients"):
        fit_(matrix, weight, moment=moment, slopes=torch.full((8, 8), float("nan")))
